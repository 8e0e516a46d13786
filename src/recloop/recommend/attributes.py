"""The ladder's ``attributes``: what a tower says of people and items that have no history, by their fields alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recloop.bundle import Bundle
from recloop.features.encode import Encoded, attribute_codes
from recloop.recommend.catalogue import Catalogue
from recloop.recommend.filters import Allowed
from recloop.recommend.recall import DEPTH
from recloop.recommend.scorer import session

USER_FIELD = "user."


class Attributes:
    """A bundle's towers. Cold items of the catalogue, which the item table does not know, stand in the same ranking."""

    def __init__(self, bundle: Bundle) -> None:
        self._user, self._item = (session(bundle.graphs[name]) for name in ("user.onnx", "item.onnx"))
        self._inputs = {given.name for given in self._user.get_inputs()}
        self._bundle, self._items = bundle, bundle.arrays["item_vectors"]
        self._cold: tuple[tuple[str, str], list[str], np.ndarray] | None = None

    def best(self, catalogue: Catalogue, encoded: Encoded, allowed: Allowed, b: int) -> Iterator[str]:
        """Raw ids for query b, best first; none for a person of whom no field is known. Ties: table, then id bytes."""
        own = [n for n, name in enumerate(encoded.context_names) if name.startswith(USER_FIELD)]
        if not encoded.context[b, own].any():
            return
        person = self._person(encoded.context[b : b + 1])  # (D,)
        scores = self._items @ person  # (N+1,)
        scores[~allowed.mask] = -np.inf
        scores[allowed.banned[b]] = -np.inf
        cold_ids, cold = self._outside(catalogue, allowed.text)
        whole = np.concatenate([scores, cold @ person])
        for place in np.lexsort((np.arange(len(whole)), -whole))[:DEPTH].tolist():
            if whole[place] == -np.inf:
                return
            known = place < len(scores)
            yield self._bundle.items.ids.ids[place - 1] if known else cold_ids[place - len(scores)]

    def _person(self, context: np.ndarray) -> np.ndarray:
        dim = self._items.shape[1]
        feeds = {
            "history": np.zeros((1, 1, dim), np.float32),
            "moments": np.zeros((1, 1), np.int64),
            "mask": np.zeros((1, 1), bool),
            "context": context.astype(np.int64),
        }
        vector: np.ndarray = self._user.run(None, {name: feeds[name] for name in self._inputs})[0][0]
        return vector

    def _outside(self, catalogue: Catalogue, text: str) -> tuple[list[str], np.ndarray]:
        """Shown items that pass a condition and have no row, ids ascending, and their vectors (n, D)."""
        key = (catalogue.version, text)
        if self._cold is None or self._cold[0] != key:
            ids = sorted(catalogue.latest(text, self._bundle.items.ids))
            found = [catalogue.get(item_id) for item_id in ids]
            rows = [None if item is None else item.attributes for item in found]
            codes, _ = attribute_codes("item", self._bundle.spec, self._bundle.fields, rows)
            told = np.asarray(codes.any(axis=1))
            vectors = np.zeros((0, self._items.shape[1]), np.float32)
            if told.any():
                vectors = self._item.run(None, {"codes": codes[told].astype(np.int64)})[0]
            self._cold = (key, [ids[place] for place in np.flatnonzero(told)], vectors)
        return self._cold[1], self._cold[2]
