"""The choice of fusion weights: the regression, held-out moments and the comparison with the best source."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from recloop.evaluation import metrics
from recloop.recommend.fusion import fuse
from recloop.recommend.ranker import candidates_of
from recloop.recommend.top_k import TopK
from recloop.training import fusion_weights
from recloop.training.fusion_weights import FusionChoice, fit_weights, fusion_or_single


def top_k(lists: np.ndarray) -> TopK:
    return TopK(lists, np.zeros(lists.shape, np.float32))


def choice(recalled: Mapping[str, np.ndarray], targets: np.ndarray, offsets: np.ndarray) -> FusionChoice:
    return fusion_or_single({name: top_k(lists) for name, lists in recalled.items()}, targets, offsets, seed=0)


def random_lists(seed: int, queries: int, items: int, width: int) -> tuple[dict[str, TopK], np.ndarray, np.ndarray]:
    """Lists of three sources that end early, and 0 to 2 targets for each query."""
    random = np.random.default_rng(seed)
    recalled = {}
    for name in ("history", "neighbours", "popular"):
        lists = np.stack([random.permutation(items)[:width] + 1 for _ in range(queries)])
        lists[np.arange(width) >= random.integers(0, width + 1, queries)[:, None]] = 0
        recalled[name] = top_k(lists)
    sizes = random.integers(0, 3, queries)
    targets = np.concatenate([random.permutation(items + 1)[:size] for size in sizes])
    return recalled, targets, np.concatenate([[0], np.cumsum(sizes)])


def loss(
    recalled: Mapping[str, TopK], targets: np.ndarray, offsets: np.ndarray, weights: np.ndarray, constant: float
) -> float:
    """Mean loss over the queries with a recalled target, by its definition."""
    losses = []
    for q in range(len(offsets) - 1):
        scores: dict[int, float] = {}
        for weight, top in zip(weights.tolist(), recalled.values(), strict=True):
            for rank, item in enumerate(top.items[q].tolist(), start=1):
                if item:
                    scores[item] = scores.get(item, 0.0) + weight * (constant + 1) / (constant + rank)
        wanted = [scores[item] for item in targets[offsets[q] : offsets[q + 1]].tolist() if item in scores]
        if wanted:
            losses.append(math.log(sum(map(math.exp, scores.values()))) - sum(wanted) / len(wanted))
    return sum(losses) / len(losses) + fusion_weights.L2 / 2 * float(weights @ weights)


@pytest.mark.parametrize("constant", [1, 60])
def test_fit_weights_minimizes_the_listwise_loss(constant: int) -> None:
    recalled, targets, offsets = random_lists(seed=3, queries=60, items=12, width=8)
    candidates = candidates_of(recalled, dict.fromkeys(recalled, 8), slice(0, 60))
    fitted = fit_weights(candidates, candidates.are_targets(targets, offsets), constant)
    least = loss(recalled, targets, offsets, fitted, constant)
    assert (fitted >= 0).all()
    for source in range(3):
        for step in (-0.1, 0.1):
            other = fitted.copy()
            other[source] = max(0.0, other[source] + step)
            assert loss(recalled, targets, offsets, other, constant) >= least - 1e-6


def test_fit_weights_without_a_recalled_target_returns_zeros() -> None:
    recalled, targets, offsets = random_lists(seed=0, queries=5, items=9, width=4)
    candidates = candidates_of(recalled, dict.fromkeys(recalled, 4), slice(0, 5))
    assert fit_weights(candidates, candidates.are_targets(targets * 0, offsets), 5).tolist() == [0, 0, 0]


def test_fusion_with_a_certain_gain_is_kept() -> None:
    """Each source finds another half of the targets, so the fusion is better."""
    queries = 60
    first, second = np.tile([1, 9], (queries, 1)), np.tile([2, 8], (queries, 1))
    targets, offsets = np.tile([1, 2], queries), np.arange(0, 2 * queries + 1, 2)
    chosen = choice({"history": first, "popular": second}, targets, offsets)
    assert chosen.gain is not None
    assert chosen.gain.low > 0
    assert chosen.weights == chosen.best
    assert all(chosen.weights.values())


def test_fusion_without_a_certain_gain_is_replaced_by_the_best_source() -> None:
    """The other source is better for three of 60 users, so no gain is certain."""
    queries = 60
    history, popular = np.tile([1, 9], (queries, 1)), np.tile([3, 4], (queries, 1))
    history[:3], popular[:3] = [7, 9], [1, 3]
    targets, offsets = np.ones(queries, dtype=np.int64), np.arange(queries + 1)
    chosen = choice({"history": history, "popular": popular}, targets, offsets)
    assert chosen.gain is None or chosen.gain.low <= 0
    assert chosen.weights == {"history": 1.0, "popular": 0.0}
    assert chosen.ndcg == pytest.approx(57 / 60)
    assert chosen.single == "history"


def test_fusion_of_equal_sources_is_the_first_of_them() -> None:
    same = np.array([[5], [6]])
    chosen = choice(dict.fromkeys(("popular", "neighbours", "history"), same), np.array([5, 6]), np.array([0, 1, 2]))
    assert chosen.weights == {"history": 1.0, "neighbours": 0.0, "popular": 0.0}


@pytest.mark.parametrize("queries", [0, 1, 3])
def test_fusion_without_targets_gives_equal_weights(queries: int) -> None:
    none = np.zeros(0, dtype=np.int64)
    lists = np.ones((queries, 3), dtype=np.int32)
    chosen = choice({"popular": lists, "history": lists}, none, np.zeros(queries + 1, dtype=np.int64))
    assert chosen.weights == {"history": 1.0, "popular": 1.0}
    assert chosen.gain is None
    assert np.isnan(chosen.ndcg)


def test_fusion_of_one_query_is_its_best_source() -> None:
    chosen = choice({"history": np.array([[2, 1]]), "popular": np.array([[1, 2]])}, np.array([1]), np.array([0, 1]))
    assert chosen.weights == {"history": 0.0, "popular": 1.0}


def test_fusion_has_the_constant_with_the_best_held_out_ndcg() -> None:
    """With constant 60 the first items of a weak source push down a strong one."""
    queries, width = 200, 30
    random = np.random.default_rng(0)
    strong = np.tile(np.arange(1, width + 1), (queries, 1))
    weak = np.stack([random.permutation(np.arange(1, 2 * width + 1))[:width] for _ in range(queries)])
    targets = np.where(random.random(queries) < 0.3, weak[:, 0], 1)
    offsets = np.arange(queries + 1)
    chosen = choice({"history": strong, "popular": weak}, targets, offsets)
    assert chosen.constant < 60
    assert chosen.weights == chosen.best
    assert chosen.gain is not None
    assert chosen.ndcg == pytest.approx(chosen.alone["history"] + chosen.gain.value)
    lists = {"history": top_k(strong), "popular": top_k(weak)}
    served = fuse(lists, chosen.weights, 10, chosen.constant).items
    ranked = metrics.ranking(served, targets, offsets, 10)["NDCG"].mean()
    assert ranked == pytest.approx(chosen.ndcg, abs=0.02), "serving ranks as the held-out lists do"


def test_fusion_of_noise_is_not_kept() -> None:
    """Weights fitted on the moments that judge them would seem to gain."""
    kept = 0
    for seed in range(6):
        recalled, targets, offsets = random_lists(seed, queries=80, items=60, width=20)
        chosen = fusion_or_single(recalled, targets, offsets, seed=0)
        kept += sum(weight > 0 for weight in chosen.weights.values()) > 1
    assert kept <= 1


def test_fusion_weights_are_fitted_on_the_sample_alone() -> None:
    """Outside the sample the second source is better; it gets no weight."""
    queries = 100
    first, second = np.tile([1, 9, 8], (queries, 1)), np.tile([9, 7, 8], (queries, 1))
    targets, offsets = np.where(np.arange(queries) < 50, 1, 7), np.arange(queries + 1)
    recalled = {"history": top_k(first), "popular": top_k(second)}
    chosen = fusion_or_single(recalled, targets, offsets, seed=0, sample=np.arange(50))
    assert chosen.best["history"] == 1.0
    assert chosen.best["popular"] == 0.0
