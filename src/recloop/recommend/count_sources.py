"""Sources that count: popular items, own items and neighbours of items.

A list does not depend on its batch. What depends on a user's past alone is kept with its state.
"""

from __future__ import annotations

import numpy as np

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
    """Write the first allowed items of a ranking.

    Args:
        ranked, values: Items and scores, descending.
        mask: (N+1,). banned: Ascending item_ix. flags: `Workspace.flags`.
    """
    for item in banned:
        flags[item] = True
    slot = 0
    for position in range(len(ranked)):
        if slot == len(items):
            break
        item = ranked[position]
        if mask[item] and not flags[item]:
            items[slot], scores[slot] = item, values[position]
            slot += 1
    for item in banned:
        flags[item] = False


class PopularSource:
    """Source ``popular``: one list for all users, scored by 1 / rank."""

    def __init__(self, bundle: Bundle, workspace: Workspace) -> None:
        self._order = bundle.arrays["popular"]
        self._workspace = workspace
        self._prefixes: MaskCache[np.ndarray] = MaskCache(CACHED_PREFIXES)

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        prefix = self._prefixes.get(allowed.table, self._prefix)
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
        count_batches.put_best_totals(
            recalled, slice(None), encoded.row_offsets, encoded.items, self._row_weights(encoded), allowed, self._rank,
            self._workspace,
        )  # fmt: skip
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
            offsets = np.searchsorted(own.queries, np.arange(span.stop - span.start + 1))
            items = own.items.astype(np.int32)
            count_batches.put_best_totals(recalled, span, offsets, items, hazards, allowed, self._rank, self._workspace)
        return recalled

    def _own_items(self, encoded: EncodedBatch) -> OwnItems:
        """Return the items of a batch of one, which its state keeps until the next event."""
        return encoded.states.kept(self._key, lambda: OwnItems.of(encoded, slice(0, 1)))


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
        self._indptr = np.asarray(arrays[array_name(source, "neighbours.indptr")], dtype=np.int64)
        self._ids = arrays[array_name(source, "neighbours.ids")]
        self._weights = arrays[array_name(source, "neighbours.weights")]
        self._workspace = workspace

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        if len(encoded) == 1:
            ranked = encoded.states.kept(self._key, lambda: self._ranked(encoded))
            return first_allowed(ranked, allowed, self._workspace, depth)
        recalled = TopK.empty(len(encoded), depth)
        space = self._workspace
        for span in count_batches.steps(len(encoded)):
            items, weights, offsets = self._recent_items_of_batch(encoded, span)
            banned, banned_offsets = count_batches.joined(allowed.banned[span])
            count_batches.write_neighbours(
                recalled.items[span], recalled.scores[span], offsets, items, weights, self._indptr, self._ids, self._weights,
                allowed.mask, banned, banned_offsets, self._rank, space.flags, space.sums, space.is_summed,
            )  # fmt: skip
        return recalled

    def _ranked(self, encoded: EncodedBatch) -> Ranked:
        """Rank all neighbours of a batch of one."""
        items, weights = self._recent_items(encoded, 0)
        neighbours, scores = np.empty(len(self._rank) + 1, dtype=np.int32), np.empty(len(self._rank))
        space = self._workspace
        n_neighbours = count_batches.write_scores(
            neighbours, scores, items.astype(np.int64), weights, self._indptr, self._ids, self._weights, space.sums,
            space.is_summed,
        )  # fmt: skip
        return score_keys.ranked(neighbours[:n_neighbours], scores[:n_neighbours], self._rank, self._order)

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
        return items, np.bincount(slots, weights=weights, minlength=len(items)).astype(np.float64)  # integers if empty

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
        return pairs % n_rows, weights.astype(np.float64), np.searchsorted(pairs, np.arange(n_queries + 1) * n_rows)


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
