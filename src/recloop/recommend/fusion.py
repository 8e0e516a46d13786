"""Weighted reciprocal rank fusion of the sources (docs/definitions/fusion.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from recloop.policy import RRF
from recloop.recommend.top_k import TopK
from recloop.records import FUSED_SOURCES, source_names

ROWS_PER_STEP = 1_024
"""Queries that are fused at a time."""


@dataclass(frozen=True)
class FusedTopK:
    """Fused lists (B, k): item_ix (0 = empty slot), float32 scores, source number.

    Scores descend; the source number is the index in ``names``. ``features`` are those of the first items of each
    query, (n, F) float32, if a ranker ordered them.
    """

    items: np.ndarray
    scores: np.ndarray
    sources: np.ndarray
    features: Sequence[np.ndarray] = ()
    names: tuple[str, ...] = FUSED_SOURCES

    @classmethod
    def empty(cls, size: int, k: int, names: tuple[str, ...] = FUSED_SOURCES) -> FusedTopK:
        """Return empty lists for ``size`` queries."""
        scores = np.empty((size, k), np.float32)
        scores.fill(-np.inf)
        sources = np.empty((size, k), np.int8)
        sources.fill(-1)
        return cls(np.zeros((size, k), np.int32), scores, sources, names=names)


@dataclass(frozen=True)
class _Slots:
    """Slots of a query's lists, the largest share first; ties by source number."""

    columns: np.ndarray  # (S,) position in the lists side by side
    shares: np.ndarray  # (S,) float64
    sources: np.ndarray  # (S,) int8


def fuse(recalled: Mapping[str, TopK], weights: Mapping[str, float], k: int, constant: float = RRF) -> FusedTopK:
    """Fuse the sources; a slot's source is the one with the largest share.

    Ties are ordered by item_ix.

    Args:
        k: Items per list. constant: added to each rank (`RRF`).
    """
    size = next(iter(recalled.values())).items.shape[0]
    names = source_names(recalled)
    sources = tuple(source for source in names if source in recalled and weights.get(source, 0.0) > 0)
    if len(sources) == 1 and size:
        return _single(recalled[sources[0]], names, names.index(sources[0]), weights[sources[0]], constant, k)
    fused = FusedTopK.empty(size, k, names)
    if not sources or not size:
        return fused
    lists = [recalled[source].items for source in sources]
    slots = _slots(
        tuple((names.index(source), float(weights[source])) for source in sources),
        tuple(items.shape[1] for items in lists),
        constant,
    )
    if size == 1:
        _fuse_one(np.concatenate([items[0] for items in lists])[slots.columns], slots, fused)
        return fused
    for start in range(0, size, ROWS_PER_STEP):
        rows = slice(start, start + ROWS_PER_STEP)
        items = np.concatenate([source_items[rows] for source_items in lists], axis=1)[:, slots.columns]
        _fuse_rows(items, slots, fused, rows)
    return fused


def _single(recalled: TopK, names: tuple[str, ...], number: int, weight: float, constant: float, k: int) -> FusedTopK:
    """Return the list of the only source: its order, scored by rank."""
    if len(recalled.items) == 1 and recalled.items.shape[1] >= k and recalled.items[0, k - 1]:  # no empty slot
        scores, numbers = _scores_by_rank(weight, constant, k), _numbers(number, k)
        return FusedTopK(recalled.items[:, :k], scores[None], numbers, names=names)
    fused = FusedTopK.empty(len(recalled.items), k, names)
    width = min(k, recalled.items.shape[1])
    items = recalled.items[:, :width]
    is_item = items > 0
    fused.items[:, :width] = items
    fused.scores[:, :width] = np.where(is_item, _scores_by_rank(weight, constant, width), np.float32(-np.inf))
    fused.sources[:, :width] = np.where(is_item, np.int8(number), np.int8(-1))
    return fused


@lru_cache(maxsize=256)
def _numbers(number: int, width: int) -> np.ndarray:
    """Return a list (1, width) int8 of one source."""
    numbers = np.full((1, width), number, dtype=np.int8)
    numbers.flags.writeable = False
    return numbers


@lru_cache(maxsize=256)
def _scores_by_rank(weight: float, constant: float, width: int) -> np.ndarray:
    """Return the scores (width,) float32 of a single source's ranks."""
    scores: np.ndarray = (weight / (constant + 1.0 + np.arange(width))).astype(np.float32)
    scores.flags.writeable = False
    return scores


@lru_cache(maxsize=256)
def _slots(weights: tuple[tuple[int, float], ...], depths: tuple[int, ...], constant: float) -> _Slots:
    """Order the slots of sources with (source number, weight) and their depths."""
    shares = np.concatenate(
        [weight / (constant + 1.0 + np.arange(depth)) for (_, weight), depth in zip(weights, depths, strict=True)]
    )
    sources = np.repeat(np.array([number for number, _ in weights], dtype=np.int8), depths)
    order = np.lexsort((sources, -shares))
    return _Slots(order, shares[order], sources[order])


def _fuse_one(items: np.ndarray, slots: _Slots, fused: FusedTopK) -> None:
    """Fuse the lists (S,) of one query as `_fuse_rows` does."""
    n_slots = len(items)
    bits = n_slots.bit_length()
    pairs = items.astype(np.int64) << bits  # (item, slot)
    pairs |= np.arange(n_slots)
    pairs.sort()
    items, slot = pairs >> bits, pairs & (1 << bits) - 1
    first = np.flatnonzero(items[1:] != items[:-1]) + 1  # empty slots (item 0) come before the first change
    if items[0]:
        first = np.concatenate([np.zeros(1, dtype=np.int64), first])
    if not len(first):
        return
    totals = np.add.reduceat(slots.shares[slot], first).astype(np.float32)
    best = _largest(totals, fused.items.shape[1])
    n_best, entry = len(best), first[best]
    fused.items[0, :n_best], fused.scores[0, :n_best] = items[entry], totals[best]
    fused.sources[0, :n_best] = slots.sources[slot[entry]]


def _largest(totals: np.ndarray, k: int) -> np.ndarray:
    """Return the positions of the k largest totals, descending.

    The smaller position wins a tie.
    """
    if len(totals) <= k:
        return np.argsort(-totals, kind="stable")
    border = np.partition(totals, len(totals) - k)[len(totals) - k]
    kept = np.flatnonzero(totals >= border)
    best: np.ndarray = kept[np.argsort(-totals[kept], kind="stable")[:k]]
    return best


def _fuse_rows(items: np.ndarray, slots: _Slots, fused: FusedTopK, rows: slice) -> None:
    """Fuse the lists (b, S), in the order of ``slots``, into some rows of ``fused``.

    An item's shares are added from the largest to the smallest. Pairs are sorted as integers, because sorting values is
    faster than sorting indices.
    """
    size, n_slots = items.shape
    k = min(fused.items.shape[1], n_slots)
    bits = n_slots.bit_length()
    pairs = np.sort(items.astype(np.int64) << bits | np.arange(n_slots), axis=1)  # (item, slot)
    items = pairs >> bits
    slot = (pairs & (1 << bits) - 1).ravel()
    is_first = np.ones((size, n_slots), dtype=bool)
    np.not_equal(items[:, 1:], items[:, :-1], out=is_first[:, 1:])
    first = np.flatnonzero(is_first)
    totals = np.add.reduceat(slots.shares[slot], first).astype(np.float32)
    ranked = np.zeros(size * n_slots, dtype=np.int64)  # (total, reversed position): the smaller item wins a tie
    ranked[first] = totals.view(np.int32).astype(np.int64) << 32 | n_slots - first % n_slots
    ranked = np.where(items > 0, ranked.reshape(size, n_slots), 0)
    best = np.sort(np.partition(ranked, n_slots - k, axis=1)[:, n_slots - k :], axis=1)[:, ::-1]
    entry = np.where(best > 0, n_slots - (best & 0xFFFFFFFF), 0) + n_slots * np.arange(size)[:, None]
    fused.items[rows, :k] = np.where(best > 0, items.ravel()[entry], 0)
    fused.scores[rows, :k] = np.where(best > 0, (best >> 32).astype(np.int32).view(np.float32), -np.inf)
    fused.sources[rows, :k] = np.where(best > 0, slots.sources[slot[entry]], -1)
