"""Trees of the ranker: LightGBM `lambdarank`, written as an ONNX graph."""

from __future__ import annotations

from typing import Any, Final

from recloop.config import Config
from recloop.training.ranker_examples import Examples
from recloop.training.tree_graph import tree_graph

TREES: Final = {
    "objective": "lambdarank", "learning_rate": 0.15, "max_depth": 6, "min_data_in_leaf": 100, "max_bin": 63, "lambda_l2": 20.0,
    "feature_fraction": 0.5, "lambdarank_truncation_level": 20, "deterministic": True, "force_row_wise": True, "verbose": -1,
}  # fmt: skip
"""Parameters of LightGBM."""


MIN_LEAVES: Final = 4
TARGETS_PER_LEAF: Final = 450
"""Targets that teach for each leaf of a tree; with fewer of them larger trees learn noise."""


def n_leaves(n_targets: int, leaves: int) -> int:
    """Return the leaves of a tree: ``leaves``, and fewer if few targets teach."""
    return min(leaves, max(MIN_LEAVES, n_targets // TARGETS_PER_LEAF))


def load_lightgbm() -> Any:
    """Import LightGBM, which needs the OpenMP library of the system."""
    import lightgbm

    return lightgbm


def fit_trees(examples: Examples, config: Config) -> bytes:
    """Fit the trees and return their graph.

    The result is the same for the same examples, seed and number of threads.

    Raises:
        UserError: the examples cannot teach it (`Examples.check`).
    """
    examples.check()
    lgb = load_lightgbm()
    leaves = n_leaves(int(examples.labels.sum()), config.ranker.leaves)
    parameters: dict[str, Any] = {
        **TREES, "num_leaves": leaves, "seed": config.train.seed, "num_threads": config.ranker.threads,
    }  # fmt: skip
    rows = lgb.Dataset(examples.features, examples.labels, group=examples.sizes)
    booster = lgb.train(parameters, rows, config.ranker.trees)
    return tree_graph(booster.dump_model()["tree_info"], examples.features.shape[1])
