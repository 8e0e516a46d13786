"""Metrics: by hand, against ir-measures, and with a constant scorer that gives exactly K/N."""

from __future__ import annotations

from math import log, log2

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloop.evaluation import metrics


def flat(*targets: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Targets of several queries as one array and its offsets."""
    return np.array([i for one in targets for i in one], dtype=np.int64), np.cumsum([0, *map(len, targets)])


# ---- ranking --------------------------------------------------------------------------------------------------------


def test_ranking_by_hand() -> None:
    lists = np.array([[7, 3, 9, 0], [1, 2, 3, 4], [5, 6, 7, 8]])
    targets, offsets = flat([3, 9, 11], [4], [1])
    got = metrics.ranking(lists, targets, offsets, 3)
    ideal = 1 + 1 / log2(3) + 1 / log2(4)
    assert got["HR"] == pytest.approx([1, 0, 0])
    assert got["Recall"] == pytest.approx([2 / 3, 0, 0])
    assert got["MRR"] == pytest.approx([1 / 2, 0, 0])
    assert got["NDCG"] == pytest.approx([(1 / log2(3) + 1 / log2(4)) / ideal, 0, 0])
    at4 = metrics.ranking(lists, targets, offsets, 4)
    assert at4["NDCG"][1] == pytest.approx(1 / log2(5))
    assert at4["MRR"][1] == pytest.approx(1 / 4)


def test_ndcg_ideal_is_limited_by_k_and_by_the_targets() -> None:
    targets, offsets = flat([1, 2, 3, 4, 5])
    assert metrics.ranking(np.array([[1, 2]]), targets, offsets, 2)["NDCG"] == pytest.approx([1.0])
    assert metrics.ranking(np.array([[1, 2, 9, 8]]), *flat([2, 1]), 4)["NDCG"] == pytest.approx([1.0])


def test_ranking_keeps_unreachable_targets_in_the_denominators() -> None:
    targets, offsets = flat([3, 0, 0])
    got = metrics.ranking(np.array([[3, 4]]), targets, offsets, 2)
    assert got["Recall"] == pytest.approx([1 / 3])
    assert got["NDCG"] == pytest.approx([1 / (1 + 1 / log2(3))])
    warm = metrics.ranking(np.array([[3, 4]]), *metrics.keep_targets(targets, offsets, targets > 0), 2)
    assert warm["Recall"] == pytest.approx([1.0])
    assert warm["NDCG"] == pytest.approx([1.0])


def test_ranking_of_padding_is_0_and_without_targets_is_nan() -> None:
    got = metrics.ranking(np.array([[0, 0], [1, 2]]), *flat([0], []), 2)
    for name in metrics.RANKING:
        assert got[name][0] == 0.0
        assert np.isnan(got[name][1])


def test_ranking_of_short_lists_divides_by_the_targets() -> None:
    got = metrics.ranking(np.array([[4]]), *flat([4, 5]), 10)
    assert got["Recall"] == pytest.approx([0.5])
    assert got["NDCG"] == pytest.approx([1 / (1 + 1 / log2(3))])
    none = metrics.ranking(np.zeros((1, 0), dtype=np.int64), *flat([4]), 10)
    assert [none[name][0] for name in metrics.RANKING] == [0, 0, 0, 0]


def test_keep_targets_updates_the_offsets() -> None:
    targets, offsets = flat([1, 2], [], [3, 4, 5])
    kept, moved = metrics.keep_targets(targets, offsets, np.array([False, True, True, False, True]))
    assert kept.tolist() == [2, 3, 5]
    assert moved.tolist() == [0, 1, 1, 3]


def test_ranking_equals_ir_measures_on_distinct_scores() -> None:
    random = np.random.default_rng(3)
    n_queries, n_items, k = 60, 40, 10
    lists = np.stack([random.permutation(n_items)[:k] + 1 for _ in range(n_queries)])
    targets = [sorted((random.permutation(n_items)[: random.integers(1, 15)] + 1).tolist()) for _ in range(n_queries)]
    qrels = [ir_measures.Qrel(f"q{q}", str(i), 1) for q, one in enumerate(targets) for i in one]
    run = [
        ir_measures.ScoredDoc(f"q{q}", str(i), float(k - r)) for q, one in enumerate(lists) for r, i in enumerate(one)
    ]
    names = {"Recall": ir_measures.R @ k, "NDCG": ir_measures.nDCG @ k, "MRR": ir_measures.RR @ k}
    names["HR"] = ir_measures.Success @ k
    got = metrics.ranking(lists, *flat(*targets), k)
    for name, measure in names.items():
        theirs = {one.query_id: one.value for one in ir_measures.iter_calc([measure], qrels, run)}
        assert len(theirs) == n_queries
        np.testing.assert_allclose(got[name], [theirs[f"q{q}"] for q in range(n_queries)], atol=1e-12)


# ---- one target, ties in expectation --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_one_target_expectation_of_a_constant_scorer_is_k_over_n(k: int) -> None:
    got = metrics.one_target_expectation(np.zeros(20), np.full(20, 20), k)
    assert np.abs(got["HR"] - k / 20).max() < 1e-12
    assert np.abs(got["NDCG"] - sum(1 / log2(r + 1) for r in range(1, k + 1)) / 20).max() < 1e-12
    assert np.abs(got["MRR"] - sum(1 / r for r in range(1, k + 1)) / 20).max() < 1e-12


def test_one_target_expectation_by_hand() -> None:
    # Target tied with one other behind one better item, K = 2: second or third with probability 1/2 each.
    got = metrics.one_target_expectation(np.array([1, 0, 5, 1]), np.array([2, 1, 3, 3]), 2)
    assert got["HR"] == pytest.approx([1 / 2, 1, 0, 1 / 3])
    assert got["NDCG"] == pytest.approx([1 / log2(3) / 2, 1, 0, 1 / log2(3) / 3])
    assert got["MRR"] == pytest.approx([1 / 4, 1, 0, 1 / 6])


def test_one_target_expectation_is_the_mean_over_orders_of_ties() -> None:
    target, k = 2, 4  # two items above the target, three tied with it
    got = metrics.one_target_expectation(np.array([2]), np.array([3]), k)
    by_place = [
        metrics.ranking(np.array([[10, 11, *([12] * p), target, 13][:k]]), *flat([target]), k) for p in range(3)
    ]
    for name in metrics.RANKING:
        assert got[name][0] == pytest.approx(np.mean([one[name][0] for one in by_place]))


def test_one_target_expectation_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match="t >= 1"):
        metrics.one_target_expectation(np.array([0]), np.array([0]), 10)


# ---- health ---------------------------------------------------------------------------------------------------------


def test_entropy_by_hand() -> None:
    counts = np.array([2, 1, 1, 0])
    bits = 1.5 + 2 / (2 * 4 * log(2))
    assert metrics.entropy_bits(counts) == pytest.approx(bits)
    assert metrics.entropy(counts, 64) == pytest.approx(bits / 6)
    assert metrics.effective_items(bits) == pytest.approx(2**bits)
    assert metrics.entropy(np.array([9]), 64) == 0.0
    assert metrics.entropy(np.array([1, 1]), 2) == 1.0  # the correction exceeds 1 and is clipped
    assert metrics.entropy(np.array([3]), 1) == 0.0
    assert np.isnan(metrics.entropy(np.array([0, 0]), 5))


def test_coverage_and_gini_by_hand() -> None:
    counts = np.array([0, 3, 1])
    assert metrics.coverage(counts, 8) == pytest.approx(2 / 8)
    assert metrics.coverage(np.ones(9), 8) == 1.0
    assert np.isnan(metrics.coverage(np.zeros(3), 8))
    # N = 4, ascending 0 0 1 3: (2*3-5)*1 + (2*4-5)*3 = 10, over N n = 16
    assert metrics.gini(counts, 4) == pytest.approx(10 / 16)
    assert metrics.gini(np.array([5, 5, 5]), 3) == 0.0
    assert metrics.gini(np.array([7]), 10) == pytest.approx(0.9)


def test_tail_and_novelty_by_hand() -> None:
    counts, tail = np.array([6, 2, 2]), np.array([False, True, True])
    assert metrics.long_tail_share(counts, tail) == pytest.approx(0.4)
    assert np.isnan(metrics.long_tail_share(np.zeros(3), tail))
    reference = np.array([7, 1, 0])  # C = 8, N = 8
    assert metrics.novelty(counts, reference, 8) == pytest.approx((6 * 1 + 2 * 3 + 2 * 4) / 10)


def test_cold_coverage_by_hand() -> None:
    users = np.array([0, 0, 1, 2, 3])
    cold = np.array([True, True, True, False, True])
    covering = np.array([0.0, 0.5, 0.49, 1.0, 1.0])
    assert metrics.cold_coverage(users, cold, covering) == pytest.approx(2 / 3)
    assert np.isnan(metrics.cold_coverage(users, np.zeros(5, dtype=bool), covering))


def test_equal_n_removes_the_bias_of_sample_size() -> None:
    random = np.random.default_rng(0)
    arms = {"large": random.integers(0, 500, 4_000), "small": random.integers(0, 500, 100), "none": np.zeros(0, int)}

    def bits(counts: np.ndarray) -> float:
        return metrics.coverage(counts, 500)

    raw = {name: bits(np.bincount(slots)) for name, slots in arms.items() if len(slots)}
    equal = metrics.equal_n(arms, bits, seed=1)
    assert raw["large"] > 3 * raw["small"]
    assert equal["small"] == raw["small"]  # drawn completely
    assert equal["large"] == pytest.approx(equal["small"], rel=0.1)
    assert np.isnan(equal["none"])
    assert equal == pytest.approx(metrics.equal_n(arms, bits, seed=1), nan_ok=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40).filter(any), st.integers(0, 20))
def test_health_metrics_are_in_their_ranges(counts: list[int], more: int) -> None:
    shown = np.array(counts)
    n_items = len(counts) + more
    assert 0 <= metrics.entropy(shown, n_items) <= 1
    assert 0 < metrics.coverage(shown, n_items) <= 1
    assert -1e-12 <= metrics.gini(shown, n_items) < 1
    assert metrics.entropy_bits(shown) == pytest.approx(metrics.entropy_bits(shown[::-1]))


@given(st.lists(st.one_of(st.integers(0, 9), st.integers(0, 20_000)), min_size=1, max_size=60), st.integers(1, 90))
def test_concentration_of_repeated_counts_equals_that_of_all_counts(counts: list[int], n_items: int) -> None:
    slots = np.array(counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "MAX_TABLED_COUNT", 10_000)
        distinct, repeats = metrics.count_repeats(slots)
    assert (repeats > 0).all()
    assert (np.diff(distinct) > 0).all()
    assert np.array_equal(np.repeat(distinct, repeats), np.sort(slots[slots > 0]))
    assert metrics.entropy_bits(distinct, repeats) == pytest.approx(metrics.entropy_bits(slots), nan_ok=True)
    assert metrics.coverage(distinct, n_items, repeats) == pytest.approx(metrics.coverage(slots, n_items), nan_ok=True)
    assert metrics.gini(distinct, n_items, repeats) == pytest.approx(metrics.gini(slots, n_items), nan_ok=True)
