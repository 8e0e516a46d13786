"""Catalog items outside a bundle's item table, with features from their fields."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np

from recloop.bundle import Bundle
from recloop.features.encode import attribute_codes
from recloop.recommend.catalog import Catalog
from recloop.records import Item

SELECTED_BYTES: Final = 32 * 2**20
"""Memory of the items of recent conditions; those of the newest one are always kept."""
ID_BYTES: Final = 120
"""Estimate for an id in a list, and for the row of an item in a derived order."""

Derived = TypeVar("Derived")


class Selected:
    """Items that pass a condition.

    Attributes:
        ids: Raw ids, ascending. features: (n, D).
    """

    def __init__(self, catalog: Catalog, version: int, ids: list[str], features: np.ndarray) -> None:
        self.ids = ids
        self.features = features
        self._catalog = catalog
        self._version = version
        self._derived: Any = None

    @property
    def nbytes(self) -> int:
        """Estimate of the memory, with one derived value."""
        return 3 * self.features.nbytes + ID_BYTES * len(self.ids)

    def is_current(self, catalog: Catalog, version: int) -> bool:
        """Return True if no item outside the table has changed."""
        return self._catalog is catalog and self._version == version

    def derived(self, derive: Callable[[], Derived]) -> Derived:
        """Return what its only reader derives from the items, computed once."""
        if self._derived is None:
            self._derived = derive()
        value: Derived = self._derived
        return value


class OutsideItems:
    """Items without a row that have a known field; kept until one of them changes."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._selected: OrderedDict[str, Selected] = OrderedDict()
        self._nbytes = 0
        self._codes: dict[str, tuple[Item, np.ndarray]] = {}

    def select(self, catalog: Catalog, text: str, derive: Callable[[np.ndarray], np.ndarray]) -> Selected:
        """Return the shown items that pass a condition.

        Args:
            derive: Features (n, D) of field codes (n, C); the same function in each call.
        """
        vocabulary = self._bundle.items.ids
        version = catalog.outside_version(vocabulary)
        selected = self._selected.get(text)
        if selected is None or not selected.is_current(catalog, version):
            items = [catalog.get(item_id) for item_id in sorted(catalog.latest(text, vocabulary))]
            listed = [item for item in items if item is not None]
            codes = self._codes_of(listed)
            has_fields = codes.any(axis=1)
            ids = [listed[n].item_id for n in np.flatnonzero(has_fields)]
            self._keep(text, Selected(catalog, version, ids, derive(codes[has_fields])))
        self._selected.move_to_end(text)
        return self._selected[text]

    def _keep(self, text: str, selected: Selected) -> None:
        earlier = self._selected.get(text)
        self._nbytes += selected.nbytes - (0 if earlier is None else earlier.nbytes)
        self._selected[text] = selected
        self._selected.move_to_end(text)
        while self._nbytes > SELECTED_BYTES and len(self._selected) > 1:
            self._nbytes -= self._selected.popitem(last=False)[1].nbytes

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
