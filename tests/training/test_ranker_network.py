"""The network of the ranker: its layers, loss, training, graph and bad input."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from ranked_shop import Shop, lists, make_shop

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.bundle.checks import RANKER_GRAPH
from recloop.errors import BundleError, UserError
from recloop.evaluation.lists import ListRecommender
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import RANKER, Recommender
from recloop.recommend.sources import open_session
from recloop.records import Query
from recloop.training import ranker, ranker_network
from recloop.training.export import score_graph
from recloop.training.ranker_examples import Examples

STARTED = datetime(2025, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def shop() -> Iterator[Shop]:
    """The shop, with few moments that teach and judge."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranker, "MIN_MOMENTS", 2)
        patch.setattr(ranker, "MIN_JUDGED", 1)
        yield make_shop()


@pytest.fixture(scope="module")
def ranked(shop: Shop) -> Bundle:
    return shop.choose("mlp").bundle


def examples(n_moments: int = 40, size: int = 10, seed: int = 0) -> Examples:
    """Moments whose target is the row with the largest value of feature 1."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(n_moments * size, 3)).astype(np.float32)
    labels = np.zeros((n_moments, size), np.int8)
    labels[np.arange(n_moments), features[:, 1].reshape(n_moments, size).argmax(axis=1)] = 1
    return Examples(features, labels.ravel(), np.full(n_moments, size), n_moments, n_moments)


def test_values_enter_as_quantile_and_clipped_standard_deviations() -> None:
    network = ranker_network.RankerNetwork(2)
    features = np.array([[-1, 0], [-1, 0], [0, 0], [3, 0]], dtype=np.float32)
    network.fit_scales(features)
    bins, scaled = network.encode(torch.tensor([[-2.0, 0.0], [-1.0, 0.0], [0.0, 5.0], [99.0, 0.0]]))
    assert bins[:, 0].tolist() == [0, 0, 1, 2]  # the edges are -1, 0 and the largest number
    logs = np.array([-np.log(2), -np.log(2), 0, np.log(4)])
    assert scaled[1, 0].item() == pytest.approx((-np.log(2) - logs.mean()) / logs.std(), rel=1e-5)
    assert scaled[2, 1].item() == ranker_network.MAX_DEVIATIONS


def test_listwise_loss_is_the_cross_entropy_of_each_moment() -> None:
    scores = torch.tensor([0.0, np.log(3.0), 0.0, 0.0])
    labels, moments = torch.tensor([0.0, 1.0, 1.0, 1.0]), torch.tensor([0, 0, 1, 1])
    expected = (-np.log(3 / 4) - np.log(1 / 2)) / 2
    assert ranker_network.listwise_loss(scores, labels, moments).item() == pytest.approx(expected, rel=1e-6)


def test_network_learns_the_feature_that_decides_and_is_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker_network, "EPOCHS", 30)
    monkeypatch.setattr(ranker_network, "MOMENTS_PER_STEP", 8)
    graph = ranker_network.fit_network(examples(), 0)
    assert ranker_network.fit_network(examples(), 0) == graph
    test = examples(seed=1)
    scores = open_session(graph).run(None, {"features": test.features})[0].reshape(40, 10)
    hits = test.labels.reshape(40, 10)[np.arange(40), scores.argmax(axis=1)]
    assert hits.mean() > 0.8


def test_graph_scores_like_its_network_for_any_number_of_candidates() -> None:
    torch.manual_seed(0)
    network = ranker_network.RankerNetwork(3)
    network.fit_scales(examples().features)
    session = open_session(score_graph(network, 3))
    network.eval()
    for n_rows in (1, 7):
        features = examples(1, n_rows).features
        with torch.no_grad():
            expected = network(torch.from_numpy(features)).numpy()
        assert np.allclose(session.run(None, {"features": features})[0], expected, atol=1e-5)


def test_required_network_is_in_the_bundle_and_round_trips(ranked: Bundle, shop: Shop, tmp_path: Path) -> None:
    assert ranked.policy.ranker is not None
    assert ranked.policy.ranker.model == "mlp"
    loaded = bundles.load(tmp_path / bundles.write(ranked, tmp_path, STARTED).id)
    for first, second in zip(lists(ranked, shop), lists(loaded, shop), strict=True):
        assert (first.slots, first.inputs[RANKER]) == (second.slots, second.inputs[RANKER])


def test_lists_of_a_network_in_a_batch_equal_those_of_single_queries_and_of_evaluation(
    ranked: Bundle, shop: Shop
) -> None:
    batch = lists(ranked, shop)
    catalog = Catalog.from_table(ranked.items.ids.ids, ranked.items.attributes)
    recommender = Recommender(ranked, catalog)
    users = shop.data.user_ids[:6]
    for user, expected in zip(users, batch, strict=True):
        states = shop.past.states([user], [10**9])
        assert recommender.recommend(states, [Query(user_id=user, now=ranked.cut)])[0] == expected
    evaluated = ListRecommender(ranked, catalog, "home", 10)
    items = evaluated.recommend(shop.past.states(users, [10**9] * 6), np.full(6, ranked.cut)).items
    assert evaluated.ids(items) == [answer.items for answer in batch]


def test_refit_keeps_the_kind_of_ranker(ranked: Bundle, shop: Shop) -> None:
    again = ranker.refit_trees(ranked, shop.bundle, shop.config, shop.data, shop.tables, shop.past)
    assert again.policy.ranker is not None
    assert again.policy.ranker.model == "mlp"
    assert again.graphs[RANKER_GRAPH] != ranked.graphs[RANKER_GRAPH]


@pytest.mark.parametrize(("mlp", "kept"), [(0.9, "mlp"), (0.5, "gbdt"), (0.4, "gbdt")])
def test_auto_keeps_the_network_only_if_it_is_better_than_the_trees(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, mlp: float, kept: str
) -> None:
    def judge(bundle: Bundle, *_: object) -> np.ndarray:
        spec = bundle.policy.ranker
        return np.full(50, 0.2 if spec is None else {"gbdt": 0.5, "mlp": mlp}[spec.model])

    monkeypatch.setattr(ranker, "MIN_NETWORK_MOMENTS", 2)
    monkeypatch.setattr(ranker, "has_network", lambda _: True)
    monkeypatch.setattr(ranker, "ndcg", judge)
    choice = shop.choose("auto")
    assert choice.bundle.policy.ranker is not None
    assert choice.bundle.policy.ranker.model == kept
    assert choice.to_json()["model"] == kept
    assert f"mlp has {mlp:.4f}" in choice.sentence


@pytest.mark.parametrize(("moments", "has_network"), [(10_000, True), (2, False)])
def test_auto_with_few_moments_or_without_a_network_tries_trees_only(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, moments: int, has_network: bool
) -> None:
    monkeypatch.setattr(ranker, "MIN_NETWORK_MOMENTS", moments)
    monkeypatch.setattr(ranker, "has_network", lambda _: has_network)
    monkeypatch.setattr(ranker, "ndcg", lambda bundle, *_: np.full(50, 0.2 + 0.1 * (bundle.policy.ranker is not None)))
    choice = shop.choose("auto")
    assert choice.to_json()["model"] == "gbdt"
    assert "mlp" not in choice.sentence


def test_network_without_torch_is_left_out_or_an_error(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker, "missing_packages", lambda: ["torch"])
    monkeypatch.setattr(ranker, "MIN_NETWORK_MOMENTS", 2)
    monkeypatch.setattr(ranker, "has_network", lambda _: True)
    assert "mlp" not in shop.choose("auto").sentence
    with pytest.raises(UserError, match=r"torch is not installed; pip install \"recloop\[train\]\""):
        shop.choose("mlp")


def test_network_with_too_few_moments_raises(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 10_000)
    with pytest.raises(UserError, match="10000 are needed"):
        shop.choose("mlp")


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (Examples(np.zeros((4, 2), np.float32), np.ones(4, np.int8), np.array([4]), 4, 4), "one class"),
        (Examples(np.zeros((0, 2), np.float32), np.zeros(0, np.int8), np.zeros(0, np.int64), 0, 0), "one class"),
        (replace(examples(2), features=np.full((20, 3), np.nan, np.float32)), "finite features"),
    ],
)
def test_examples_that_cannot_teach_raise(bad: Examples, error: str) -> None:
    with pytest.raises(UserError, match=error):
        ranker_network.fit_network(bad, 0)


def test_loss_that_is_not_finite_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranker_network, "LEARNING_RATE", 1e30)
    with pytest.raises(UserError, match=r"it is (nan|inf) at step"):
        ranker_network.fit_network(examples(), 0)


def test_network_without_its_source_or_with_trees_in_its_place_is_refused(
    ranked: Bundle, shop: Shop, tmp_path: Path
) -> None:
    scorers = {name: scorer for name, scorer in ranked.scorers.items() if name != "neighbours"}
    catalog = Catalog.from_table(ranked.items.ids.ids, ranked.items.attributes)
    with pytest.raises(BundleError, match="neighbours"):
        Recommender(replace(ranked, manifest=replace(ranked.manifest, scorers=scorers)), catalog)
    trees = shop.choose("gbdt").bundle.graphs[RANKER_GRAPH]
    written = bundles.write(replace(ranked, graphs={RANKER_GRAPH: trees}), tmp_path, STARTED)
    with pytest.raises(BundleError, match="operators of the standard domain"):
        bundles.load(tmp_path / written.id)
