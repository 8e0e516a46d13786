"""Filters: conditions, hidden items, exclusions, dislikes and seen items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recloop.features.encode import EncodedBatch, digest
from recloop.features.vocabulary import Vocabulary
from recloop.recommend.catalog import Catalog
from recloop.records import Query


@dataclass(frozen=True)
class CandidateMask:
    """Filters of B queries: a shared table mask and the banned items of each query.

    ``mask`` is (N+1,) bool. Query b must not show the table items ``banned[b]`` (ascending item_ix) or the raw ids
    ``banned_ids[b]``. ``text`` is the whole condition, for items outside the table.
    """

    mask: np.ndarray
    banned: list[np.ndarray]
    banned_ids: list[frozenset[str]]
    text: str

    def input(self, b: int) -> str:
        """Return 8 hex digits that identify the filters of query b."""
        packed = np.packbits(self.mask).tobytes() + self.banned[b].astype("<i4").tobytes()
        return digest(packed + "\0".join(sorted(self.banned_ids[b])).encode())


def candidate_mask(
    catalog: Catalog,
    vocabulary: Vocabulary,
    encoded: EncodedBatch,
    queries: Sequence[Query],
    filters: tuple[str, str],
    filter_seen: bool,
) -> CandidateMask:
    """Evaluate the filters of queries that share a placement and a condition.

    Args:
        filters: The conditions of the placement and of the query; an item must pass both.
        filter_seen: Exclude every item of the history that was a target.
    """
    text = " AND ".join(f"({condition})" for condition in filters if condition.strip())
    states = encoded.states
    offsets = encoded.row_offsets
    banned, banned_ids = [], []
    for b, query in enumerate(queries):
        low, high = states.negative_offsets[b], states.negative_offsets[b + 1]
        ids = frozenset(query.exclude).union(states.names[states.negatives[low:high]].tolist())
        ban_lists = [encoded.negatives[encoded.negative_offsets[b] : encoded.negative_offsets[b + 1]]]
        if query.exclude:
            ban_lists.append(vocabulary.lookup(query.exclude))
        if filter_seen:
            query_rows = slice(offsets[b], offsets[b + 1])
            ban_lists.append(encoded.items[query_rows][encoded.targets[query_rows]])
        all_banned = np.unique(np.concatenate(ban_lists)) if sum(map(len, ban_lists)) else ban_lists[0]
        banned.append(all_banned[all_banned > 0])
        banned_ids.append(ids)
    return CandidateMask(catalog.mask(text, vocabulary), banned, banned_ids, text)
