"""Trees of a ranker: scores equal to onnxruntime in every bit, and graphs that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop import graphs
from recloop.errors import BundleError
from recloop.graphs import node_attributes
from recloop.recommend import trees
from recloop.recommend.sources import open_session
from recloop.recommend.trees import read_trees
from recloop.training.tree_graph import tree_graph

N_FEATURES = 5
VALUES = np.array([-1.5, -0.5, 0.0, 0.5, 1.0, 2.0], dtype=np.float32)


def leaf(value: float) -> dict[str, Any]:
    return {"leaf_value": value}


def branch(feature: int, threshold: float, left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    return {"split_feature": feature, "threshold": threshold, "left_child": left, "right_child": right}


def graph_of(*roots: dict[str, Any]) -> bytes:
    return tree_graph([{"tree_structure": root} for root in roots], N_FEATURES)


ROOTS = st.recursive(
    st.floats(-3, 3, width=32).map(leaf),
    lambda parts: st.builds(branch, st.integers(0, N_FEATURES - 1), st.sampled_from(VALUES.tolist()), parts, parts),
    max_leaves=40,
)


@given(st.lists(ROOTS, min_size=1, max_size=6), st.integers(1, 150), st.integers(0, 2**32 - 1))
def test_scores_of_random_trees_equal_onnxruntime(roots: list[dict[str, Any]], n_rows: int, seed: int) -> None:
    graph = graph_of(*roots)
    rows = np.random.default_rng(seed).choice(VALUES, size=(n_rows, N_FEATURES))
    expected = open_session(graph).run(None, {"features": rows})[0][:, 0]
    assert np.array_equal(read_trees(graph, N_FEATURES).scores(rows), expected)


def test_scores_of_fitted_trees_equal_onnxruntime() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(3_000, N_FEATURES)).astype(np.float32)
    labels = rows[:, 0] * rows[:, 1] + random.normal(size=len(rows))
    parameters = {"num_leaves": 64, "max_depth": 6, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5}
    booster = lgb.train(parameters, lgb.Dataset(rows, labels), 30)
    graph = tree_graph(booster.dump_model()["tree_info"], N_FEATURES)
    found, session = read_trees(graph, N_FEATURES), open_session(graph)
    for n_rows in (1, 63, 64, 65, 128, len(rows)):
        assert np.array_equal(found.scores(rows[:n_rows]), session.run(None, {"features": rows[:n_rows]})[0][:, 0])
    assert found.scores(rows[:0]).tolist() == []


def test_tree_of_64_leaves_in_a_line_has_each_value() -> None:
    root = leaf(63.0)
    for place in reversed(range(63)):
        root = branch(0, place + 0.5, leaf(float(place)), root)
    rows = np.zeros((64, N_FEATURES), dtype=np.float32)
    rows[:, 0] = np.arange(64)
    assert read_trees(graph_of(root), N_FEATURES).scores(rows).tolist() == list(range(64))
    with pytest.raises(BundleError, match="a tree with 65 leaves"):
        read_trees(graph_of(branch(0, -0.5, leaf(0.0), root)), N_FEATURES)


def first(values: np.ndarray, value: object) -> np.ndarray:
    """Replace the first value."""
    return np.concatenate([np.array([value], dtype=values.dtype), values[1:]])


@pytest.mark.parametrize(
    ("name", "change", "error"),
    [
        ("nodes_featureids", lambda values: first(values, N_FEATURES), "a feature outside the rows"),
        ("nodes_truenodeids", lambda values: first(values, 0), "fewer than one parent"),
        ("nodes_truenodeids", lambda values: first(values, 2), "fewer than one parent"),
        ("nodes_falsenodeids", lambda values: first(values, 2**40), "fewer than one parent"),
        ("nodes_nodeids", lambda values: first(values, 1), "other nodes"),
        ("nodes_treeids", lambda values: values[::-1] + np.arange(len(values))[::-1], "other nodes"),
        ("nodes_treeids", lambda values: values + 2**40, "other nodes"),
        ("nodes_treeids", lambda _: np.array([b"a"]), ""),
        ("nodes_values", lambda values: values[:0], ""),
        ("nodes_modes", lambda values: np.array([b"BRANCH_LT", *values[1:]]), "other branches"),
        ("n_targets", lambda values: values + 1, "other targets"),
        ("target_ids", lambda values: values + 1, "other targets"),
        ("target_nodeids", lambda values: values[::-1], "other leaves"),
        ("target_weights", lambda values: values[:-1], "NumPy|shape"),
        ("base_values", lambda values: np.ones(1, dtype=np.float32), "other attributes"),
    ],
)
def test_graph_of_another_form_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[np.ndarray], np.ndarray], error: str
) -> None:
    graph = graph_of(branch(0, 0.0, branch(1, 0.5, leaf(1.0), leaf(2.0)), leaf(3.0)))
    attributes = node_attributes(graph)
    attributes[name] = change(attributes.get(name, np.zeros(0)))
    monkeypatch.setattr(trees, "node_attributes", lambda _: attributes)
    with pytest.raises(BundleError, match=rf"ranker.onnx.*at most 64 leaves each \(.*{error}"):
        read_trees(graph, N_FEATURES)


def test_attributes_of_broken_graphs_raise_value_error() -> None:
    graph = graph_of(leaf(1.0))
    for broken in (b"", graph[:-30], graph + graph):
        with pytest.raises(ValueError, match=r"node|ends early"):
            node_attributes(broken)
    assert graphs.node_attributes(graph)["target_weights"].tolist() == [1.0]
