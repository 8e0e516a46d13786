"""Paths of nested columns in data frames, such as those of Parquet files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from recloop.data.json.leaves import ENTRY_VALUE, find_leaves, main_list
from recloop.data.json.paths import EACH, Indices, PathTree, Step, expand, key_path, steps_of
from recloop.data.json.values import json_text

SEARCHED_RECORDS: Final = 5_000
"""Records in which names of entries and the list with most elements are searched."""


@dataclass(frozen=True)
class FrameColumn:
    """Values at one path; see `recloop.data.json.paths.Column`."""

    values: pl.Series

    def __len__(self) -> int:
        return len(self.values)

    def key(self, name: str) -> FrameColumn:
        kind = self.values.dtype
        if isinstance(kind, pl.Struct) and name in _fields(kind):
            return FrameColumn(self.values.struct.field(name))
        return FrameColumn(pl.Series([None]).new_from_index(0, len(self.values)))

    def entry(self, name: str) -> FrameColumn:
        entry = _entry_fields(self.values.dtype)
        if entry is None:
            return self.key(name)
        key, value = entry
        element = pl.element().struct
        first = self.values.list.eval(pl.element().filter(element.field(key) == name)).list.first()
        values = first.struct.field(ENTRY_VALUE)
        if isinstance(value, pl.Struct):
            given = [field for field in _fields(value) if field.endswith("_value")]
            values = pl.select(
                pl.coalesce(pl.lit(values.struct.field(field)).cast(pl.String) for field in given)
            ).to_series()
        return FrameColumn(values)

    def elements(self) -> tuple[FrameColumn, Indices]:
        lists = self.values
        if isinstance(lists.dtype, pl.Array):
            lists = lists.arr.to_list()
        if not isinstance(lists.dtype, pl.List):
            return FrameColumn(lists.drop_nulls()), lists.is_not_null().cast(pl.Int64).to_numpy()
        counts = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
        return FrameColumn(lists.explode(empty_as_null=False, keep_nulls=False)), counts

    def series(self) -> pl.Series:
        return self.values


@dataclass(frozen=True)
class NestedRows:
    """Columns by path, and the (n,) Int64 record of each row (None: rows are records)."""

    frame: pl.DataFrame
    records: pl.Series | None


def has_path(schema: pl.Schema, path: str) -> bool:
    """True if a path leads through nested columns."""
    kind: Any = pl.Struct(dict(schema))
    for step in steps_of(path, schema.names()):
        kind = _inner(kind, step)
        if kind is None:
            return False
    return True


def leaf_paths(schema: pl.Schema) -> list[str]:
    """Paths of the values below nested columns, without names of entries."""
    paths: list[str] = []
    for name, kind in schema.items():
        if kind.is_nested():
            _add_paths(name, kind, paths)
    return paths


def expand_frame(frame: pl.DataFrame, names: Sequence[str]) -> NestedRows:
    """Columns of the wanted paths, with one row per element of their lists."""
    tree = PathTree.of(names, frame.columns)
    rows = expand(tree, FrameColumn(frame.to_struct("")))
    expanded = pl.DataFrame([rows.columns[name].alias(name) for name in dict.fromkeys(names)])
    is_record = len(rows.owners) == len(frame) and bool(np.all(rows.owners == np.arange(len(frame))))
    return NestedRows(expanded, None if is_record else pl.Series("record", rows.owners, dtype=pl.Int64))


def expand_all(frame: pl.DataFrame) -> NestedRows:
    """All values of a frame as columns.

    The list of structs with an id that has most elements is expanded; other lists of structs are left out.
    """
    if not any(kind.is_nested() for kind in frame.schema.values()):
        return NestedRows(frame, None)
    leaves = find_leaves(frame.head(SEARCHED_RECORDS).to_dicts())
    expanded = main_list(leaves)
    names = [path for path, leaf in leaves.items() if expanded.startswith(leaf.list)]
    rows = expand_frame(frame, names)
    columns = [json_texts(column) if column.dtype.is_nested() else column for column in rows.frame.iter_columns()]
    return NestedRows(pl.DataFrame(columns), rows.records)


def json_texts(column: pl.Series) -> pl.Series:
    """JSON texts of lists or structs."""
    return pl.Series(column.name, [json_text(value) for value in column.to_list()], dtype=pl.String)


def _add_paths(path: str, kind: pl.DataType, paths: list[str]) -> None:
    if isinstance(kind, pl.Struct):
        for field in kind.fields:
            _add_paths(key_path(path, field.name), field.dtype, paths)  # type: ignore[arg-type]
    elif _is_object_list(kind) and _entry_fields(kind) is None:
        _add_paths(path + EACH, kind.inner, paths)  # type: ignore[attr-defined]
    else:
        paths.append(path)


def _inner(kind: Any, step: Step) -> Any:
    """Type after a step; None if the type has no such step."""
    if step.kind == "each":
        return kind.inner if isinstance(kind, pl.List | pl.Array) else None
    if step.kind == "entry" and (entry := _entry_fields(kind)) is not None:
        return entry[1]
    return _fields(kind).get(step.name) if isinstance(kind, pl.Struct) else None


def _fields(kind: pl.Struct) -> dict[str, Any]:
    return {field.name: field.dtype for field in kind.fields}


def _is_object_list(kind: Any) -> bool:
    return isinstance(kind, pl.List) and isinstance(kind.inner, pl.Struct)


def _entry_fields(kind: Any) -> tuple[str, Any] | None:
    """Name of the key field and type of the value of a list of entries."""
    if not _is_object_list(kind):
        return None
    fields = _fields(kind.inner)
    key = "key" if "key" in fields else "name"
    return (key, fields[ENTRY_VALUE]) if {key, ENTRY_VALUE} <= set(fields) else None
