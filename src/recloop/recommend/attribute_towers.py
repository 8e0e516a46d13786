"""Fallback ``attributes``: rank users and items without history by their fields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from recloop.bundle import Bundle
from recloop.features.encode import EncodedBatch, attribute_codes
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import CandidateMask
from recloop.recommend.sources import open_session
from recloop.recommend.top_k import DEPTH

USER_FIELD = "user."


class AttributeTowers:
    """Towers of a bundle, which also rank catalog items outside the item table."""

    def __init__(self, bundle: Bundle) -> None:
        self._user, self._item = (open_session(bundle.graphs[name]) for name in ("user.onnx", "item.onnx"))
        self._inputs = {node.name for node in self._user.get_inputs()}
        self._bundle = bundle
        self._items = bundle.arrays["item_vectors"]
        self._cold: tuple[tuple[str, str], list[str], np.ndarray] | None = None

    def best(self, catalog: Catalog, encoded: EncodedBatch, allowed: CandidateMask, b: int) -> Iterator[str]:
        """Return raw ids for query b, best first; empty for a user without a known field.

        Ties: table, then id bytes.
        """
        user_columns = [column for column, name in enumerate(encoded.context_names) if name.startswith(USER_FIELD)]
        if not encoded.context[b, user_columns].any():
            return
        yield from self._by_vector(self._user_vector(encoded.context[b : b + 1]), catalog, allowed, b)

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
            vector = self._item.run(None, {"codes": codes.astype(np.int64)})[0][0]
            yield from self._by_vector(vector, catalog, allowed, b)

    def _by_vector(self, vector: np.ndarray, catalog: Catalog, allowed: CandidateMask, b: int) -> Iterator[str]:
        """Return raw ids by their inner product with a vector (D,)."""
        cold_ids, cold = self._items_without_row(catalog, allowed.text)
        yield from ranked(self._items @ vector, allowed, b, self._bundle.items.ids.ids, cold_ids, cold @ vector)

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

    def _items_without_row(self, catalog: Catalog, text: str) -> tuple[list[str], np.ndarray]:
        """Return shown rowless items that pass a condition, and their vectors (n, D).

        Ids ascend.
        """
        key = (catalog.version, text)
        if self._cold is None or self._cold[0] != key:
            ids = sorted(catalog.latest(text, self._bundle.items.ids))
            items = [catalog.get(item_id) for item_id in ids]
            rows = [None if item is None else item.attributes for item in items]
            codes, _ = attribute_codes("item", self._bundle.spec, self._bundle.fields, rows)
            has_fields = np.asarray(codes.any(axis=1))
            vectors = np.zeros((0, self._items.shape[1]), np.float32)
            if has_fields.any():
                vectors = self._item.run(None, {"codes": codes[has_fields].astype(np.int64)})[0]
            self._cold = (key, [ids[n] for n in np.flatnonzero(has_fields)], vectors)
        return self._cold[1], self._cold[2]


def ranked(
    scores: np.ndarray, allowed: CandidateMask, b: int, ids: Sequence[str], cold_ids: Sequence[str], cold: np.ndarray
) -> Iterator[str]:
    """Merge table items and items without a row for query b into one ranking.

    Ties: table, then id bytes.

    Args:
        scores: (N+1,) scores of the table, -inf: excluded. ids: ids of its rows.
        cold: (n,) scores of ``cold_ids``, which ascend.
    """
    all_scores = np.concatenate([scores, cold])
    all_scores[: len(scores)][~allowed.mask] = -np.inf
    all_scores[allowed.banned[b]] = -np.inf
    for index in np.lexsort((np.arange(len(all_scores)), -all_scores))[:DEPTH].tolist():
        if all_scores[index] == -np.inf:
            return
        yield ids[index - 1] if index < len(scores) else cold_ids[index - len(scores)]
