"""Weighted reciprocal rank fusion of the sources (docs/definitions/fusion.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from recloop import jit
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

    of_columns: np.ndarray  # (S,) slot of each position in the lists side by side
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
    bits = len(slots.shares).bit_length()
    for start in range(0, size, ROWS_PER_STEP):
        rows = slice(start, start + ROWS_PER_STEP)
        pairs = np.concatenate([items[rows] for items in lists], axis=1).astype(np.int64)  # (item, slot)
        pairs <<= bits
        pairs |= slots.of_columns
        pairs.sort(axis=1)  # numpy sorts integers faster than a loop
        write_fused(
            fused.items[rows], fused.scores[rows], fused.sources[rows], pairs, bits, slots.shares, slots.sources
        )
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
    of_columns = np.empty(len(order), dtype=np.int64)
    of_columns[order] = np.arange(len(order))
    return _Slots(of_columns, shares[order], sources[order])


@jit.compiled(
    None, jit.written(jit.INT32_2D), jit.written(jit.FLOAT32_2D), jit.written(jit.INT8_2D), jit.INT64_2D, jit.INTEGER,
    jit.FLOAT64, jit.INT8,
)  # fmt: skip
def write_fused(
    items: np.ndarray, scores: np.ndarray, sources: np.ndarray, pairs: np.ndarray, bits: int, shares: np.ndarray,
    source_of_slot: np.ndarray,
) -> None:  # fmt: skip
    """Write the lists (B, k) of the largest sums of shares, descending.

    The smaller item wins a tie.

    Args:
        pairs: (B, S) item_ix above ``bits`` of the slot, ascending; item 0 is an empty slot. An item's shares are added from the
            largest to the smallest.
        shares, source_of_slot: (S,) of each slot.
    """
    k = items.shape[1]
    for query in range(len(pairs)):
        entry = n_listed = 0
        while entry < pairs.shape[1] and pairs[query, entry] >> bits == 0:
            entry += 1
        while entry < pairs.shape[1]:
            item, first_slot = pairs[query, entry] >> bits, pairs[query, entry] & (1 << bits) - 1
            total = 0.0
            while entry < pairs.shape[1] and pairs[query, entry] >> bits == item:
                total += shares[pairs[query, entry] & (1 << bits) - 1]
                entry += 1
            score = np.float32(total)
            if n_listed == k and score <= scores[query, k - 1]:
                continue
            n_listed = min(n_listed + 1, k)
            slot = n_listed - 1
            while slot > 0 and scores[query, slot - 1] < score:
                items[query, slot], scores[query, slot] = items[query, slot - 1], scores[query, slot - 1]
                sources[query, slot] = sources[query, slot - 1]
                slot -= 1
            items[query, slot], scores[query, slot], sources[query, slot] = item, score, source_of_slot[first_slot]
