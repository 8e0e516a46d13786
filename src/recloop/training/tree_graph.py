"""LightGBM trees as an ONNX graph with one TreeEnsembleRegressor.

The protobuf messages are written here, so that the base install needs no `onnx`. Field numbers are those of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3. Thresholds are rounded down to float32: a float32 value is at most a
threshold exactly if it is at most the rounded one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from recloop.graphs import TREE_DOMAIN, TREE_OPERATOR

IR_VERSION: Final = 8
OPSET: Final = 3
FLOAT_TENSOR: Final = 1
MODES: Final = {True: b"BRANCH_LEQ", False: b"LEAF"}


@dataclass
class _Nodes:
    """Nodes of all trees as columns, and the leaves among them."""

    trees: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    features: list[int] = field(default_factory=list)
    thresholds: list[np.float32] = field(default_factory=list)
    modes: list[bytes] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    leaf_trees: list[int] = field(default_factory=list)
    leaf_ids: list[int] = field(default_factory=list)
    leaf_values: list[float] = field(default_factory=list)

    def add_tree(self, number: int, root: Mapping[str, Any]) -> None:
        """Add the nodes of a tree, parents first."""
        waiting = [root]
        n_found = 1
        for node_id, node in enumerate(_growing(waiting)):
            is_branch = "split_feature" in node
            self.trees.append(number)
            self.ids.append(node_id)
            self.features.append(node["split_feature"] if is_branch else 0)
            self.thresholds.append(rounded_down(node["threshold"]) if is_branch else np.float32(0))
            self.modes.append(MODES[is_branch])
            self.left.append(n_found if is_branch else 0)
            self.right.append(n_found + 1 if is_branch else 0)
            if is_branch:
                waiting += [node["left_child"], node["right_child"]]
                n_found += 2
            else:
                self.leaf_trees.append(number)
                self.leaf_ids.append(node_id)
                self.leaf_values.append(node["leaf_value"])


def tree_graph(trees: Sequence[Mapping[str, Any]], n_features: int) -> bytes:
    """Return the ONNX model of the trees of `lightgbm.Booster.dump_model`.

    Its input ``features`` is (C, F) float32 without NaN, its output ``scores`` (C, 1) float32, the sum of the leaves.

    Args:
        trees: The entries of ``tree_info``; all splits are numeric.
    """
    nodes = _Nodes()
    for number, tree in enumerate(trees):
        nodes.add_tree(number, tree["tree_structure"])
    attributes = [
        _integers("n_targets", [1], single=True),
        _integers("nodes_treeids", nodes.trees),
        _integers("nodes_nodeids", nodes.ids),
        _integers("nodes_featureids", nodes.features),
        _floats("nodes_values", nodes.thresholds),
        _strings("nodes_modes", nodes.modes),
        _integers("nodes_truenodeids", nodes.left),
        _integers("nodes_falsenodeids", nodes.right),
        _integers("target_treeids", nodes.leaf_trees),
        _integers("target_nodeids", nodes.leaf_ids),
        _integers("target_ids", [0] * len(nodes.leaf_ids)),
        _floats("target_weights", nodes.leaf_values),
    ]
    node = _text(1, "features") + _text(2, "scores") + _text(3, "trees") + _text(4, TREE_OPERATOR)
    node += _text(7, TREE_DOMAIN) + b"".join(_bytes(5, attribute) for attribute in attributes)
    graph = _bytes(1, node) + _text(2, "ranker")
    graph += _bytes(11, _tensor("features", n_features)) + _bytes(12, _tensor("scores", 1))
    opset = _text(1, TREE_DOMAIN) + _number(2, OPSET)
    return _number(1, IR_VERSION) + _text(2, "recloop") + _bytes(7, graph) + _bytes(8, opset)


def rounded_down(threshold: float) -> np.float32:
    """Return the largest float32 that is at most ``threshold``."""
    nearest = np.float32(threshold)
    return nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-np.inf))


def _growing(nodes: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of a list that grows meanwhile."""
    position = 0
    while position < len(nodes):
        yield nodes[position]
        position += 1


def _tensor(name: str, n_columns: int) -> bytes:
    """ValueInfoProto of a (rows, n_columns) float32 tensor."""
    shape = _bytes(1, _text(2, "rows")) + _bytes(1, _number(1, n_columns))
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, FLOAT_TENSOR) + _bytes(2, shape)))


def _integers(name: str, values: Sequence[int], single: bool = False) -> bytes:
    """AttributeProto of integers."""
    if single:
        return _text(1, name) + _number(3, values[0]) + _number(20, 2)
    return _text(1, name) + _bytes(8, b"".join(map(_varint, values))) + _number(20, 7)


def _floats(name: str, values: Sequence[float | np.float32]) -> bytes:
    return _text(1, name) + _bytes(7, np.asarray(values, dtype="<f4").tobytes()) + _number(20, 6)


def _strings(name: str, values: Sequence[bytes]) -> bytes:
    return _text(1, name) + b"".join(_bytes(9, value) for value in values) + _number(20, 8)


def _text(number: int, text: str) -> bytes:
    return _bytes(number, text.encode())


def _bytes(number: int, data: bytes) -> bytes:
    """Return a length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
