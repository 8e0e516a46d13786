"""Vector search: equal to a full float32 sort, with masks, bans, ties and any scale."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloop.errors import BundleError
from recloop.recommend import search
from recloop.recommend.filters import CandidateMask
from recloop.recommend.search import ScanTable, VectorSearch
from recloop.recommend.table_mask import TableMask


def allowed(mask: np.ndarray, banned: list[int]) -> CandidateMask:
    return CandidateMask(TableMask.of(mask), [np.array(sorted(banned), dtype=np.int32)], [frozenset()], "")


def full_sort(table: np.ndarray, user: np.ndarray, mask: np.ndarray, banned: list[int], depth: int) -> np.ndarray:
    """Allowed items by the float32 dot product of each item alone, ties by item_ix."""
    items = np.setdiff1d(np.flatnonzero(mask), banned)
    return items[np.lexsort((items, -np.vecdot(table[items], user)))][:depth]


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 300), st.sampled_from([0, 20, 10_000]), st.booleans()
)
def test_search_equals_a_full_sort(seed: int, depth: int, n_items: int, min_scan: int, is_small: bool) -> None:
    generator = np.random.default_rng(seed)
    table = generator.integers(-2, 3, (n_items + 1, 3)).astype(np.float32)  # integers give many exact ties
    user = generator.integers(-2, 3, 3).astype(np.float32)
    mask = generator.random(n_items + 1) < 0.7
    mask[0] = False
    banned = generator.choice(n_items + 1, min(n_items, 4), replace=False).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "MIN_SCAN_ITEMS", min_scan)
        patch.setattr(search, "MAX_RESCORED", 7)
        patch.setattr(search, "MAX_FLOAT_SCAN", 10_000 if is_small else 0)
        items, scores = VectorSearch(ScanTable.build(table)).best(user, allowed(mask, banned), 0, depth)
    assert items.tolist() == full_sort(table, user, mask, banned, depth).tolist()
    assert np.array_equal(scores, np.vecdot(table[items], user))


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("max_float_scan", [0, 10_000])
def test_search_is_exact_for_columns_and_items_of_any_scale(
    spread: float, max_float_scan: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MAX_FLOAT_SCAN", max_float_scan)
    generator = np.random.default_rng(5)
    table = generator.standard_normal((9_001, 16)).astype(np.float32)
    table *= np.exp(spread * generator.standard_normal(16)).astype(np.float32)
    table *= np.exp(spread / 3 * generator.standard_normal((9_001, 1))).astype(np.float32)
    table[4_000:4_300] = table[17]  # copies tie at the border
    mask = generator.random(9_001) < 0.5
    mask[0] = False
    finder = VectorSearch(ScanTable.build(table))
    for user in generator.standard_normal((20, 16)).astype(np.float32):
        items, _ = finder.best(user, allowed(mask, [17, 4_000]), 0, 200)
        assert items.tolist() == full_sort(table, user, mask, [17, 4_000], 200).tolist()


@pytest.mark.parametrize(("n_items", "share"), [(9_000, 0.5), (20_000, 0.7), (20_000, 0.06), (20_000, 0.01)])
def test_search_by_cosine_equals_a_full_sort(n_items: int, share: float) -> None:
    """Small tables, a scan of all rows, of a part, and few items."""
    generator = np.random.default_rng(8)
    table = generator.standard_normal((n_items + 1, 8)).astype(np.float32)
    table *= np.exp(2 * generator.standard_normal((n_items + 1, 1))).astype(np.float32)
    table[40:400] = table[17] * np.float32(2)  # equal cosines
    table[0] = table[5] = 0
    mask = generator.random(n_items + 1) < share
    mask[[0, 17]] = [False, True]
    mask[40:400] = True
    factors = (1 / np.maximum(np.linalg.norm(table, axis=1), 1e-12)).astype(np.float32)
    finder = VectorSearch(ScanTable.build(table).scaled(factors))
    for user in [*generator.standard_normal((5, 8)).astype(np.float32), table[17]]:
        items, scores = finder.best(user, allowed(mask, [41]), 0, 100)
        cosines = np.vecdot(table, user) * factors
        cosines[~mask] = cosines[41] = -np.inf
        assert items.tolist() == np.lexsort((np.arange(n_items + 1), -cosines))[:100].tolist()
        assert np.array_equal(scores, cosines[items])


@pytest.mark.parametrize("n_allowed", [1_025, 1_250])
def test_search_of_a_small_part_of_the_table_equals_a_full_sort(n_allowed: int) -> None:
    generator = np.random.default_rng(7)
    table = generator.integers(-2, 3, (20_001, 8)).astype(np.float32)  # integers give many exact ties
    mask = np.zeros(20_001, dtype=bool)
    mask[generator.choice(np.arange(1, 20_001), n_allowed, replace=False)] = True
    inside, outside = np.flatnonzero(mask), np.flatnonzero(~mask)
    banned = [int(outside[1]), int(inside[0]), int(inside[-1]), 20_000]
    finder = VectorSearch(ScanTable.build(table))
    for user in generator.standard_normal((5, 8)).astype(np.float32):
        items, scores = finder.best(user, allowed(mask, banned), 0, 50)
        assert items.tolist() == full_sort(table, user, mask, banned, 50).tolist()
        assert np.array_equal(scores, np.vecdot(table[items], user))
    assert finder._masked(TableMask.of(mask)).scan is not finder._whole


def test_scan_scores_few_of_many_items_in_float32() -> None:
    generator = np.random.default_rng(6)
    table = generator.standard_normal((20_000, 64)).astype(np.float32)
    finder = VectorSearch(ScanTable.build(table))
    masked = finder._masked(TableMask.of(np.ones(20_000, dtype=bool)))
    candidates = finder._candidates(table[3], masked, np.zeros(0, dtype=np.int32), 200)
    assert 200 <= len(candidates) < 2_000


def test_scan_has_the_largest_sums_without_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_FLOAT_SCAN", 0)
    table = np.ones((2_000, 256), dtype=np.float32)
    finder = VectorSearch(ScanTable.build(table))
    items, scores = finder.best(np.ones(256, dtype=np.float32), allowed(np.arange(2_000) >= 900, []), 0, 3)
    assert (items.tolist(), scores.tolist()) == ([900, 901, 902], [256.0] * 3)
    assert finder._whole._sums[0, 900] == 127 * (63 + 64) * 256


def test_search_with_a_zero_vector_returns_the_first_items() -> None:
    finder = VectorSearch(ScanTable.build(np.ones((3_000, 2), dtype=np.float32)))
    items, _ = finder.best(np.zeros(2, dtype=np.float32), allowed(np.arange(3_000) > 0, [1]), 0, 2)
    assert items.tolist() == [2, 3]


def test_search_without_an_allowed_item_is_empty() -> None:
    items, scores = VectorSearch(ScanTable.build(np.ones((3, 2), dtype=np.float32))).best(
        np.ones(2, dtype=np.float32), allowed(np.zeros(3, dtype=bool), []), 0, 5
    )
    assert len(items) == len(scores) == 0


def test_build_with_nan_raises() -> None:
    with pytest.raises(BundleError, match="item_vectors"):
        ScanTable.build(np.array([[0.0], [np.nan]], dtype=np.float32))


@pytest.mark.parametrize("n_items", [3, 200, 2_000])
@pytest.mark.parametrize("share", [0.02, 0.7, 1.0])
@pytest.mark.parametrize("copied_bytes", [0, search.MAX_COPIED_BYTES])
def test_search_of_a_batch_equals_that_of_each_query(
    n_items: int, share: float, copied_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MAX_COPIED_BYTES", copied_bytes)
    monkeypatch.setattr(search, "MIN_SCAN_ITEMS", 20)
    monkeypatch.setattr(search, "MAX_FLOAT_SCAN", 0)
    monkeypatch.setattr(search, "PRODUCT_BYTES", 2 * 4 * n_items)  # blocks of two queries
    generator = np.random.default_rng(n_items)
    table = generator.integers(-2, 3, (n_items + 1, 8)).astype(np.float32)  # many exact ties
    table[n_items // 2 :] += generator.standard_normal((n_items + 1 - n_items // 2, 8)).astype(np.float32)
    users = generator.standard_normal((5, 8)).astype(np.float32)
    mask = generator.random(n_items + 1) < share
    mask[0] = False
    banned = [np.sort(generator.choice(n_items + 1, b % n_items, replace=False)).astype(np.int32) for b in range(7)]
    several = CandidateMask(TableMask.of(mask), banned, [frozenset()] * 7, "")
    finder = VectorSearch(ScanTable.build(table))
    owners = np.array([0, 1, 3, 5, 6])
    for user, b, (items, scores) in zip(users, owners, finder.best_each(users, owners, several, 10), strict=True):
        one_items, one_scores = finder.best(user, several, int(b), 10)
        assert items.tolist() == one_items.tolist()
        assert np.array_equal(scores, one_scores)
