"""Sources that count: popular items, own items and neighbours of items.

A list does not depend on its batch. What depends on a user's past alone is kept with its state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp

from recloop import jit
from recloop.bundle import Bundle, array_name
from recloop.features.buy_again import OwnItems
from recloop.features.encode import EncodedBatch
from recloop.recommend import count_batches, score_keys
from recloop.recommend.filters import CandidateMask
from recloop.recommend.mask_cache import MaskCache
from recloop.recommend.table_mask import TableMask
from recloop.recommend.top_k import DEPTH, TopK, Workspace
from recloop.records import DAY

MAX_HALVINGS = 1000.0
"""Maximum age of an act in half-lives; its weight 2^-1000 is still above 0."""
INPUT_WEIGHT = 0.2
"""Weight in ``history`` of a moment with only inputs, relative to one with a target."""
POPULAR_PREFIX = 4 * DEPTH
"""Popular items that are kept for each of the last `CACHED_PREFIXES` masks."""
CACHED_PREFIXES = 1_000
RECIPROCALS = (1.0 / np.arange(1, POPULAR_PREFIX + 1)).astype(np.float32)
RECIPROCALS.flags.writeable = False


Ranked = tuple[np.ndarray, np.ndarray]
"""Items (item_ix) and scores of one query, descending, before the filters."""


def first_allowed(ranked: Ranked, allowed: CandidateMask, workspace: Workspace, depth: int) -> TopK:
    """Return the first allowed items of a ranking as the list of a batch of one."""
    items, scores = ranked
    if not len(items) or (allowed.is_all and not len(allowed.banned[0])):
        return TopK.of_one(items[:depth], scores[:depth], depth)
    recalled = TopK.empty(1, depth)
    write_allowed(
        recalled.items[0], recalled.scores[0], items, scores, allowed.mask, allowed.banned[0], workspace.flags
    )
    return recalled


@jit.compiled(
    None, jit.written(jit.INT32), jit.written(jit.FLOAT32), jit.INT32, jit.FLOAT64, jit.BOOL, jit.INT32, jit.written(jit.BOOL)
)  # fmt: skip
def write_allowed(
    items: np.ndarray, scores: np.ndarray, ranked: np.ndarray, values: np.ndarray, mask: np.ndarray, banned: np.ndarray,
    flags: np.ndarray,
) -> None:  # fmt: skip
    """Write the first items of a ranking with these values that are in a mask (N+1,) and not banned.

    Args:
        flags: `Workspace.flags`.
    """
    flags[banned] = True
    slot = 0
    for position in range(len(ranked)):
        if slot == len(items):
            break
        item = ranked[position]
        if mask[item] and not flags[item]:
            items[slot], scores[slot] = item, values[position]
            slot += 1
    flags[banned] = False


class PopularSource:
    """Source ``popular``: one list for all users, scored by 1 / rank."""

    def __init__(self, bundle: Bundle, workspace: Workspace) -> None:
        self._order = bundle.arrays["popular"]
        self._workspace = workspace
        self._prefixes: MaskCache[np.ndarray] = MaskCache(self._prefix, CACHED_PREFIXES)

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        prefix = self._prefixes.get(allowed.table)
        if len(encoded) == 1 and not len(allowed.banned[0]) and depth <= len(prefix):
            return TopK(prefix[None, :depth], RECIPROCALS[None, :depth])
        recalled = TopK.empty(len(encoded), depth)
        for b, banned in enumerate(allowed.banned):
            n_first = depth + len(banned)
            items = prefix[:n_first] if n_first <= POPULAR_PREFIX else self._first_allowed(allowed.mask, n_first)
            if len(banned):
                items = items[self._workspace.is_allowed(items, allowed, b)][:depth]
            recalled.put(b, items, 1.0 / np.arange(1, len(items) + 1))
        return recalled

    def _prefix(self, table: TableMask) -> np.ndarray:
        return self._first_allowed(table.mask, POPULAR_PREFIX)

    def _first_allowed(self, mask: np.ndarray, n_items: int) -> np.ndarray:
        """Return the first items of the list that a mask (N+1,) allows."""
        blocks: list[np.ndarray] = []
        n_found = start = 0
        stop = 2 * n_items
        while n_found < n_items and start < len(self._order):
            block = self._order[start:stop]
            blocks.append(block[mask[block]])
            n_found += len(blocks[-1])
            start, stop = stop, 2 * stop
        return np.concatenate(blocks)[:n_items] if blocks else self._order[:0]


class HistorySource:
    """Source ``history``: items of the user's history, weighted by age.

    A moment with the item as a target counts 1; a moment with it only as an input counts `INPUT_WEIGHT`. Age is measured
    at the user's newest moment. The order is the same as by the age now, and weights stay above 0.
    """

    def __init__(self, bundle: Bundle, half_life: float | None, workspace: Workspace) -> None:
        self._rank = popularity_rank(bundle)
        self._order = bundle.arrays["popular"]
        self._key = ("own items", bundle.items.ids.serial, half_life)
        self._half_life = half_life
        self._workspace = workspace

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        if not len(encoded.items):
            return TopK.empty(len(encoded), depth)
        if len(encoded) == 1:
            ranked = encoded.states.kept(self._key, lambda: self._ranked(encoded))
            return first_allowed(ranked, allowed, self._workspace, depth)
        recalled = TopK.empty(len(encoded), depth)
        weights = self._row_weights(encoded)
        for span in count_batches.steps(len(encoded)):
            offsets = encoded.row_offsets[span.start : span.stop + 1]
            rows = slice(offsets[0], offsets[-1])
            scores = count_batches.totals(offsets - offsets[0], encoded.items[rows], weights[rows], len(self._rank))
            scores.data = _in_24_bits(scores.data)
            count_batches.put_best(recalled, scores, allowed, self._rank, self._order, span)
        return recalled

    def _ranked(self, encoded: EncodedBatch) -> Ranked:
        """Rank all items of a batch of one."""
        items, scores = self._workspace.totals(encoded.items, self._row_weights(encoded))
        return score_keys.ranked(items, _in_24_bits(scores), self._rank, self._order)

    def _row_weights(self, encoded: EncodedBatch) -> np.ndarray:
        """Return the weight (E,) float64 of each row."""
        newest = np.repeat(encoded.stamps[encoded.moment_offsets[1:] - 1], np.diff(encoded.moment_offsets))
        moment_weights = age_weights(newest - encoded.stamps, self._half_life)
        row_weights: np.ndarray = np.repeat(moment_weights, np.diff(encoded.item_offsets))
        row_weights *= np.where(encoded.targets, 1.0, INPUT_WEIGHT)
        return row_weights


class BuyAgainSource:
    """Source ``buy_again``: own items by their number and how due they are.

    Scores are those of `recloop.features.buy_again`.
    """

    def __init__(self, bundle: Bundle, source: str, workspace: Workspace) -> None:
        self._rank = popularity_rank(bundle)
        self._order = bundle.arrays["popular"]
        self._log_gaps = bundle.arrays[array_name(source, "log_gaps")].astype(np.float64)
        self._key = (source, bundle.items.ids.serial)
        self._workspace = workspace

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        if len(encoded) == 1:
            own = self._own_items(encoded)
            scores = _in_24_bits(own.hazards(self._log_gaps, encoded.now))
            ranked = score_keys.ranked(own.items, scores, self._rank, self._order)
            return first_allowed(ranked, allowed, self._workspace, depth)
        recalled = TopK.empty(len(encoded), depth)
        for span in count_batches.steps(len(encoded)):
            own = OwnItems.of(encoded, span)
            hazards = _in_24_bits(own.hazards(self._log_gaps, encoded.now[span]))
            shape = (span.stop - span.start, len(self._rank))
            scores_of_batch = sp.csr_array((hazards, (own.queries, own.items)), shape=shape)
            count_batches.put_best(recalled, scores_of_batch, allowed, self._rank, self._order, span)
        return recalled

    def _own_items(self, encoded: EncodedBatch) -> OwnItems:
        """Return the items of a batch of one, which its state keeps until the next event."""
        return encoded.states.kept(self._key, lambda: OwnItems.of(encoded, slice(0, 1)))


@dataclass(frozen=True)
class _History:
    """Items of B histories that count.

    Attributes:
        items: (E,) item_ix. weights: (E,) float64. offsets: (B+1,). lengths: (E,) neighbours of each item.
    """

    items: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def select(self, span: slice) -> _History:
        """Return some consecutive histories."""
        offsets = self.offsets[span.start : span.stop + 1]
        rows = slice(offsets[0], offsets[-1])
        return _History(self.items[rows], self.weights[rows], offsets - offsets[0], self.lengths[rows])

    def equals(self, other: _History) -> bool:
        """Return whether the items with neighbours and their weights are equal."""
        return all(map(np.array_equal, self._with_neighbours(), other._with_neighbours()))

    def _with_neighbours(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        has_neighbours = self.lengths > 0
        offsets = np.append(0, np.cumsum(has_neighbours))[self.offsets]
        return self.items[has_neighbours], self.weights[has_neighbours], offsets


class NeighbourSource:
    """Source of stored rows, summed over the items of a history.

    ``recent`` holds the weights of the newest moments, whose items count; without it each item of the history counts once.
    """

    def __init__(self, bundle: Bundle, source: str, recent: tuple[float, ...] | None, workspace: Workspace) -> None:
        arrays = bundle.arrays
        self._bundle = bundle
        self._rank = popularity_rank(bundle)
        self._order = arrays["popular"]
        self._key = (source, bundle.items.ids.serial, recent)
        self._oldest_first = None if recent is None else np.array(recent[::-1])
        self._indptr = arrays[array_name(source, "neighbours.indptr")]
        self._ids = arrays[array_name(source, "neighbours.ids")]
        self._weights = arrays[array_name(source, "neighbours.weights")]
        self._workspace = workspace
        self._shared_key: object = None  # of the scores that sources with equal rows share

    def share_scores(self, other: NeighbourSource) -> None:
        """Share scores of batches with a source of another bundle, if its rows are equal.

        One item table must start with the other, and further items must have no neighbours.
        """
        shorter, longer = sorted((self, other), key=lambda source: len(source._rank))
        n_items = len(shorter._rank) - 1
        is_equal = (
            np.array_equal(shorter._ids, longer._ids)
            and np.array_equal(shorter._weights, longer._weights)
            and np.array_equal(shorter._indptr, longer._indptr[: n_items + 2])
            and list(shorter._bundle.items.ids.ids) == list(longer._bundle.items.ids.ids[:n_items])
        )
        if is_equal:
            self._shared_key = other._shared_key = self._shared_key or object()

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        if len(encoded) == 1:
            ranked = encoded.states.kept(self._key, lambda: self._ranked(encoded))
            return first_allowed(ranked, allowed, self._workspace, depth)
        recalled = TopK.empty(len(encoded), depth)
        for span in count_batches.steps(len(encoded)):
            items, weights, offsets = self._recent_items_of_batch(encoded, span)
            lengths = self._indptr[items + 1] - self._indptr[items]
            if int(lengths.sum()) >= count_batches.DENSE_SHARE * (len(offsets) - 1) * len(self._rank):
                self._put_best_dense(recalled, encoded, _History(items, weights, offsets, lengths), allowed, span.start)
                continue
            scores = self._summed_rows_of_batch(items, weights, offsets)
            scores.data = scores.data.astype(np.float32).astype(np.float64)
            count_batches.put_best(recalled, scores, allowed, self._rank, self._order, span)
        return recalled

    def _put_best_dense(
        self, recalled: TopK, encoded: EncodedBatch, history: _History, allowed: CandidateMask, first: int
    ) -> None:
        """Store the lists of the queries from ``first`` on."""
        for span in count_batches.steps(len(history), max(1, count_batches.MAX_DENSE_SCORES // len(self._rank))):
            queries = slice(first + span.start, first + span.stop)
            scores = self._dense_scores(encoded, history.select(span), queries).astype(np.float64)
            count_batches.put_best_dense(recalled, scores, allowed, self._rank, self._order, queries)

    def _dense_scores(self, encoded: EncodedBatch, history: _History, queries: slice) -> np.ndarray:
        """(B, N+1) float32 scores.

        Those of equal histories over equal rows are computed once.
        """
        key = ("scores", self._shared_key, queries.start, queries.stop)
        known, scores = encoded.states.derived.get(key, (None, None)) if self._shared_key else (None, None)
        if known is not None and scores is not None and history.equals(known):
            n_missing = len(self._rank) - scores.shape[1]
            return np.pad(scores, ((0, 0), (0, n_missing))) if n_missing > 0 else scores[:, : len(self._rank)]
        totals = self._summed.totals(history.offsets, history.items, history.weights)
        scores = totals.astype(np.float32)
        if self._shared_key:
            encoded.states.derived[key] = history, scores
        return scores

    def _ranked(self, encoded: EncodedBatch) -> Ranked:
        """Rank all neighbours of a batch of one."""
        neighbours, scores = self._summed_rows(*self._recent_items(encoded, 0))
        is_item = (scores > 0) & (neighbours > 0)
        scores = scores[is_item].astype(np.float64)
        return score_keys.ranked(neighbours[is_item], scores, self._rank, self._order)

    def _recent_items(self, encoded: EncodedBatch, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ascending items of the history that count, and their weights."""
        if self._oldest_first is None:
            items = np.unique(encoded.items[encoded.row_offsets[b] : encoded.row_offsets[b + 1]])
            return items, np.ones(len(items))
        low, high = encoded.moment_offsets[b : b + 2].tolist()
        first = max(low, high - len(self._oldest_first))
        offsets = encoded.item_offsets[first : high + 1]
        weights = np.repeat(self._oldest_first[len(self._oldest_first) - (high - first) :], np.diff(offsets))
        items, slots = np.unique(encoded.items[offsets[0] : offsets[-1]], return_inverse=True)
        return items, np.bincount(slots, weights=weights, minlength=len(items))

    def _recent_items_of_batch(self, encoded: EncodedBatch, span: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return `_recent_items` of each query, and their offsets (B+1,)."""
        n_queries, n_rows = span.stop - span.start, len(self._rank)
        if self._oldest_first is None:
            offsets = encoded.row_offsets[span.start : span.stop + 1]
            query = np.repeat(np.arange(n_queries), np.diff(offsets))
            pairs = count_batches.distinct(query * n_rows + encoded.items[offsets[0] : offsets[-1]])
            return pairs % n_rows, np.ones(len(pairs)), np.searchsorted(pairs, np.arange(n_queries + 1) * n_rows)
        stops = encoded.moment_offsets[span.start + 1 : span.stop + 1]
        n_moments = np.minimum(stops - encoded.moment_offsets[span], len(self._oldest_first))
        moments = count_batches.spread(stops - n_moments, n_moments)
        moment_weights = self._oldest_first[count_batches.spread(len(self._oldest_first) - n_moments, n_moments)]
        n_items = np.diff(encoded.item_offsets)[moments]
        entries = count_batches.spread(encoded.item_offsets[moments], n_items)
        query = np.repeat(np.repeat(np.arange(n_queries), n_moments), n_items)
        pairs, slots = np.unique(query * n_rows + encoded.items[entries], return_inverse=True)
        weights = np.bincount(slots, weights=np.repeat(moment_weights, n_items), minlength=len(pairs))
        return pairs % n_rows, weights, np.searchsorted(pairs, np.arange(n_queries + 1) * n_rows)

    def _summed_rows_of_batch(self, items: np.ndarray, weights: np.ndarray, offsets: np.ndarray) -> sp.csr_array:
        """Return the scores (B, N+1), summed in float64 in the order of ``items``."""
        rows = self._rows
        integer = rows.indices.dtype  # equal types, or scipy copies all rows
        history = sp.csr_array(
            (weights, items.astype(integer), offsets.astype(integer)), shape=(len(offsets) - 1, len(self._rank))
        )
        return sp.csr_array(history @ rows)

    @cached_property
    def _rows(self) -> sp.csr_array:
        """All rows, (N+1, N+1) float64, shared by the recommenders of a bundle."""
        rows: sp.csr_array = self._bundle.shared(f"rows of {self._key[0]}", self._all_rows)
        return rows

    @cached_property
    def _summed(self) -> count_batches.SummedRows:
        """Sums over all items, shared by the recommenders of a bundle."""
        summed: count_batches.SummedRows = self._bundle.shared(
            f"sums of {self._key[0]}", lambda: count_batches.SummedRows(self._indptr, self._ids, self._weights)
        )
        return summed

    def _all_rows(self) -> sp.csr_array:
        size = len(self._rank)
        return sp.csr_array((self._weights.astype(np.float64), self._ids, self._indptr), shape=(size, size))

    def _summed_rows(self, items: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the neighbours and their scores, float32.

        A score is summed in float64 in the order of ``items``.
        """
        starts = self._indptr[items]
        lengths = self._indptr[items + 1] - starts
        entries = count_batches.spread(starts, lengths)
        values = self._weights[entries] * np.repeat(weights, lengths)
        neighbours, sums = self._workspace.totals(self._ids[entries], values)
        return neighbours, sums.astype(np.float32)


def popularity_rank(bundle: Bundle) -> np.ndarray:
    """Return the rank (N+1,) int32 of each item in the popular list; row 0 is last."""
    rank: np.ndarray = bundle.shared("popularity_rank", lambda: _rank_of(bundle.arrays["popular"]))
    return rank


def _rank_of(order: np.ndarray) -> np.ndarray:
    rank = np.full(len(order) + 1, len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank


def _in_24_bits(scores: np.ndarray) -> np.ndarray:
    """Round float64 scores to 24 bits: equal ones tie at any magnitude, as in float32."""
    mantissa, exponent = np.frexp(scores)
    return np.asarray(np.ldexp(mantissa.astype(np.float32).astype(np.float64), exponent))


def age_weights(age: np.ndarray, half_life: float | None) -> np.ndarray:
    """Return the weight (M,) float64 of each moment, above 0.

    ``age`` is in microseconds, ``half_life`` in days; None gives weight 1.
    """
    if half_life is None:
        return np.ones(len(age))
    halvings = np.minimum(np.maximum(age, 0) / (half_life * DAY), MAX_HALVINGS)
    return np.asarray(np.exp2(-halvings))
