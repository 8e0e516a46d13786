"""Availability of items at a time: sold out, not published yet, or expired.

The result depends only on the catalog, the rules and the time, so that `verify` rebuilds a list as it was answered. A request
compares its time with the interval of the last result; only when an item crosses a border are the arrays read again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from recloop.config import Data
from recloop.features.timestamp_text import parse_timestamp
from recloop.features.vocabulary import Vocabulary
from recloop.policy import CatalogRules
from recloop.recommend.catalog import Catalog
from recloop.recommend.table_mask import TableMask

ALWAYS: Final = np.iinfo(np.int64).min
NEVER: Final = np.iinfo(np.int64).max
UNAVAILABLE: Final = frozenset(
    {"0", "false", "no", "none", "discontinued", "inactive", "not available", "out of stock", "outofstock", "sold out",
     "soldout", "unavailable"}
)  # fmt: skip
"""Texts of an item that cannot be bought, in lower case, with blanks for underscores and dashes."""
MASK_BYTES: Final = 32 * 2**20
"""Memory limit of the masks of table items."""


class Unavailable(NamedTuple):
    """Items that no list shows at a time.

    Attributes:
        item_ix: (n,) int32 items of the table.
        ids: Raw ids outside the table.
        version: Number of this result; equal numbers mean equal items.
    """

    item_ix: np.ndarray
    ids: frozenset[str]
    version: int


NOTHING: Final = Unavailable(np.zeros(0, dtype=np.int32), frozenset(), 0)


class Availability:
    """Items of a catalog that cannot be shown at a time, for one item table."""

    def __init__(self, vocabulary: Vocabulary, rules: CatalogRules) -> None:
        self._vocabulary = vocabulary
        self._rules = rules
        self._names = frozenset({rules.availability, rules.published, rules.expires} - {""})
        self._data = Data(timezone=rules.timezone)
        self._has_rules = False
        self._position: int | None = None
        self._start = np.zeros(0, dtype=np.int64)  # by catalog row: shown from this time on
        self._end = np.zeros(0, dtype=np.int64)  # by catalog row: not shown from this time on
        self._item_ix = np.zeros(0, dtype=np.int32)  # by catalog row
        self._is_out = np.zeros(0, dtype=bool)  # by catalog row, at the time of the current result
        self._now = ALWAYS
        self._low, self._high = ALWAYS, NEVER  # times with the current result: low <= now < high
        self._current = NOTHING
        self._n_versions = 0
        self._masks: OrderedDict[int, TableMask] = OrderedDict()  # of the current result, by the version of the mask

    def at(self, catalog: Catalog, now: int) -> Unavailable:
        """Return the items that are unavailable, not published yet or expired at a time."""
        self.catch_up(catalog)
        if not self._low <= now < self._high:
            self._select(catalog, now)
        return self._current

    def mask(self, table: TableMask, unavailable: Unavailable) -> TableMask:
        """Return a mask without the unavailable items.

        It is the same object for the same arguments.
        """
        if not len(unavailable.item_ix):
            return table
        known = self._masks.get(table.version)
        if known is None:
            known = table.patched(unavailable.item_ix, np.zeros(len(unavailable.item_ix), dtype=bool))
            self._masks[table.version] = known
            while len(self._masks) > max(1, MASK_BYTES // len(table.mask)):
                self._masks.popitem(last=False)
        return known

    def catch_up(self, catalog: Catalog) -> None:
        """Read the rows that changed since the last call."""
        position = catalog.position
        if position == self._position and len(self._start) == len(catalog):
            return
        changed = None if self._position is None else catalog.changed_since(self._position)
        n_known = len(self._start)
        rows = range(len(catalog)) if changed is None else sorted({*changed, *range(n_known, len(catalog))})
        self._grow(catalog)
        if self._has_rules or catalog.has_any_field(self._names, rows):
            self._has_rules = True  # also after the last such attribute was removed
            self._read(catalog, rows)
        self._position = position

    def _grow(self, catalog: Catalog) -> None:
        """Add new catalog rows without a restriction."""
        n_known, n_rows = len(self._start), len(catalog)
        if n_rows == n_known:
            return
        ids = (catalog.row(row).item_id for row in range(n_known, n_rows))
        self._item_ix = np.concatenate([self._item_ix, self._vocabulary.lookup(ids, n_rows - n_known)])
        self._start = np.concatenate([self._start, np.full(n_rows - n_known, ALWAYS)])
        self._end = np.concatenate([self._end, np.full(n_rows - n_known, NEVER)])
        self._is_out = np.concatenate([self._is_out, np.zeros(n_rows - n_known, dtype=bool)])

    def _read(self, catalog: Catalog, rows: range | list[int]) -> None:
        """Set the spans of rows, and whether they are out at the time of the last result."""
        has_changed = False
        for row in rows:
            start, end = self._span(catalog.row(row).attributes)
            if (start, end) == (self._start[row], self._end[row]):
                continue
            self._start[row], self._end[row] = start, end
            self._is_out[row] = not start <= self._now < end
            for border in (start, end):
                if border <= self._now:
                    self._low = max(self._low, border)
                else:
                    self._high = min(self._high, border)
            has_changed = True
        if has_changed:
            self._set_current(catalog)

    def _span(self, attributes: Mapping[str, Any]) -> tuple[int, int]:
        """Times from which an item is shown and no longer shown."""
        rules = self._rules
        if not is_available(attributes.get(rules.availability)):
            return NEVER, NEVER
        return (
            self._time(attributes.get(rules.published), ALWAYS),
            self._time(attributes.get(rules.expires), NEVER),
        )

    def _time(self, value: Any, default: int) -> int:
        """Time of an attribute; ``default`` without one, or if it is not a time."""
        if value is None or value == "" or not isinstance(value, str | int | float):
            return default
        try:
            return parse_timestamp(value, self._data)
        except ValueError:
            return default

    def _select(self, catalog: Catalog, now: int) -> None:
        """Compute the result at a time, and the interval in which it holds."""
        is_started, is_ended = self._start <= now, self._end <= now
        self._is_out = ~is_started | is_ended
        self._now = now
        self._low = max(
            int(self._start.max(where=is_started, initial=ALWAYS)), int(self._end.max(where=is_ended, initial=ALWAYS))
        )
        self._high = min(
            int(self._start.min(where=~is_started, initial=NEVER)), int(self._end.min(where=~is_ended, initial=NEVER))
        )
        self._set_current(catalog)

    def _set_current(self, catalog: Catalog) -> None:
        """Make the result of the rows that are out."""
        out = np.flatnonzero(self._is_out)
        item_ix = self._item_ix[out]
        ids = frozenset(catalog.row(row).item_id for row in out[item_ix == 0].tolist())
        self._n_versions += 1
        self._masks.clear()
        self._current = Unavailable(item_ix[item_ix > 0], ids, self._n_versions) if len(out) else NOTHING


def is_available(value: Any) -> bool:
    """Return False for 0 or less, false, and a text such as ``out_of_stock``."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value > 0
    return not isinstance(value, str) or value.strip().lower().replace("_", " ").replace("-", " ") not in UNAVAILABLE
