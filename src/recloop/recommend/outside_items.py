"""Catalog items outside a bundle's item table, with features from their fields."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from recloop.bundle import Bundle
from recloop.features.encode import attribute_codes
from recloop.recommend.catalog import Catalog
from recloop.records import Item

MAX_CONDITIONS: Final = 8
"""Conditions whose items are kept."""


@dataclass(frozen=True)
class _Selected:
    catalog: Catalog
    version: int
    ids: list[str]
    features: np.ndarray


class OutsideItems:
    """Items without a row that have a known field; kept until one of them changes.

    Args:
        derive: Features (n, D) of field codes (n, C).
    """

    def __init__(self, bundle: Bundle, derive: Callable[[np.ndarray], np.ndarray]) -> None:
        self._bundle = bundle
        self._derive = derive
        self._selected: OrderedDict[str, _Selected] = OrderedDict()
        self._codes: dict[str, tuple[Item, np.ndarray]] = {}

    def select(self, catalog: Catalog, text: str) -> tuple[list[str], np.ndarray]:
        """Return the shown items that pass a condition, and their features (n, D).

        Ids ascend.
        """
        vocabulary = self._bundle.items.ids
        version = catalog.outside_version(vocabulary)
        selected = self._selected.get(text)
        if selected is None or selected.catalog is not catalog or selected.version != version:
            items = [catalog.get(item_id) for item_id in sorted(catalog.latest(text, vocabulary))]
            listed = [item for item in items if item is not None]
            codes = self._codes_of(listed)
            has_fields = codes.any(axis=1)
            ids = [listed[n].item_id for n in np.flatnonzero(has_fields)]
            selected = self._selected[text] = _Selected(catalog, version, ids, self._derive(codes[has_fields]))
            if len(self._selected) > MAX_CONDITIONS:
                self._selected.popitem(last=False)
        self._selected.move_to_end(text)
        return selected.ids, selected.features

    def _codes_of(self, items: Sequence[Item]) -> np.ndarray:
        """(n, C) field codes; only those of changed items are computed."""
        unknown = [item for item in items if self._codes.get(item.item_id, (None,))[0] is not item]
        rows = [item.attributes for item in unknown]
        new_codes = attribute_codes("item", self._bundle.spec, self._bundle.fields, rows)[0]
        if len(self._codes) > 2 * len(items) + len(unknown):  # most entries are of removed items
            self._codes = {item.item_id: self._codes[item.item_id] for item in items if item.item_id in self._codes}
        self._codes.update({item.item_id: (item, codes) for item, codes in zip(unknown, new_codes, strict=True)})
        if not items:
            return new_codes
        return np.array([self._codes[item.item_id][1] for item in items])
