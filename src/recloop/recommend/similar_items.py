"""Similar items: by item vector, by co-visitation and by attributes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import numpy as np
import scipy.sparse as sp

from recloop.bundle import Bundle
from recloop.features.encode import attribute_codes
from recloop.policy import Placement
from recloop.recommend.attribute_towers import AttributeTowers, ranked
from recloop.recommend.catalog import Catalog
from recloop.recommend.count_sources import popularity_rank
from recloop.recommend.filters import CandidateMask
from recloop.recommend.outside_items import OutsideItems
from recloop.recommend.search import VectorSearch
from recloop.recommend.sources import scan_table
from recloop.recommend.top_k import DEPTH, TopK, best_row, best_sparse

LIST_KIND: Final = "similar"
SOURCES: Final = ("model", "neighbours")
"""Sources of a similar-items list: cosine of item vectors, and the co-visitation row."""
MIN_NORM: Final = np.float32(1e-12)
"""Lower bound of a vector's norm in a cosine."""
PLACEMENT: Final = Placement(list=LIST_KIND, weights=dict.fromkeys(SOURCES, 1.0), filter="", n=10)
"""Placement `similar` of a bundle that does not define one."""


class SimilarItems:
    """Similar items of a bundle."""

    def __init__(self, bundle: Bundle, towers: AttributeTowers | None) -> None:
        self._bundle = bundle
        self._towers = towers
        self._neighbours = _AttributeNeighbours(bundle)

    def recall(self, item_ids: Sequence[str], allowed: CandidateMask, weights: Mapping[str, float]) -> dict[str, TopK]:
        """Return the top 200 of each source per query item; empty for items without a row."""
        item_ix = self._bundle.items.ids.lookup(item_ids, len(item_ids))
        recalled = {}
        if weights.get("model", 0) > 0 and "item_vectors" in self._bundle.arrays:
            recalled["model"] = self._by_cosine(item_ix, allowed)
        if weights.get("neighbours", 0) > 0 or not recalled:
            recalled["neighbours"] = self._by_covisitation(item_ix, allowed)
        return recalled

    def by_attributes(self, catalog: Catalog, item_id: str, allowed: CandidateMask, b: int) -> Iterator[str]:
        """Return raw ids of items with similar attributes, best first.

        They are ranked by the bundle's towers, or by fields if it has no towers.
        """
        if self._towers is not None:
            return self._towers.similar_to(catalog, item_id, allowed, b)
        return self._neighbours.similar_to(catalog, item_id, allowed, b)

    @cached_property
    def _search(self) -> VectorSearch:
        """Search by cosine: an item's score is divided by its norm."""
        norms = np.linalg.norm(self._bundle.arrays["item_vectors"], axis=1)
        return VectorSearch(scan_table(self._bundle).scaled(1 / np.maximum(norms, MIN_NORM)))

    def warm_up(self) -> None:
        """Make what the first request needs; not on the event loop."""
        if "item_vectors" in self._bundle.arrays:
            _ = self._search

    def _by_cosine(self, item_ix: np.ndarray, allowed: CandidateMask) -> TopK:
        """Rank by cosine; one query at a time, so scores do not depend on the batch."""
        vectors = self._bundle.arrays["item_vectors"]
        recalled = TopK.empty(len(item_ix))
        for b in np.flatnonzero(item_ix).tolist():
            vector = vectors[item_ix[b]]
            direction = vector / np.maximum(np.linalg.norm(vector), MIN_NORM)  # (D,)
            recalled.put(b, *self._search.best(direction, allowed, b, DEPTH))
        return recalled

    def _by_covisitation(self, item_ix: np.ndarray, allowed: CandidateMask) -> TopK:
        """Rank by the stored co-visitation rows."""
        arrays = self._bundle.arrays
        spans = [slice(arrays["neighbours.indptr"][ix], arrays["neighbours.indptr"][ix + 1]) for ix in item_ix.tolist()]
        offsets = np.cumsum([0, *(span.stop - span.start for span in spans)])
        ids = np.concatenate([arrays["neighbours.ids"][span] for span in spans])
        weights = np.concatenate([arrays["neighbours.weights"][span] for span in spans])
        rows = sp.csr_array((weights, ids, offsets), shape=(len(spans), len(self._bundle.items) + 1))
        return best_sparse(rows, allowed, popularity_rank(self._bundle))


class _AttributeNeighbours:
    """Attribute neighbours without towers: most equal field codes, then popularity."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._outside = OutsideItems(bundle)

    def similar_to(self, catalog: Catalog, item_id: str, allowed: CandidateMask, b: int) -> Iterator[str]:
        """Return raw ids, best first; empty if no field of the item is known."""
        bundle = self._bundle
        item = catalog.get(item_id)
        query_ix = bundle.items.ids.index(item_id)
        attributes = (
            item.attributes if item is not None else bundle.items.attributes[query_ix - 1] if query_ix else None
        )
        query_codes = self._codes([attributes])[0]  # (C,)
        if not query_codes.any():
            return iter(())
        n_equal = self._n_equal(self._table, query_codes)  # (N+1,)
        cold = self._outside.select(catalog, allowed.text, lambda codes: codes)
        cold_n_equal = self._n_equal(cold.features, query_codes)
        scores = np.where(n_equal > 0, n_equal - self._popularity, -np.inf)
        cold_scores = np.where(cold_n_equal > 0, cold_n_equal - 1.0, -np.inf)
        return ranked(best_row(scores, allowed, b), bundle.items.ids.ids, cold.ids, cold_scores)

    def _n_equal(self, codes: np.ndarray, query_codes: np.ndarray) -> np.ndarray:
        """(n,) number of fields equal to the query's.

        Several categories count by the share of the query's that a row has.
        """
        n_equal = np.zeros(len(codes))
        start = 0
        for name in self._bundle.spec.item:
            stop = start + self._bundle.fields.columns(f"item.{name}")
            known = query_codes[start:stop][query_codes[start:stop] > 0].tolist()
            if known:
                columns = range(start, stop)
                n_found = sum(np.logical_or.reduce([codes[:, column] == code for column in columns]) for code in known)
                n_equal += n_found / len(known) if len(known) > 1 else n_found
            start = stop
        return n_equal

    @cached_property
    def _table(self) -> np.ndarray:
        """Return the field codes (N+1, C) of the table's items; row 0 is missing."""
        return np.asfortranarray(self._codes([None, *self._bundle.items.attributes]))  # read by column

    @cached_property
    def _popularity(self) -> np.ndarray:
        """Return the popularity rank (N+1,) as a tie-breaker below 1."""
        rank = popularity_rank(self._bundle)
        return np.asarray(rank / (len(rank) + 1))

    def _codes(self, rows: Sequence[Mapping[str, Any] | None]) -> np.ndarray:
        return attribute_codes("item", self._bundle.spec, self._bundle.fields, rows)[0]
