"""Fallback ``attributes``: rank users and items without history by their fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from recloop.bundle import Bundle
from recloop.features.encode import EncodedBatch, attribute_codes
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import CandidateMask
from recloop.recommend.outside_items import OutsideItems
from recloop.recommend.search import VectorSearch
from recloop.recommend.sources import open_session, scan_table
from recloop.recommend.top_k import DEPTH

USER_FIELD = "user."


class AttributeTowers:
    """Towers of a bundle, which also rank catalog items outside the item table."""

    def __init__(self, bundle: Bundle) -> None:
        self._user, self._item = (open_session(bundle.graphs[name]) for name in ("user.onnx", "item.onnx"))
        self._inputs = {node.name for node in self._user.get_inputs()}
        self._bundle = bundle
        self._items = bundle.arrays["item_vectors"]
        self._search = VectorSearch(scan_table(bundle))
        self.outside = OutsideItems(bundle)

    def best(self, catalog: Catalog, encoded: EncodedBatch, allowed: CandidateMask, b: int) -> Iterator[str]:
        """Return raw ids for query b, best first; empty for a user without a known field.

        Ties: table, then id bytes.
        """
        user_columns = [column for column, name in enumerate(encoded.context_names) if name.startswith(USER_FIELD)]
        if not encoded.context[b, user_columns].any():
            return
        yield from self._by_vector(self._user_vector(encoded.context[b : b + 1]), catalog, allowed, b)

    def cold_items(self, catalog: Catalog, encoded: EncodedBatch, allowed: CandidateMask, b: int) -> Sequence[str]:
        """Return the items outside the table for query b by the user tower, best first."""
        cold = self.outside.select(catalog, allowed.text, self._item_vectors)
        if not cold.ids:
            return cold.ids
        scores = cold.features @ self._user_vector(encoded.context[b : b + 1])
        return [
            cold.ids[row]
            for row in _best_rows(scores, DEPTH + len(allowed.banned_ids[b]) + len(allowed.unavailable)).tolist()
        ]

    def similar_to(self, catalog: Catalog, item_id: str, allowed: CandidateMask, b: int) -> Iterator[str]:
        """Return raw ids near an item for query b, best first.

        The result is empty for an item without a row and without a known field.
        """
        item_ix = self._bundle.items.ids.index(item_id)
        if item_ix:
            yield from self._by_vector(self._items[item_ix], catalog, allowed, b)
            return
        item = catalog.get(item_id)
        codes, _ = attribute_codes(
            "item", self._bundle.spec, self._bundle.fields, [None if item is None else item.attributes]
        )
        if codes.any():
            yield from self._by_vector(self._item_vectors(codes)[0], catalog, allowed, b)

    def _by_vector(self, vector: np.ndarray, catalog: Catalog, allowed: CandidateMask, b: int) -> Iterator[str]:
        """Return raw ids by their inner product with a vector (D,)."""
        cold = self.outside.select(catalog, allowed.text, self._item_vectors)
        best = self._search.best(vector, allowed, b, DEPTH)
        yield from ranked(best, self._bundle.items.ids.ids, cold.ids, cold.features @ vector)

    def _user_vector(self, context: np.ndarray) -> np.ndarray:
        dim = self._items.shape[1]
        feeds = {
            "history": np.zeros((1, 1, dim), np.float32),
            "moments": np.zeros((1, 1), np.int64),
            "mask": np.zeros((1, 1), bool),
            "context": context.astype(np.int64),
        }
        vector: np.ndarray = self._user.run(None, {name: feeds[name] for name in self._inputs})[0][0]
        return vector

    def _item_vectors(self, codes: np.ndarray) -> np.ndarray:
        """(n, D) vectors of field codes (n, C)."""
        if not len(codes):
            return np.zeros((0, self._items.shape[1]), np.float32)
        vectors: np.ndarray = self._item.run(None, {"codes": codes.astype(np.int64)})[0]
        return vectors


def ranked(
    best: tuple[np.ndarray, np.ndarray], ids: Sequence[str], cold_ids: Sequence[str], cold: np.ndarray
) -> Iterator[str]:
    """Merge table items and items without a row into one ranking.

    Ties: table, then id bytes.

    Args:
        best: Best item_ix of the table and their scores, descending; -inf: excluded. ids: ids of its rows.
        cold: (n,) scores of ``cold_ids``, which ascend.
    """
    items, table_scores = best
    table_items = items[table_scores > -np.inf]
    cold_rows = _best_rows(cold, DEPTH)
    both = np.concatenate([table_scores[: len(table_items)], cold[cold_rows]])
    for n in np.argsort(-both, kind="stable")[:DEPTH].tolist():
        yield ids[table_items[n] - 1] if n < len(table_items) else cold_ids[cold_rows[n - len(table_items)]]


def _best_rows(scores: np.ndarray, depth: int) -> np.ndarray:
    """Return the rows of the largest scores above -inf, descending, ties by row."""
    rows = np.flatnonzero(scores > -np.inf)
    if len(rows) > depth:
        border = np.partition(scores[rows], len(rows) - depth)[len(rows) - depth]
        rows = rows[scores[rows] >= border]
    best: np.ndarray = rows[np.argsort(-scores[rows], kind="stable")[:depth]]
    return best
