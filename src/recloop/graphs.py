"""Operators of an ONNX graph, read without `onnx`.

The trees of a bundle's ranker are one operator of the domain ``ai.onnx.ml``; no other graph may use a domain of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

Buffer = bytes | memoryview
TREE_DOMAIN: Final = "ai.onnx.ml"
TREE_OPERATOR: Final = "TreeEnsembleRegressor"
_GRAPH, _NODE, _OPERATOR, _DOMAIN, _FUNCTION = 7, 1, 4, 7, 25
"""Field numbers of ModelProto.graph, GraphProto.node, NodeProto.op_type and domain, and ModelProto.functions."""
_INITIALIZER, _SPARSE_INITIALIZER, _ATTRIBUTE, _FUNCTION_NODE = 5, 15, 5, 7
"""Field numbers of GraphProto.initializer and sparse_initializer, NodeProto.attribute and FunctionProto.node."""
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
"""Field numbers of TensorProto."""
_INT, _FLOATS, _INTS, _STRINGS = 3, 7, 8, 9
"""Field numbers of AttributeProto.i, floats, ints and strings."""
MAX_GRAPH_DEPTH: Final = 32


def operators(model: bytes) -> set[tuple[str, str]]:
    """Return the (domain, operator) of the nodes of a model.

    A function of the model's own gives ``function``.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    nodes = [node for graph in _fields(model, _GRAPH) for node in _fields(graph, _NODE)]
    found = {(_text(node, _DOMAIN), _text(node, _OPERATOR)) for node in nodes}
    return found | {("function", "") for _ in _fields(model, _FUNCTION)}


def has_external_tensors(model: bytes) -> bool:
    """True if a tensor of a model is stored elsewhere, at any depth of graphs.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    return any(_has_external(graph) for graph in _fields(model, _GRAPH)) or any(
        _node_has_external(node) for function in _fields(model, _FUNCTION) for node in _fields(function, _FUNCTION_NODE)
    )


def _has_external(graph: Buffer, depth: int = 0) -> bool:
    if depth > MAX_GRAPH_DEPTH:
        raise ValueError(f"graphs nested more than {MAX_GRAPH_DEPTH} times")
    tensors = [*_fields(graph, _INITIALIZER)]
    for sparse in _fields(graph, _SPARSE_INITIALIZER):
        tensors += [*_fields(sparse, 1), *_fields(sparse, 2)]  # values, indices
    return any(map(_is_external, tensors)) or any(_node_has_external(node, depth) for node in _fields(graph, _NODE))


def _node_has_external(node: Buffer, depth: int = 0) -> bool:
    for attribute in _fields(node, _ATTRIBUTE):
        tensors = [*_fields(attribute, 5), *_fields(attribute, 10)]  # t, tensors
        for number in (22, 23):  # sparse_tensor, sparse_tensors
            for sparse in _fields(attribute, number):
                tensors += [*_fields(sparse, 1), *_fields(sparse, 2)]
        if any(map(_is_external, tensors)):
            return True
        graphs = [*_fields(attribute, 6), *_fields(attribute, 11)]  # g, graphs
        if any(_has_external(graph, depth + 1) for graph in graphs):
            return True
    return False


def _is_external(tensor: Buffer) -> bool:
    """True if a TensorProto has external data or a location of data other than itself."""
    return any(True for _ in _fields(tensor, _EXTERNAL_DATA)) or any(_numbers(tensor, _DATA_LOCATION))


def node_attributes(model: bytes) -> dict[str, np.ndarray]:
    """Return the attributes of the only node of a model, integers, float32 or bytes.

    Raises:
        ValueError: the bytes are not an ONNX model, or it has another number of nodes.
    """
    nodes = [node for graph in _fields(model, _GRAPH) for node in _fields(graph, _NODE)]
    if len(nodes) != 1:
        raise ValueError(f"{len(nodes)} nodes")
    return {_text(attribute, 1): _values(attribute) for attribute in _fields(nodes[0], _ATTRIBUTE)}


def _values(attribute: Buffer) -> np.ndarray:
    """Return an AttributeProto as an array; lists of numbers are packed."""
    texts = [bytes(text) for text in _fields(attribute, _STRINGS)]
    if texts:
        return np.array(texts)
    floats = b"".join(_fields(attribute, _FLOATS))
    if floats:
        return np.frombuffer(floats, dtype="<f4").astype(np.float32)
    integers = b"".join(_fields(attribute, _INTS))
    return _unpacked(integers) if integers else np.array([*_numbers(attribute, _INT)], dtype=np.int64)


def _unpacked(packed: bytes) -> np.ndarray:
    """Return the variable-length integers of a packed list."""
    raw = np.frombuffer(packed, dtype=np.uint8)
    ends = np.flatnonzero(raw < 128)
    if not len(ends) or ends[-1] != len(raw) - 1:
        raise ValueError("a protobuf number ends early")
    starts = np.concatenate([[0], ends[:-1] + 1])
    shifts = 7 * (np.arange(len(raw)) - np.repeat(starts, ends - starts + 1))
    if shifts.max() >= 63:
        raise ValueError("a protobuf number above int64")
    return np.add.reduceat((raw & 127).astype(np.int64) << shifts, starts)


def _text(message: Buffer, number: int) -> str:
    return b"".join(_fields(message, number)).decode()


def _fields(message: Buffer, number: int) -> Iterator[memoryview]:
    """Yield the length-delimited fields with a number of a protobuf message."""
    return (value for key, value in _all_fields(message) if key == number and not isinstance(value, int))


def _numbers(message: Buffer, number: int) -> Iterator[int]:
    """Yield the varint fields with a number of a protobuf message."""
    return (value for key, value in _all_fields(message) if key == number and isinstance(value, int))


def _all_fields(message: Buffer) -> Iterator[tuple[int, memoryview | int]]:
    """Yield the number and value of varint and length-delimited fields."""
    message = memoryview(message)
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
        elif kind in {1, 5}:
            position += 8 if kind == 1 else 4
        elif kind == 2:
            size, position = _varint(message, position)
            if position + size > len(message):
                raise ValueError("a protobuf field ends early")
            yield key >> 3, message[position : position + size]
            position += size
        else:
            raise ValueError(f"protobuf wire type {kind}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Read a variable-length integer; return it and the position after it."""
    value = shift = 0
    while position < len(message) and shift < 64:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError("a protobuf number ends early")
