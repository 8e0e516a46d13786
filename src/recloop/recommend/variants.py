"""Variants: items with the same group attribute, of which a list holds one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from recloop.features.value_text import as_text
from recloop.features.vocabulary import Vocabulary
from recloop.recommend.catalog import Catalog
from recloop.recommend.fusion import FusedTopK
from recloop.recommend.new_items import first_columns


class Variants:
    """Groups of items, for one item table.

    Args:
        attribute: Name of the attribute; empty: every item is a group of its own.
    """

    def __init__(self, vocabulary: Vocabulary, attribute: str) -> None:
        self._vocabulary = vocabulary
        self._attribute = attribute
        self._position: int | None = None
        self._n_rows = 0
        self._numbers: dict[str, int] = {}
        self._codes: np.ndarray | None = None  # (N+1,) int32 by item_ix; 0: no group

    def codes(self, catalog: Catalog) -> np.ndarray | None:
        """Return the group of each table item, (N+1,) int32, 0 for none.

        The result is None if no item has a group.
        """
        if not self._attribute:
            return None
        position = catalog.position
        if position != self._position or self._n_rows != len(catalog):
            self._catch_up(catalog)
            self._position, self._n_rows = position, len(catalog)
        return self._codes

    def code(self, catalog: Catalog, item_id: str) -> int:
        """Return the group of an item, also of one outside the table; 0 for none."""
        item = catalog.get(item_id)
        return 0 if item is None else self._number(item.attributes.get(self._attribute))

    def tracker(self, catalog: Catalog, used: Iterable[str]) -> Callable[[str], bool]:
        """Return a function that is True for an item whose group was used before.

        It remembers the groups of its calls.
        """
        if self.codes(catalog) is None:
            return lambda _: False
        groups = {self.code(catalog, item_id) for item_id in used} - {0}

        def is_further(item_id: str) -> bool:
            group = self.code(catalog, item_id)
            if not group or group not in groups:
                groups.add(group)
                return False
            return True

        return is_further

    def first_of_groups(self, catalog: Catalog, items: Sequence[str], used: Sequence[str]) -> list[str]:
        """Return the items whose group is not used by ``used`` or by an earlier item."""
        is_further = self.tracker(catalog, used) if items else None
        return [item_id for item_id in items if is_further is None or not is_further(item_id)]

    def _catch_up(self, catalog: Catalog) -> None:
        changed = None if self._position is None else catalog.changed_since(self._position)
        rows = range(len(catalog)) if changed is None else sorted({*changed, *range(self._n_rows, len(catalog))})
        if self._codes is None and not catalog.has_any_field(frozenset([self._attribute]), rows):
            return
        is_first = self._codes is None or changed is None
        codes = np.zeros(len(self._vocabulary) + 1, dtype=np.int32) if is_first else self._codes
        assert codes is not None
        codes = codes.copy()  # lists under way keep the earlier array
        for row in rows:
            item = catalog.row(row)
            item_ix = self._vocabulary.index(item.item_id)
            if item_ix:
                codes[item_ix] = self._number(item.attributes.get(self._attribute))
        self._codes = codes

    def _number(self, value: Any) -> int:
        if value is None or value == "" or not isinstance(value, str | int | float):
            return 0
        return self._numbers.setdefault(as_text(value), len(self._numbers) + 1)


def one_per_group(listed: FusedTopK, codes: np.ndarray | None, k: int) -> FusedTopK:
    """Return the first ``k`` items of each list without variants of earlier items."""
    if codes is None:
        return listed
    groups = codes[listed.items]  # (B, W)
    is_kept = listed.items > 0
    for b in range(len(groups)):
        seen, first = np.unique(groups[b], return_index=True)
        is_first = groups[b] == 0
        is_first[first[seen > 0]] = True
        is_kept[b] &= is_first
    return first_columns(listed, is_kept, k)
