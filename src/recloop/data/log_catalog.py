"""Attributes of items and users that are columns of the log."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from recloop.data.tables import Table


def entity_table(tables: Sequence[Table], key: str, names: Sequence[str]) -> Table:
    """Table of one row per id with the last filled cell of each column.

    Args:
        tables: Shaped tables of the log with these columns; a column that a file lacks is null.
        key: Id column.
        names: Attribute columns.
    """
    frames = [table.frame.select(key, *(name for name in names if name in table.frame.columns)) for table in tables]
    rows = pl.concat(frames, how="diagonal_relaxed")
    rows = rows.filter(_filled(key, rows.schema[key]).is_not_null())
    newest = [_filled(name, rows.schema[name]).drop_nulls().last().alias(name) for name in rows.columns if name != key]
    entities = rows.group_by(key, maintain_order=True).agg(newest)
    first = tables[0]
    return Table(first.source, first.kind, first.encoding, first.separator, tuple(entities.columns), entities, {})


def _filled(name: str, kind: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    return pl.when(column.str.strip_chars() != "").then(column) if kind == pl.String else column
