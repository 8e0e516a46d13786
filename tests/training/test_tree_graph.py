"""Trees as an ONNX graph: equal to LightGBM on float32 rows."""

from __future__ import annotations

import lightgbm as lgb
import numpy as np
import pytest

from recloop.graphs import TREE_DOMAIN, TREE_OPERATOR, operators
from recloop.recommend.sources import open_session
from recloop.training.tree_graph import rounded_down, tree_graph


def test_tree_graph_on_random_rows_equals_lightgbm() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(600, 5)).astype(np.float32)
    rows[:, 1] = np.round(rows[:, 1])  # equal values lie on thresholds
    labels = rows[:, 0] * rows[:, 1] + random.normal(size=600)
    parameters = {"num_leaves": 7, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5}
    booster = lgb.train(parameters, lgb.Dataset(rows, labels), 12)
    graph = tree_graph(booster.dump_model()["tree_info"], rows.shape[1])
    scores = open_session(graph).run(None, {"features": rows})[0][:, 0]
    assert np.allclose(scores, booster.predict(rows), rtol=0, atol=1e-5)
    assert operators(graph) == {(TREE_DOMAIN, TREE_OPERATOR)}


def test_tree_graph_of_a_single_leaf_is_its_value() -> None:
    graph = tree_graph([{"tree_structure": {"leaf_value": 0.25}}], 2)
    scores = open_session(graph).run(None, {"features": np.zeros((3, 2), np.float32)})[0]
    assert scores.ravel().tolist() == [0.25] * 3


@pytest.mark.parametrize("threshold", [0.1, -0.1, 1.0, 16777217.0, 1e-35, -3.3])
def test_rounded_down_separates_the_same_float32_values(threshold: float) -> None:
    rounded = rounded_down(threshold)
    nearest = np.float32(threshold)
    for value in (np.nextafter(nearest, np.float32(-np.inf)), nearest, np.nextafter(nearest, np.float32(np.inf))):
        assert (value <= rounded) == (float(value) <= threshold)


def test_operators_of_other_bytes_raises() -> None:
    with pytest.raises(ValueError, match="protobuf"):
        operators(b"\xff" * 12)
