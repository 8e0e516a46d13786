"""Sources of counts against their plain definitions on random histories."""

from __future__ import annotations

import gc
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import scipy.sparse as sp

from recloop.bundle import Bundle
from recloop.features.buy_again import OwnItems
from recloop.features.encode import EncodedBatch, window
from recloop.features.state import StateBatch, offsets_of
from recloop.recommend import count_batches, count_sources, score_keys, sources
from recloop.recommend.count_sources import BuyAgainSource, HistorySource, NeighbourSource, PopularSource
from recloop.recommend.filters import CandidateMask
from recloop.recommend.search import ScanTable
from recloop.recommend.sources import EmbeddingSource, newest_window
from recloop.recommend.table_mask import TableMask
from recloop.recommend.top_k import Workspace, best_ranked
from recloop.records import DAY

N_ITEMS = 60
RECENT = (1.0, 0.6, 0.4)


def random_batch(generator: np.random.Generator, n_queries: int = 6) -> EncodedBatch:
    n_moments = generator.integers(0, 7, n_queries)
    n_items = generator.integers(1, 9, n_moments.sum())
    items = [generator.choice(N_ITEMS, n, replace=False).astype(np.int32) + 1 for n in n_items]
    stamps = [np.sort(generator.integers(0, 30 * DAY, n)) for n in n_moments]
    return EncodedBatch(
        states=StateBatch.empty([""] * n_queries),
        moment_offsets=offsets_of(n_moments),
        stamps=np.concatenate([np.zeros(0, dtype=np.int64), *stamps]),
        item_offsets=offsets_of(n_items),
        items=np.concatenate([np.zeros(0, dtype=np.int32), *items]),
        targets=generator.random(n_items.sum()) < 0.8,
        negative_offsets=np.zeros(n_queries + 1, dtype=np.int64),
        negatives=np.zeros(0, dtype=np.int32),
        context=np.zeros((n_queries, 0), dtype=np.int32),
        context_names=[],
        now=np.zeros(n_queries, dtype=np.int64),
    )


def one_query(encoded: EncodedBatch, b: int) -> EncodedBatch:
    """Batch of query b alone."""
    moments = slice(*encoded.moment_offsets[b : b + 2])
    offsets = encoded.item_offsets[moments.start : moments.stop + 1]
    rows = slice(offsets[0], offsets[-1])
    return replace(
        encoded, states=StateBatch.empty([""]), moment_offsets=encoded.moment_offsets[b : b + 2] - moments.start,
        stamps=encoded.stamps[moments], item_offsets=offsets - offsets[0], items=encoded.items[rows],
        targets=encoded.targets[rows],
    )  # fmt: skip


def random_filters(generator: np.random.Generator, n_queries: int = 6) -> CandidateMask:
    mask = generator.random(N_ITEMS + 1) < 0.7
    mask[0] = False
    banned = [np.sort(generator.choice(N_ITEMS, n, replace=False) + 1).astype(np.int32) for n in range(n_queries)]
    return CandidateMask(TableMask.of(mask), banned, [frozenset()] * n_queries, "")


def random_bundle(generator: np.random.Generator) -> Bundle:
    rows = sp.random_array((N_ITEMS + 1, N_ITEMS + 1), density=0.2, rng=generator, format="csr")
    arrays = {
        "popular": (generator.permutation(N_ITEMS) + 1).astype(np.int32),
        "neighbours.indptr": rows.indptr.astype(np.int64),
        "neighbours.ids": rows.indices.astype(np.int32),
        "neighbours.weights": np.round(rows.data, 1).astype(np.float32),  # ties
    }
    items = SimpleNamespace(ids=SimpleNamespace(serial=0, ids=[f"i{n}" for n in range(N_ITEMS)]))
    return cast(Bundle, SimpleNamespace(arrays=arrays, items=items, shared=lambda _, derive: derive()))


def ranking(scores: np.ndarray, allowed: CandidateMask, b: int, order: np.ndarray, depth: int) -> list[int]:
    """Allowed items with a score above 0, descending; ties in the order of the popular list."""
    shown = [ix for ix in order.tolist() if allowed.mask[ix] and ix not in allowed.banned[b] and scores[ix] > 0]
    return sorted(shown, key=lambda ix: -scores[ix])[:depth]


def listed(items: np.ndarray) -> list[int]:
    return items[: np.count_nonzero(items)].tolist()


@pytest.mark.parametrize("seed", range(8))
def test_neighbours_equal_the_product_with_the_stored_rows(seed: int) -> None:
    generator = np.random.default_rng(seed)
    encoded, allowed, bundle = random_batch(generator), random_filters(generator), random_bundle(generator)
    arrays = bundle.arrays
    rows = sp.csr_array((arrays["neighbours.weights"], arrays["neighbours.ids"], arrays["neighbours.indptr"])).toarray()
    top = NeighbourSource(bundle, "neighbours", RECENT, Workspace(N_ITEMS + 1)).best(encoded, allowed, 9)
    for b in range(len(encoded)):
        history = np.zeros(N_ITEMS + 1)
        for age, moment in enumerate(reversed(range(*encoded.moment_offsets[b : b + 2]))):
            if age < len(RECENT):
                history[encoded.items[encoded.item_offsets[moment] : encoded.item_offsets[moment + 1]]] += RECENT[age]
        scores = np.zeros(N_ITEMS + 1)
        for ix in np.flatnonzero(history):
            scores += history[ix] * rows[ix].astype(np.float64)
        wanted = ranking(scores.astype(np.float32), allowed, b, arrays["popular"], 9)
        assert listed(top.items[b]) == wanted
        assert np.array_equal(top.scores[b, : len(wanted)], scores.astype(np.float32)[wanted])


@pytest.mark.parametrize("seed", range(4))
def test_neighbours_without_recent_weights_equal_the_rows_of_the_distinct_items(seed: int) -> None:
    generator = np.random.default_rng(seed)
    encoded, allowed, bundle = random_batch(generator), random_filters(generator), random_bundle(generator)
    arrays = bundle.arrays
    for name in ("indptr", "ids", "weights"):
        arrays[f"mine.{name}"] = arrays[f"neighbours.{name}"]
    arrays["mine.weights"] = arrays["mine.weights"] - np.float32(0.3)  # EASE has negative weights
    rows = sp.csr_array((arrays["mine.weights"], arrays["mine.ids"], arrays["mine.indptr"])).toarray()
    source = NeighbourSource(bundle, "mine", None, Workspace(N_ITEMS + 1))
    top = source.best(encoded, allowed, 9)
    for b in range(len(encoded)):
        span = slice(encoded.row_offsets[b], encoded.row_offsets[b + 1])
        scores = np.zeros(N_ITEMS + 1)
        for ix in np.unique(encoded.items[span]):
            scores += rows[ix].astype(np.float64)
        wanted = ranking(scores.astype(np.float32), allowed, b, arrays["popular"], 9)
        assert listed(top.items[b]) == wanted
        items, values = source._ranked(one_query(encoded, b))  # those of a batch of one
        assert sorted(items.tolist()) == (np.flatnonzero(scores[1:].astype(np.float32) > 0) + 1).tolist()
        np.testing.assert_array_equal(values, scores.astype(np.float32)[items])


@pytest.mark.parametrize("half_life", [None, 3.0, 0.01])
@pytest.mark.parametrize("seed", range(4))
def test_history_equals_the_sum_of_decayed_acts(seed: int, half_life: float | None) -> None:
    generator = np.random.default_rng(seed)
    encoded, allowed, bundle = random_batch(generator), random_filters(generator), random_bundle(generator)
    top = HistorySource(bundle, half_life, Workspace(N_ITEMS + 1)).best(encoded, allowed, 9)
    for b in range(len(encoded)):
        scores = np.zeros(N_ITEMS + 1)
        moments = range(*encoded.moment_offsets[b : b + 2])
        for moment in moments:
            age = (encoded.stamps[moments[-1]] - encoded.stamps[moment]) / DAY
            decay = 1.0 if half_life is None else 0.5 ** min(age / half_life, count_sources.MAX_HALVINGS)
            for row in range(encoded.item_offsets[moment], encoded.item_offsets[moment + 1]):
                scores[encoded.items[row]] += decay * (1.0 if encoded.targets[row] else count_sources.INPUT_WEIGHT)
        wanted = ranking(count_sources._in_24_bits(scores), allowed, b, bundle.arrays["popular"], 9)
        assert listed(top.items[b]) == wanted
        np.testing.assert_allclose(top.scores[b, : len(wanted)], scores[wanted], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("seed", range(4))
def test_buy_again_lists_own_targets_by_hazard_in_a_batch_and_alone(seed: int) -> None:
    generator = np.random.default_rng(seed)
    encoded, allowed, bundle = random_batch(generator), random_filters(generator), random_bundle(generator)
    encoded = replace(encoded, now=np.full(len(encoded), 31 * DAY))
    bundle.arrays["buy_again.log_gaps"] = generator.uniform(0, 3, N_ITEMS + 1).astype(np.float32)
    source = BuyAgainSource(bundle, "buy_again", Workspace(N_ITEMS + 1))
    top = source.best(encoded, allowed, 9)
    for b in range(len(encoded)):
        own = OwnItems.of(encoded, slice(b, b + 1))
        scores = np.zeros(N_ITEMS + 1)
        scores[own.items] = own.hazards(bundle.arrays["buy_again.log_gaps"].astype(np.float64), encoded.now[b : b + 1])
        wanted = ranking(count_sources._in_24_bits(scores), allowed, b, bundle.arrays["popular"], 9)
        assert listed(top.items[b]) == wanted
        one = replace(one_query(encoded, b), now=encoded.now[b : b + 1])
        of_one = replace(allowed, banned=[allowed.banned[b]], banned_ids=[frozenset()])
        for _ in range(2):  # the second list is that of the kept items
            alone = source.best(one, of_one, 9)
            np.testing.assert_array_equal(alone.items[0], top.items[b])
            np.testing.assert_array_equal(alone.scores[0], top.scores[b])


@pytest.mark.parametrize("prefix", [1, 12, 800])
def test_popular_equals_the_filtered_list(prefix: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(count_sources, "POPULAR_PREFIX", prefix)
    generator = np.random.default_rng(1)
    encoded, allowed, bundle = random_batch(generator), random_filters(generator), random_bundle(generator)
    top = PopularSource(bundle, Workspace(N_ITEMS + 1)).best(encoded, allowed, 9)
    for b in range(len(encoded)):
        wanted = ranking(np.ones(N_ITEMS + 1), allowed, b, bundle.arrays["popular"], 9)
        assert listed(top.items[b]) == wanted
        assert np.allclose(top.scores[b, : len(wanted)], 1 / np.arange(1, len(wanted) + 1))


def test_popular_after_a_change_of_the_mask_follows_the_new_mask() -> None:
    generator = np.random.default_rng(2)
    encoded, allowed, bundle = random_batch(generator), random_filters(generator), random_bundle(generator)
    source = PopularSource(bundle, Workspace(N_ITEMS + 1))
    first = source.best(encoded, allowed, 9).items[0, 0]
    changed = allowed.mask.copy()
    changed[first] = False
    other = CandidateMask(TableMask.of(changed), allowed.banned, allowed.banned_ids, "")
    assert first not in source.best(encoded, other, 9).items[0]


@pytest.mark.parametrize("history", [1, 5, 12, 100])
def test_newest_window_equals_the_window_of_a_batch(history: int) -> None:
    encoded = random_batch(np.random.default_rng(history), 20)
    windows = window(encoded, history)
    for b in range(len(encoded)):
        span = slice(windows.offsets[b], windows.offsets[b + 1])
        items, moments = newest_window(encoded, b, history)
        assert (items.tolist(), moments.tolist()) == (windows.items[span].tolist(), windows.moments[span].tolist())


class CountedRuns:
    """User graph whose vector is the sum of its inputs, and the number of its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, _: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.runs += 1
        return [feeds["history"].sum(axis=1) + feeds["context"].sum()]


@pytest.mark.parametrize(("change", "n_runs"), [({}, 1), ({"context": 2}, 2), ({"items": 1}, 2)])
def test_user_vector_is_kept_for_equal_history_and_context(change: dict[str, int], n_runs: int) -> None:
    source = EmbeddingSource.__new__(EmbeddingSource)
    graph = CountedRuns()
    source.__dict__.update(
        _items=np.eye(N_ITEMS + 2, dtype=np.float32), _history=50, _session=graph, _inputs={"history", "context"},
        _key="key",
    )  # fmt: skip
    first = replace(
        random_batch(np.random.default_rng(6), 1), context=np.array([[1]], dtype=np.int32), now=np.zeros(1, np.int64)
    )
    second = replace(first, **{name: getattr(first, name) + value for name, value in change.items()})
    source.user_vectors(first)
    vector = source.user_vectors(second)[1]
    expected = source._run(second.items[None], second.items[None], second.items[None] > 0, second.context)
    assert (graph.runs - 1, vector.tolist()) == (n_runs, expected.tolist())


@pytest.mark.parametrize("source", ["neighbours", "history"])
def test_lists_of_a_large_batch_equal_those_of_small_ones(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(3)
    encoded, allowed, bundle = random_batch(generator, 40), random_filters(generator, 40), random_bundle(generator)
    space = Workspace(N_ITEMS + 1)
    lists = (
        NeighbourSource(bundle, "neighbours", RECENT, space)
        if source == "neighbours"
        else HistorySource(bundle, 3.0, space)
    )
    together = lists.best(encoded, allowed, 9)
    monkeypatch.setattr(count_batches, "QUERIES_PER_STEP", 7)
    apart = lists.best(encoded, allowed, 9)
    assert np.array_equal(together.items, apart.items)
    assert np.array_equal(together.scores, apart.scores)
    for b in np.flatnonzero(np.diff(encoded.moment_offsets)).tolist():
        ranked = lists._ranked(one_query(encoded, b))[0]
        is_shown = allowed.mask[ranked] & ~np.isin(ranked, allowed.banned[b])
        assert listed(together.items[b]) == ranked[is_shown][:9].tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("depth", [1, 3, 40])
def test_first_allowed_items_of_a_ranking_equal_the_filtered_ranking(seed: int, depth: int) -> None:
    generator = np.random.default_rng(seed)
    items = generator.permutation(N_ITEMS)[: int(generator.integers(0, N_ITEMS))].astype(np.int32) + 1
    scores = np.sort(generator.random(len(items)))[::-1].copy()
    mask = np.append(False, generator.random(N_ITEMS) < 0.15)  # some lists need items after the first block
    banned = np.sort(generator.choice(N_ITEMS, 5, replace=False).astype(np.int32) + 1)
    allowed = CandidateMask(TableMask.of(mask), [banned], [frozenset()], "")
    recalled = count_sources.first_allowed((items, scores), allowed, Workspace(N_ITEMS + 1), depth)
    rows = [row for row, item in enumerate(items.tolist()) if mask[item] and item not in banned][:depth]
    n_empty = depth - len(rows)
    assert recalled.items.tolist() == [[*items[rows].tolist(), *[0] * n_empty]]
    assert recalled.scores.tolist() == [[*scores[rows].astype(np.float32).tolist(), *[-np.inf] * n_empty]]


def test_ranked_ties_zeros_and_small_scores_equals_a_sort_by_two_arrays() -> None:
    generator = np.random.default_rng(5)
    items = generator.permutation(N_ITEMS)[: N_ITEMS - 2] + 1
    scores = np.ldexp(generator.integers(0, 4, len(items)).astype(np.float64), -900)
    order = generator.permutation(N_ITEMS).astype(np.int32) + 1
    rank = count_sources._rank_of(order)
    ranked_items, ranked_scores = score_keys.ranked(items, scores, rank, order)
    expected_items, expected_scores = best_ranked(items, scores, rank, len(items))
    assert ranked_items.tolist() == expected_items.tolist()
    assert ranked_items.dtype == np.int32
    assert ranked_scores.tolist() == expected_scores.tolist()


def test_ranked_without_items_is_empty() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    items, scores = score_keys.ranked(nothing, nothing.astype(np.float64), np.array([1, 0]), np.array([1]))
    assert (len(items), len(scores)) == (0, 0)


def test_bundles_with_the_same_array_share_its_codes_until_both_are_gone() -> None:
    def bundle(vectors: np.ndarray) -> Bundle:
        kept: dict[str, ScanTable] = {}
        arrays = {"item_vectors": vectors}
        shared = lambda name, derive: kept.setdefault(name, derive())  # noqa: E731
        return cast(Bundle, SimpleNamespace(arrays=arrays, shared=shared))

    vectors = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    first, second, other = bundle(vectors), bundle(vectors), bundle(vectors.copy())
    table = sources.scan_table(first)
    assert sources.scan_table(second) is table
    assert sources.scan_table(other) is not table
    number = id(vectors)
    assert sources.SCAN_TABLES[number] is table
    del first, second, table
    gc.collect()
    assert number not in sources.SCAN_TABLES
