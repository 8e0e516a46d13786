"""The choice of fusion weights: against an exhaustive search, ties, and time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from recloop.evaluation import metrics
from recloop.recommend.fusion import fuse
from recloop.recommend.top_k import TopK
from recloop.records import FUSED_SOURCES
from recloop.training import fusion_weights


def fused(lists: list[list[int]], weights: tuple[float, ...], k: int) -> list[int]:
    """Weighted reciprocal rank fusion of one query; float32 ties by item."""
    score: dict[int, float] = {}
    for weight, one in zip(weights, lists, strict=True):
        for rank, item in enumerate(one, 1):
            if item and weight:
                score[item] = score.get(item, 0.0) + weight * (1.0 / (60 + rank))
    return sorted(score, key=lambda item: (-np.float32(score[item]), item))[:k]


def random_lists(
    seed: int, queries: int, items: int, width: int, sources: int
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    recalled = {}
    for name in FUSED_SOURCES[:sources]:
        lists = np.stack([random.permutation(items)[:width] + 1 for _ in range(queries)])
        ends = random.integers(0, width + 1, queries)
        lists[np.arange(width) >= ends[:, None]] = 0  # lists end early, some are empty
        recalled[name] = lists
    sizes = random.integers(0, 5, queries)
    targets = [random.permutation(items + 1)[:n] for n in sizes]
    return recalled, np.concatenate(targets), np.concatenate([[0], np.cumsum(sizes)])


@pytest.mark.parametrize("seed", range(4))
def test_choose_mix_equals_an_exhaustive_search(seed: int) -> None:
    recalled, targets, offsets = random_lists(seed, queries=40, items=30, width=12, sources=3)
    best: tuple[float, int, tuple[float, ...]] | None = None
    with_targets = np.diff(offsets) > 0
    for weights in itertools.product((0, 0.25, 0.5, 1), repeat=3):
        if not any(weights):
            continue
        made = [fused([one[q].tolist() for one in recalled.values()], weights, 10) for q in range(40)]
        lists = np.array([one + [0] * (10 - len(one)) for one in made])
        value = float(metrics.ranking(lists, targets, offsets, 10)["NDCG"][with_targets].mean())
        if best is None or value > best[0] + 1e-12:
            best = (value, 0, weights)
    assert best is not None
    chosen, value = fusion_weights.choose_weights(recalled, targets, offsets)
    assert value == pytest.approx(best[0], abs=1e-12)
    scaled = tuple(weight / max(best[2]) for weight in best[2])
    if all(weight in fusion_weights.WEIGHT_GRID for weight in scaled):
        made = [fused([one[q].tolist() for one in recalled.values()], tuple(chosen.values()), 10) for q in range(40)]
        again = np.array([one + [0] * (10 - len(one)) for one in made])
        assert metrics.ranking(again, targets, offsets, 10)["NDCG"][with_targets].mean() == pytest.approx(value)


def test_choose_mix_value_equals_that_of_fuse() -> None:
    recalled, targets, offsets = random_lists(7, queries=200, items=60, width=30, sources=4)
    weights, value = fusion_weights.choose_weights(recalled, targets, offsets)
    held = {name: TopK(lists, np.zeros(lists.shape, np.float32)) for name, lists in recalled.items()}
    lists = fuse(held, weights, 10).items
    assert np.nanmean(metrics.ranking(lists, targets, offsets, 10)["NDCG"]) == pytest.approx(value, abs=1e-12)


def test_choose_mix_with_one_good_source_chooses_it_alone() -> None:
    targets, offsets = np.arange(1, 21), np.arange(21)
    lists = {"model": np.full((20, 3), 99), "popular": targets[:, None]}
    assert fusion_weights.choose_weights(lists, targets, offsets) == ({"model": 0.0, "popular": 1.0}, 1.0)


def test_choose_mix_breaks_ties_by_fewer_sources_then_order() -> None:
    targets, offsets = np.array([5, 6]), np.array([0, 1, 2])
    same = np.array([[5], [6]])
    chosen, value = fusion_weights.choose_weights(
        dict.fromkeys(("popular", "neighbours", "history"), same), targets, offsets
    )
    assert list(chosen) == ["history", "neighbours", "popular"]  # the order of FUSED_SOURCES, not that of the input
    assert chosen == {"history": 1.0, "neighbours": 0.0, "popular": 0.0}
    assert value == 1.0


def test_choose_mix_with_two_complementary_sources_keeps_both() -> None:
    targets, offsets = np.array([1, 2, 1, 2]), np.array([0, 2, 4])
    lists = {"model": np.array([[1], [1]]), "history": np.array([[2], [2]])}
    chosen, value = fusion_weights.choose_weights(lists, targets, offsets)
    assert chosen == {"model": 1.0, "history": 1.0}
    assert value == pytest.approx(1.0)


def test_choose_mix_without_validation_moments_gives_equal_weights() -> None:
    none = np.zeros(0, dtype=np.int64)
    lists = {"history": np.zeros((0, 200), dtype=np.int32), "popular": np.zeros((0, 200), dtype=np.int32)}
    chosen, value = fusion_weights.choose_weights(lists, none, np.zeros(1, dtype=np.int64))
    assert chosen == {"history": 1.0, "popular": 1.0}
    assert np.isnan(value)
    assert fusion_weights.choose_weights({"popular": np.array([[1]])}, none, np.zeros(2, dtype=np.int64))[0] == {
        "popular": 1.0
    }


def test_grid_contains_each_mix_once() -> None:
    points = fusion_weights.grid(4)
    assert len(points) == 4**4 - 3**4
    assert (points.max(axis=1) == 1).all()
    assert len(np.unique(points, axis=0)) == len(points)
    assert points[:4].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert points[4].tolist() == [1, 1, 0, 0]
    assert points[-1].tolist() == [0.25, 0.25, 0.25, 1]


@pytest.mark.slow
def test_choose_mix_of_1024_moments_and_four_sources_ends_in_time() -> None:
    """It takes ten seconds on an idle machine; the suite has a time limit."""
    recalled, targets, offsets = random_lists(0, queries=1_024, items=3_000, width=200, sources=4)
    fusion_weights.choose_weights(recalled, targets, offsets)


def test_mix_or_single_with_a_certain_gain_keeps_the_mix() -> None:
    """Each source finds another half of the targets, so the mix is better."""
    queries = 60
    first = np.tile([1, 9], (queries, 1))
    second = np.tile([2, 8], (queries, 1))
    targets, offsets = np.tile([1, 2], queries), np.arange(0, 2 * queries + 1, 2)
    found = fusion_weights.fusion_or_single({"history": first, "popular": second}, targets, offsets, seed=0)
    assert found.gain is not None
    assert found.gain.low > 0
    assert found.weights == found.best
    assert all(found.weights.values())


def test_mix_or_single_without_a_certain_gain_keeps_one_source() -> None:
    """The mix is better for two of 60 users, so the gain is not certain."""
    queries = 60
    history = np.tile([1, 9], (queries, 1))
    history[:2] = [7, 9]
    popular = np.tile([3, 4], (queries, 1))
    popular[:2] = [1, 3]
    targets, offsets = np.ones(queries, dtype=np.int64), np.arange(queries + 1)
    found = fusion_weights.fusion_or_single({"history": history, "popular": popular}, targets, offsets, seed=0)
    assert sum(weight > 0 for weight in found.best.values()) == 2
    assert found.gain is not None
    assert found.gain.low <= 0 < found.gain.value
    assert found.weights == {"history": 1.0, "popular": 0.0}
    assert found.ndcg == pytest.approx(58 / 60)


def test_mix_or_single_without_queries_gives_equal_weights() -> None:
    none = np.zeros(0, dtype=np.int64)
    found = fusion_weights.fusion_or_single({"history": np.zeros((0, 3), int)}, none, np.zeros(1, int), seed=0)
    assert found.weights == {"history": 1.0}
    assert found.gain is None


def test_mix_or_single_chooses_the_constant_with_the_best_ndcg() -> None:
    """With constant 60 the first items of a weak source push down a strong one."""
    queries, width = 80, 30
    rng = np.random.default_rng(0)
    strong = np.tile(np.arange(1, width + 1), (queries, 1))
    weak = np.stack([rng.permutation(np.arange(1, 2 * width + 1))[:width] for _ in range(queries)])
    targets = np.where(np.arange(queries) % 4 == 0, weak[:, 0], 1)
    found = fusion_weights.fusion_or_single(
        {"history": strong, "popular": weak}, targets, np.arange(queries + 1), seed=0
    )
    assert found.constant < 60
    assert found.weights == found.best
    values = {c: fusion_weights.choose_weights({"history": strong, "popular": weak}, targets, np.arange(queries + 1), 10, c)[1]
              for c in fusion_weights.FUSION_CONSTANTS}  # fmt: skip
    assert found.ndcg == max(values.values()) > values[60]
    lists = {name: TopK(one, np.zeros(one.shape, np.float32)) for name, one in (("history", strong), ("popular", weak))}
    served = fuse(lists, found.weights, 10, found.constant).items
    ranked = metrics.ranking(served, targets, np.arange(queries + 1), 10)["NDCG"].mean()
    assert ranked == pytest.approx(found.ndcg), "serving ranks as the chosen weights do"
