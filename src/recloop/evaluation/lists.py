"""Lists of many queries as arrays of item numbers.

The lists are those of `Recommender.recommend`; slots are not built as objects.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recloop.bundle import Bundle
from recloop.features.encode import EncodedBatch
from recloop.features.state import StateBatch
from recloop.policy import Placement
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import CandidateMask
from recloop.recommend.fusion import FusedTopK
from recloop.recommend.recommender import Recommender
from recloop.records import IMPERSONAL, Query


@dataclass(frozen=True)
class ItemLists:
    """Lists of B queries.

    Attributes:
        items: (B, K) numbers of `ListRecommender`, 0 after the end of a list.
        covering: (B, K) True for slots with a personal source (not in `records.IMPERSONAL`).
    """

    items: NDArray[np.int64]
    covering: NDArray[np.bool_]

    @property
    def covering_share(self) -> NDArray[np.float64]:
        """(B,) share of slots with a personal source; 0 for an empty list."""
        sizes = np.count_nonzero(self.items, axis=1)
        share: NDArray[np.float64] = np.count_nonzero(self.covering, axis=1) / np.maximum(sizes, 1)
        return share


class ListRecommender:
    """Recommender of one placement that returns lists of ``k`` items as numbers.

    The number of an item is its item_ix; items outside the table get numbers after its end when a list first holds them.
    """

    def __init__(self, bundle: Bundle, catalog: Catalog, placement: str, k: int) -> None:
        self.recommender = Recommender(bundle, catalog)
        self.k = k
        self.settings: Placement = self.recommender.placement(placement)
        self._table = bundle.items.ids
        self.query = Query(user_id="", now=0, n=k, placement=placement)
        self._beyond: dict[str, int] = {}
        self._lock = threading.Lock()  # of `_beyond`

    def for_thread(self) -> ListRecommender:
        """Return a recommender of the same lists and numbers for another thread."""
        other = copy.copy(self)  # with the same numbers of items outside the table
        other.recommender = Recommender(self.recommender.bundle, self.recommender.catalog.copy())
        return other

    @property
    def n_beyond(self) -> int:
        """Number of items outside the table that a list holds."""
        return len(self._beyond)

    def encode(self, states: StateBatch, now: NDArray[np.int64]) -> tuple[EncodedBatch, CandidateMask]:
        """Encode the states at each ``now`` and apply the filters of the placement."""
        encoded = self.recommender.encode(states, now)
        queries = [self.query] * len(encoded)
        return encoded, self.recommender.candidate_mask(encoded, queries, self.settings)

    def recommend(self, states: StateBatch, now: NDArray[np.int64]) -> ItemLists:
        """Recommend the placement's list for each state."""
        encoded, allowed = self.encode(states, now)
        queries = [self.query] * len(encoded)
        fused = self.recommender.fuse_sources(encoded, allowed, queries, self.settings, self.k)
        return self.lists(encoded, allowed, fused)

    def lists(
        self, encoded: EncodedBatch, allowed: CandidateMask, fused: FusedTopK, stages: Sequence[str] | None = None
    ) -> ItemLists:
        """Return the fused items of each query and fill the free slots.

        Args:
            stages: Stages of the fallback; None: those of the bundle.
        """
        items = np.zeros((len(encoded), self.k), dtype=np.int64)
        covering = np.zeros(items.shape, dtype=bool)
        width = min(self.k, fused.items.shape[1])
        items[:, :width] = fused.items[:, :width]
        is_covering = np.array([*(name not in IMPERSONAL for name in fused.names), False])  # index -1: an empty slot
        covering[:, :width] = is_covering[fused.sources[:, :width]]
        if stages is None:
            is_cold = [self.recommender.slots.is_cold(encoded, b, self.settings) for b in range(len(encoded))]
            items[is_cold], covering[is_cold] = 0, False
        has_cold = stages is None and (self.settings.cold_slots(self.k) > 0 or self.settings.own_cold_slots(self.k) > 0)
        for b in range(len(items)) if has_cold else np.flatnonzero(items[:, -1] == 0).tolist():
            cold = self.recommender.slots.cold_items(encoded, allowed, b, self.settings, self.k) if has_cold else []
            if not cold and items[b, -1]:
                continue
            k_warm = self.k - len(cold)
            items[b, k_warm:], covering[b, k_warm:] = 0, False
            used = [self._table.ids[item_ix - 1] for item_ix in items[b, : np.count_nonzero(items[b])].tolist()]
            slots = self.recommender.slots.fallback(
                encoded,
                allowed,
                b,
                self.query,
                self.settings,
                [*used, *(item_id for item_id, _ in cold)],
                k_warm - len(used),
                stages,
            )
            slots += cold
            for rank, (item_id, source) in enumerate(slots, start=len(used)):
                items[b, rank] = self._number(item_id)
                covering[b, rank] = source not in IMPERSONAL
        return ItemLists(items, covering)

    def _number(self, item_id: str) -> int:
        number = self._table.index(item_id)
        if number:
            return number
        with self._lock:
            return self._beyond.setdefault(item_id, len(self._table) + 1 + len(self._beyond))

    def numbers(self, item_ids: Sequence[str]) -> NDArray[np.int64]:
        """(n,) numbers of items; 0 for an item outside the table that no list holds."""
        numbers = self._table.lookup(item_ids, len(item_ids)).astype(np.int64)
        for index in np.flatnonzero(numbers == 0).tolist() if self._beyond else ():
            numbers[index] = self._beyond.get(item_ids[index], 0)
        return numbers

    def ids(self, items: NDArray[np.int64]) -> list[list[str]]:
        """Raw ids of (Q, K) numbers, without empty slots."""
        used, index = np.unique(items, return_inverse=True)
        beyond = list(self._beyond)
        names = np.array([self._id(number, beyond) for number in used.tolist()], dtype=object)
        rows: list[list[str]] = names[index.reshape(items.shape)].tolist()
        return [row[:size] for row, size in zip(rows, np.count_nonzero(items, axis=1).tolist(), strict=True)]

    def _id(self, number: int, beyond: Sequence[str]) -> str:
        if number == 0:
            return ""
        return self._table.ids[number - 1] if number <= len(self._table) else beyond[number - len(self._table) - 1]
