"""Trees of a ranker, evaluated for blocks of rows.

A branch takes the leaves on its left side away from each row above its threshold: one comparison and one mask of bits, for
all rows of a block. The first leaf that is left is the row's. This is QuickScorer (Lucchese et al., SIGIR 2015); the scores
equal those of onnxruntime in every bit.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from recloop import jit
from recloop.bundle.checks import RANKER_GRAPH
from recloop.errors import BundleError
from recloop.graphs import node_attributes

MAX_LEAVES: Final = 64
"""Most leaves of a tree: bits of a mask."""
ROWS_PER_BLOCK: Final = 64
"""Rows whose features stay in the cache of a core."""
ALL_LEAVES = np.uint64(2**64 - 1)
ONE = np.uint64(1)
DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
"""A number whose six bits at each position differ from those at every other one."""
TOP_BITS = np.uint64(58)
ATTRIBUTES: Final = frozenset(
    {"n_targets", "nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values", "nodes_modes", "nodes_truenodeids",
     "nodes_falsenodeids", "target_treeids", "target_nodeids", "target_ids", "target_weights"}
)  # fmt: skip


def _numbers_of_bits() -> np.ndarray:
    """(64,) number of a bit, by the top bits of its product with `DE_BRUIJN`."""
    numbers = np.zeros(MAX_LEAVES, dtype=np.int64)
    for bit in range(MAX_LEAVES):
        numbers[(int(DE_BRUIJN) << bit & 2**64 - 1) >> 58] = bit
    return numbers


NUMBER_OF_BIT = _numbers_of_bits()


class TreeEnsemble(NamedTuple):
    """Trees by branch (N,) and tree (T,); the branches of a tree are adjacent.

    Attributes:
        features, thresholds: Of each branch: a row with at most the threshold goes left.
        masks: (N,) uint64, the leaves that stay if a row goes right.
        offsets: (T+1,) of the branches of each tree.
        values: (T, 64) of the leaves, from left to right.
    """

    features: np.ndarray
    thresholds: np.ndarray
    masks: np.ndarray
    offsets: np.ndarray
    values: np.ndarray

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Return the sum (C,) of the leaves of rows (C, F) float32 without NaN."""
        scores = np.zeros(len(rows), dtype=np.float32)
        add_leaves(scores, rows, *self, NUMBER_OF_BIT)
        return scores


def read_trees(graph: bytes, n_features: int) -> TreeEnsemble:
    """Read the trees that `recloop.training.tree_graph` writes.

    Raises:
        BundleError: the graph has another form, a feature outside the rows, or a tree with more than 64 leaves.
    """
    try:
        return _read(node_attributes(graph), n_features)
    except (ValueError, TypeError, IndexError) as error:
        expected = f"trees with {n_features} features and at most {MAX_LEAVES} leaves each ({error})"
        raise BundleError(RANKER_GRAPH, f"{len(graph):,} bytes", expected, "recloop update --full") from None


def _read(attributes: dict[str, np.ndarray], n_features: int) -> TreeEnsemble:
    _require(attributes.keys() == ATTRIBUTES, "other attributes")
    modes, trees = attributes["nodes_modes"], attributes["nodes_treeids"]
    is_leaf = modes == b"LEAF"
    _require(bool((is_leaf | (modes == b"BRANCH_LEQ")).all()), "other branches")
    _require(attributes["n_targets"].tolist() == [1] and not attributes["target_ids"].any(), "other targets")
    _require(len(trees) > trees.max(initial=0), "other nodes")
    sizes = np.bincount(trees)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    numbers = np.arange(len(trees)) - starts[trees]
    _require(bool((np.diff(trees) >= 0).all()) and np.array_equal(numbers, attributes["nodes_nodeids"]), "other nodes")
    _require(
        np.array_equal(trees[is_leaf], attributes["target_treeids"])
        and np.array_equal(numbers[is_leaf], attributes["target_nodeids"]),
        "other leaves",
    )
    leaf_values = np.zeros(len(trees), dtype=np.float32)
    leaf_values[is_leaf] = attributes["target_weights"]
    features, thresholds = attributes["nodes_featureids"], attributes["nodes_values"]
    _require(bool((features[~is_leaf] < n_features).all()), "a feature outside the rows")
    masks = np.zeros(len(trees), dtype=np.uint64)
    values = np.zeros((len(sizes), MAX_LEAVES), dtype=np.float32)
    for tree, (first, stop) in enumerate(zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)):
        span = slice(first, stop)
        places, tree_masks = _leaves(
            is_leaf[span].tolist(),
            attributes["nodes_truenodeids"][span].tolist(),
            attributes["nodes_falsenodeids"][span].tolist(),
        )
        masks[span] = tree_masks
        values[tree, [place for place in places if place >= 0]] = leaf_values[span][is_leaf[span]]
    branches = np.flatnonzero(~is_leaf)
    return TreeEnsemble(
        features[branches], thresholds[branches], masks[branches],
        np.searchsorted(trees[branches], np.arange(len(sizes) + 1)), values,
    )  # fmt: skip


def _leaves(is_leaf: list[bool], left: list[int], right: list[int]) -> tuple[list[int], list[int]]:
    """Place the leaves of a tree from left to right.

    Returns:
        The place of each leaf, -1 for a branch, and the leaves that stay right of each branch as bits, 0 for a leaf.
    """
    n_nodes = len(is_leaf)
    children = sorted(child for node in range(n_nodes) if not is_leaf[node] for child in (left[node], right[node]))
    _require(children == list(range(1, n_nodes)), "a node with more or fewer than one parent")
    _require(all(is_leaf[node] or min(left[node], right[node]) > node for node in range(n_nodes)), "a child first")
    counts = [1] * n_nodes
    for node in reversed(range(n_nodes)):
        if not is_leaf[node]:
            counts[node] = counts[left[node]] + counts[right[node]]
    _require(counts[0] <= MAX_LEAVES, f"a tree with {counts[0]} leaves")
    firsts, places, masks = [0] * n_nodes, [-1] * n_nodes, [0] * n_nodes
    for node in range(n_nodes):
        if is_leaf[node]:
            places[node] = firsts[node]
            continue
        firsts[left[node]] = firsts[node]
        firsts[right[node]] = firsts[node] + counts[left[node]]
        masks[node] = int(ALL_LEAVES) ^ ((1 << counts[left[node]]) - 1 << firsts[node])
    return places, masks


def _require(is_met: bool, otherwise: str) -> None:
    if not is_met:
        raise ValueError(otherwise)


@jit.compiled(
    None,
    jit.written(jit.FLOAT32),
    jit.FLOAT32_2D,
    jit.INT64,
    jit.FLOAT32,
    jit.UINT64,
    jit.INT64,
    jit.FLOAT32_2D,
    jit.INT64,
)
def add_leaves(
    scores: np.ndarray, rows: np.ndarray, features: np.ndarray, thresholds: np.ndarray, masks: np.ndarray,
    offsets: np.ndarray, values: np.ndarray, number_of_bit: np.ndarray,
) -> None:  # fmt: skip
    """Add the leaves of all trees, in their order, to the scores (C,) of rows (C, F)."""
    columns = np.empty((rows.shape[1], ROWS_PER_BLOCK), dtype=np.float32)
    leaves = np.empty(ROWS_PER_BLOCK, dtype=np.uint64)
    for first in range(0, len(rows), ROWS_PER_BLOCK):
        n_rows = min(ROWS_PER_BLOCK, len(rows) - first)
        for row in range(n_rows):
            for feature in range(rows.shape[1]):
                columns[feature, row] = rows[first + row, feature]
        totals = scores[first : first + n_rows]
        for tree in range(len(values)):
            for row in range(n_rows):
                leaves[row] = ALL_LEAVES
            for branch in range(offsets[tree], offsets[tree + 1]):
                column, threshold, mask = columns[features[branch]], thresholds[branch], masks[branch]
                for row in range(n_rows):
                    leaves[row] = leaves[row] & (ALL_LEAVES if column[row] <= threshold else mask)
            of_tree = values[tree]
            for row in range(n_rows):
                lowest = leaves[row] & (~leaves[row] + ONE)
                totals[row] += of_tree[number_of_bit[lowest * DE_BRUIJN >> TOP_BITS]]
