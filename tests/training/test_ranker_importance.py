"""The benchmark of a ranker's features: its lists are those of the ranker, and it judges on validation moments."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
from ranked_shop import Shop, make_shop

from recloop.bundle.checks import RANKER_GRAPH
from recloop.config import Ranker
from recloop.evaluation import bootstrap
from recloop.recommend.trees import read_trees
from recloop.training import ranker, ranker_examples, ranker_trees


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make_shop()


def test_losses_are_zero_for_features_without_a_branch_and_lists_equal_those_of_the_ranker(
    shop: Shop, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    monkeypatch.setitem(ranker_trees.TREES, "min_data_in_leaf", 5)
    benchmark = importlib.import_module("ranker_importance")
    config = shop.config.model_copy(update={"ranker": Ranker(model="gbdt", trees=5, leaves=4)})
    bundle, moments = ranker.trees_and_later_moments(shop.bundle, config, shop.data, shop.tables, shop.past)
    candidates = benchmark.JudgedCandidates.of(bundle, moments, shop.data, shop.past)
    result = candidates.losses(bundle, seed=0)
    spec = bundle.policy.ranker
    assert spec is not None
    listed = ranker_examples.ndcg(bundle, moments, shop.data.user_ids, shop.past)
    _, users = np.unique(moments.user_ix, return_inverse=True)
    expected = bootstrap.user_means(listed[:, None], users, int(users.max()) + 1).mean()
    assert result["NDCG@10"] == pytest.approx(expected, abs=1e-6)
    losses = {feature["name"]: feature["loss"]["value"] for feature in result["features"]}
    assert set(losses) == {*spec.features}
    trees = read_trees(bundle.graphs[RANKER_GRAPH], len(spec.features))
    used = {spec.features[number] for number in trees.features.tolist()}
    assert used
    assert used < set(losses)
    assert {losses[name] for name in losses if name not in used} == {0.0}
    assert any(losses[name] for name in used)


def test_moments_that_judge_trees_are_later_than_those_that_teach(shop: Shop) -> None:
    config = shop.config.model_copy(update={"ranker": Ranker(model="gbdt", trees=1, leaves=2)})
    bundle, later = ranker.trees_and_later_moments(shop.bundle, config, shop.data, shop.tables, shop.past)
    assert shop.data.history is not None
    period = ranker.moments_between(shop.data.history, shop.data.cut, shop.data.history.cut)
    assert bundle.policy.ranker is not None
    assert 0 < len(later) < len(period)
    assert bundle.policy.ranker.moments <= len(period) - len(later)
    assert later.now.min() > np.sort(period.now)[len(period) - len(later) - 1]
