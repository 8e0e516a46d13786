"""Operators of an ONNX graph, read without `onnx`.

The ranker of a bundle is one operator of the domain ``ai.onnx.ml``; no other graph may use a domain of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

TREE_DOMAIN: Final = "ai.onnx.ml"
TREE_OPERATOR: Final = "TreeEnsembleRegressor"
_GRAPH, _NODE, _OPERATOR, _DOMAIN, _FUNCTION = 7, 1, 4, 7, 25
"""Field numbers of ModelProto.graph, GraphProto.node, NodeProto.op_type and domain, and ModelProto.functions."""


def operators(model: bytes) -> set[tuple[str, str]]:
    """Return the (domain, operator) of the nodes of a model.

    A function of the model's own gives ``function``.

    Raises:
        ValueError: the bytes are not an ONNX model.
    """
    nodes = [node for graph in _fields(model, _GRAPH) for node in _fields(graph, _NODE)]
    found = {(_text(node, _DOMAIN), _text(node, _OPERATOR)) for node in nodes}
    return found | {("function", "") for _ in _fields(model, _FUNCTION)}


def _text(message: bytes, number: int) -> str:
    return b"".join(_fields(message, number)).decode()


def _fields(message: bytes, number: int) -> Iterator[bytes]:
    """Yield the length-delimited fields with a number of a protobuf message."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            _, position = _varint(message, position)
        elif kind in {1, 5}:
            position += 8 if kind == 1 else 4
        elif kind == 2:
            size, position = _varint(message, position)
            if position + size > len(message):
                raise ValueError("a protobuf field ends early")
            if key >> 3 == number:
                yield message[position : position + size]
            position += size
        else:
            raise ValueError(f"protobuf wire type {kind}")


def _varint(message: bytes, position: int) -> tuple[int, int]:
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
