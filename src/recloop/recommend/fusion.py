"""Weighted reciprocal rank fusion of the sources (docs/definitions/fusion.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recloop.policy import RRF
from recloop.recommend.top_k import TopK
from recloop.records import FUSED_SOURCES


@dataclass(frozen=True)
class FusedTopK:
    """Fused lists (B, k): item_ix (0 = empty slot), float32 scores, source number.

    Scores descend; the source number is the index in FUSED_SOURCES.
    """

    items: np.ndarray
    scores: np.ndarray
    sources: np.ndarray

    @classmethod
    def empty(cls, size: int, k: int) -> FusedTopK:
        """Return empty lists for ``size`` queries."""
        return cls(
            np.zeros((size, k), np.int32), np.full((size, k), -np.inf, np.float32), np.full((size, k), -1, np.int8)
        )


def fuse(recalled: Mapping[str, TopK], weights: Mapping[str, float], k: int, constant: float = RRF) -> FusedTopK:
    """Fuse the sources; a slot's source is the one with the largest share.

    Ties are ordered by item_ix.

    Args:
        k: Items per list. constant: added to each rank (`RRF`).
    """
    size = next(iter(recalled.values())).items.shape[0]
    fused = FusedTopK.empty(size, k)
    weighted = [source for source in FUSED_SOURCES if source in recalled and weights.get(source, 0.0) > 0]
    if len(weighted) == 1:
        return _single(fused, recalled[weighted[0]], FUSED_SOURCES.index(weighted[0]), weights[weighted[0]], constant)
    rows, items, shares, sources = [], [], [], []
    for number, source in enumerate(FUSED_SOURCES):
        if source in weighted:
            row, rank = np.nonzero(recalled[source].items)
            rows.append(row)
            items.append(recalled[source].items[row, rank])
            shares.append(weights[source] / (constant + 1.0 + rank))
            sources.append(np.full(len(row), number, dtype=np.int8))
    if not sum(map(len, rows)):
        return fused
    row, item = np.concatenate(rows), np.concatenate(items).astype(np.int64)
    share, source_number = np.concatenate(shares), np.concatenate(sources)
    # Sort by query and item, the largest share first: its source labels the slot.
    order = np.lexsort((source_number, -share, row * (item.max() + 1) + item))
    row, item, share, source_number = row[order], item[order], share[order], source_number[order]
    is_first = np.ones(len(row), dtype=bool)
    is_first[1:] = (row[1:] != row[:-1]) | (item[1:] != item[:-1])
    total = np.add.reduceat(share, np.flatnonzero(is_first)).astype(np.float32)
    row, item, source_number = row[is_first], item[is_first], source_number[is_first]
    order = np.lexsort((item, -total, row))
    row = row[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    in_list = rank < k
    target = (row[in_list], rank[in_list])
    fused.items[target] = item[order][in_list]
    fused.scores[target] = total[order][in_list]
    fused.sources[target] = source_number[order][in_list]
    return fused


def _single(fused: FusedTopK, recalled: TopK, number: int, weight: float, constant: float) -> FusedTopK:
    """Write the list of the only source into ``fused``: its order, scored by rank."""
    width = min(fused.items.shape[1], recalled.items.shape[1])
    items = recalled.items[:, :width]
    is_item = items > 0
    scores = (weight / (constant + 1.0 + np.arange(width))).astype(np.float32)
    fused.items[:, :width] = items
    fused.scores[:, :width] = np.where(is_item, scores, np.float32(-np.inf))
    fused.sources[:, :width] = np.where(is_item, np.int8(number), np.int8(-1))
    return fused
