"""Attribute columns: the values of catalog items as typed columns for conditions.

The items of a bundle fix the types of their fields; the current values of all items decide about further fields. The
prevalent type counts, so that a few values of another type break no condition: they are read as missing if the type is
number or Boolean. A condition on a field of mixed values that is not valid for its first type is tried with the second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from typing import Any, Final

import numpy as np
import polars as pl

from recloop.errors import UserError
from recloop.features import conditions
from recloop.features.categories import as_categories
from recloop.features.value_text import as_text
from recloop.recommend.journal import Journal
from recloop.records import ITEM_ID, Item

MIN_STALE_ROWS: Final = 1_024
STALE_SHARE: Final = 8
"""A column is read again if more than 1 in this many rows and `MIN_STALE_ROWS` changed since."""
PREVALENT_SHARE: Final = 0.9
"""A type of at least this share of a field's values is the only type of the field."""
MAX_TYPED_ROWS: Final = 100_000
"""Items of a bundle that decide about the types of its fields."""


class ValueType(IntEnum):
    """Type of an attribute's value; objects are text."""

    LIST = 0
    BOOLEAN = 1
    NUMBER = 2
    TEXT = 3
    MISSING = 4


DTYPES: Final[Mapping[ValueType, pl.DataType]] = {
    ValueType.LIST: pl.List(pl.String),
    ValueType.BOOLEAN: pl.Boolean(),
    ValueType.NUMBER: pl.Float64(),
    ValueType.TEXT: pl.String(),
}


@dataclass(frozen=True)
class ColumnTypes:
    """Type of a column, and a second one that leaves out the values of other types."""

    first: ValueType
    second: ValueType


@dataclass(frozen=True)
class Condition:
    """Condition, compiled for the types of its columns.

    Attributes:
        columns: Type in which the condition reads each column.
        types: Types of the columns when it was compiled.
    """

    expr: pl.Expr
    columns: dict[str, ValueType]
    types: dict[str, ColumnTypes]

    def has_same_values(self, previous: Item | None, item: Item) -> bool:
        """True if two versions of an item surely have the same values in all columns."""
        if previous is None:
            return False
        for name in self.columns:
            value, before = item.attributes.get(name), previous.attributes.get(name)
            if type(value) is not type(before) or value != before or isinstance(value, list | dict):
                return False
        return True


class FieldTypes:
    """Number of values of each type by field; decides the types of the columns."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._counts: dict[str, list[int]] = {}
        shapes = Counter((tuple(row), tuple(map(type, row.values()))) for row in rows)  # few of many rows
        for (names, python_types), n_rows in shapes.items():
            for name, python_type in zip(names, python_types, strict=True):
                self._counts.setdefault(name, [0] * len(ValueType))[_value_type(python_type)] += n_rows

    @property
    def names(self) -> list[str]:
        """Names of all fields, sorted."""
        return sorted(self._counts)

    def __contains__(self, name: object) -> bool:
        return name in self._counts

    def has_value(self, name: str) -> bool:
        """True if a field has a value that is not null."""
        return any(self._counts[name][: ValueType.MISSING])

    def replace(self, previous: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Count the values of a new version of an item instead of its previous ones."""
        for name, value in row.items():
            counts = self._counts.get(name)
            if counts is None:
                counts = self._counts[name] = [0] * len(ValueType)
            counts[_value_type(type(value))] += 1
        for name, value in previous.items():
            counts = self._counts[name]
            counts[_value_type(type(value))] -= 1
            if not any(counts):
                del self._counts[name]

    def column(self, name: str) -> ColumnTypes:
        """Types of a column: the prevalent one.

        For mixed values list before text before others.
        """
        counts = self._counts[name][: ValueType.MISSING]
        prevalent = ValueType(max(range(len(counts)), key=counts.__getitem__))
        if counts[prevalent] and counts[prevalent] >= PREVALENT_SHARE * sum(counts):
            return ColumnTypes(prevalent, prevalent)
        n_list, n_boolean, n_number, n_text = counts
        if n_list:
            first = ValueType.LIST
        elif not n_number and not n_text:
            first = ValueType.BOOLEAN
        elif not n_boolean and not n_text:
            first = ValueType.NUMBER
        else:
            first = ValueType.TEXT
        if first in {ValueType.BOOLEAN, ValueType.NUMBER} or not (n_boolean or n_number):
            return ColumnTypes(first, first)
        return ColumnTypes(first, ValueType.NUMBER if n_number >= n_boolean else ValueType.BOOLEAN)


def fixed_types(rows: Iterable[Mapping[str, Any]]) -> dict[str, ColumnTypes]:
    """Types of the fields of a bundle's items; fields without a value are left out."""
    types = FieldTypes(islice(rows, MAX_TYPED_ROWS))
    return {name: types.column(name) for name in types.names if types.has_value(name)}


def mistyped(attributes: Mapping[str, Any], types: Mapping[str, ColumnTypes]) -> str:
    """Name the attributes that conditions read as missing; empty without any."""
    parts = []
    for name, value in attributes.items():
        pair, found = types.get(name), _value_type(type(value))
        if pair is not None and found is not ValueType.MISSING and not _is_read(found, pair):
            parts.append(f"{name}: {found.name.lower()}, the live bundle has {pair.first.name.lower()}")
    return f"{'; '.join(parts)}; filters read it as missing" if parts else ""


def _is_read(found: ValueType, pair: ColumnTypes) -> bool:
    """True if a column of these types has a value of a type; lists and texts have all."""
    return found in (pair.first, pair.second) or pair.first in (ValueType.LIST, ValueType.TEXT)


ITEM_ID_TYPES: Final = ColumnTypes(ValueType.TEXT, ValueType.TEXT)


class AttributeColumns:
    """Columns of a catalog's items, which evaluate conditions.

    A column is read from all items once. Rows that changed later are evaluated from the items themselves, so a new
    version of an item costs one row.

    Args:
        items: Items by catalog row, shared with the catalog.
        journal: Changed rows, shared with the catalog.
    """

    def __init__(self, items: Sequence[Item], journal: Journal) -> None:
        self._items = items
        self._journal = journal
        self._types: FieldTypes | None = None
        self.fixed: Mapping[str, ColumnTypes] = {}  # by the bundle
        self._columns: dict[tuple[str, ValueType], tuple[int, pl.Series]] = {}  # end of the journal, values
        self.n_reads = 0  # columns read from all items

    @property
    def types(self) -> FieldTypes:
        """Types of all fields; counted at the first use."""
        if self._types is None:
            self._types = FieldTypes(item.attributes for item in self._items)
        return self._types

    @property
    def names(self) -> list[str]:
        """Fields that a condition may name: item_id and all attributes."""
        return [ITEM_ID, *sorted({*self.types.names, *self.fixed} - {ITEM_ID})]

    def replace(self, previous: Item | None, item: Item) -> None:
        """Update the types for a new version of an item."""
        if self._types is not None:
            self._types.replace({} if previous is None else previous.attributes, item.attributes)

    def adopt(self, earlier: AttributeColumns, changed: Mapping[int, Item | None]) -> None:
        """Keep what was read for an earlier version of the same items.

        Args:
            changed: Rows that changed since, with their items before.
        """
        if self._types is None and earlier._types is not None:
            self._types = earlier._types
            for row, previous in changed.items():
                self.replace(previous, self._items[row])
        for key, column in earlier._columns.items():
            if key not in self._columns or self._columns[key][0] < column[0]:
                self._columns[key] = column

    def compile(self, text: str, key: str) -> Condition:
        """Check a condition for the current types.

        Raises:
            UserError: it does not parse, names an unknown field or compares different types.
        """
        types = {name: self._column_types(name) for name in self.names}
        try:
            return _compiled(text, key, types, {name: pair.first for name, pair in types.items()})
        except UserError:
            second = {name: pair.second for name, pair in types.items()}
            if all(pair.first == pair.second for pair in types.values()):
                raise
            try:
                return _compiled(text, key, types, second)
            except UserError:
                pass
            raise  # the error for the columns' first types

    def is_current(self, condition: Condition) -> bool:
        """True if the types of the condition's columns did not change."""
        known = self.types
        return all(
            (name == ITEM_ID or name in self.fixed or name in known) and self._column_types(name) == types
            for name, types in condition.types.items()
        )

    def evaluate(self, condition: Condition) -> np.ndarray:
        """(n,) bool by catalog row: the item's attributes pass."""
        passes = np.zeros(len(self._items), dtype=bool)
        if not condition.columns:
            passes[:] = pl.select(condition.expr).item()
            return passes
        columns = [self._column(name, value_type) for name, value_type in condition.columns.items()]
        oldest = min(end for end, _ in columns)
        n_rows = min(len(values) for _, values in columns)
        frame = pl.DataFrame([values[:n_rows] for _, values in columns])
        passes[:n_rows] = frame.select(condition.expr).to_series().to_numpy()
        changed = self._journal.since(oldest)
        assert changed is not None  # `_column` reads older columns again
        if changed:
            rows = np.fromiter(changed, np.int64, len(changed))
            passes[rows] = self.evaluate_rows(condition, rows)
        return passes

    def evaluate_rows(self, condition: Condition, rows: np.ndarray) -> np.ndarray:
        """(n,) bool: the attributes of the items of some catalog rows pass."""
        if not condition.columns:
            return np.full(len(rows), pl.select(condition.expr).item(), dtype=bool)
        items = [self._items[row] for row in rows.tolist()]
        frame = pl.DataFrame([_series(name, items, value_type) for name, value_type in condition.columns.items()])
        passes = np.empty(len(rows), dtype=bool)
        passes[:] = frame.select(condition.expr).to_series().to_numpy()
        return passes

    def _column_types(self, name: str) -> ColumnTypes:
        if name == ITEM_ID:
            return ITEM_ID_TYPES
        return self.fixed.get(name) or self.types.column(name)

    def _column(self, name: str, value_type: ValueType) -> tuple[int, pl.Series]:
        """Return the end of the journal when a column was read, and its values then."""
        column = self._columns.get((name, value_type))
        end = self._journal.end
        max_stale = max(MIN_STALE_ROWS, len(self._items) // STALE_SHARE)
        if column is None or column[0] < self._journal.start or end - column[0] > max_stale:
            self.n_reads += 1
            column = self._columns[name, value_type] = (end, _series(name, self._items, value_type))
        return column


def _compiled(text: str, key: str, types: Mapping[str, ColumnTypes], value_types: Mapping[str, ValueType]) -> Condition:
    schema = {name: DTYPES[value_type] for name, value_type in value_types.items()}
    rule = conditions.parse(text, schema, key)
    names = sorted(rule.columns)
    return Condition(rule.expr, {name: value_types[name] for name in names}, {name: types[name] for name in names})


def _series(name: str, items: Sequence[Item], value_type: ValueType) -> pl.Series:
    """(n,) values of a field; null for a missing value and for one of another type."""
    if name == ITEM_ID:
        return pl.Series(name, [item.item_id for item in items], dtype=pl.String)
    values = [item.attributes.get(name) for item in items]
    return pl.Series(name, _READERS[value_type](values), dtype=DTYPES[value_type])


def _lists(values: list[Any]) -> list[list[str] | None]:
    return [as_categories(value) for value in values]  # an empty list is missing


def _booleans(values: list[Any]) -> list[bool | None]:
    return [value if isinstance(value, bool) else None for value in values]


def _numbers(values: list[Any]) -> list[float | None]:
    return [float(value) if type(value) is int or type(value) is float else None for value in values]


def _texts(values: list[Any]) -> list[str | None]:
    return [None if value is None else as_text(value) for value in values]


_READERS: Final[Mapping[ValueType, Callable[[list[Any]], list[Any]]]] = {
    ValueType.LIST: _lists,
    ValueType.BOOLEAN: _booleans,
    ValueType.NUMBER: _numbers,
    ValueType.TEXT: _texts,
}
_TYPES: Final[dict[type, ValueType]] = {
    list: ValueType.LIST,
    bool: ValueType.BOOLEAN,
    int: ValueType.NUMBER,
    float: ValueType.NUMBER,
    type(None): ValueType.MISSING,
}


def _value_type(python_type: type) -> ValueType:
    return _TYPES.get(python_type, ValueType.TEXT)
