"""Item and user attributes: all columns except the id as one typed JSON object."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import polars as pl

from recloop.config import Field
from recloop.data.numbers import read_numbers
from recloop.data.tables import Table
from recloop.features.categories import with_categories
from recloop.files import JsonTree
from recloop.storage.event_rows import object_text

NUMBER_PATTERN: Final = r"^-?(0|[1-9]\d*)(\.\d+)?$"
"""Canonical number texts; ``01``, ``+1`` and ``1e5`` stay text."""


def typed_columns(table: Table) -> pl.DataFrame:
    """Convert a CSV's text columns to numbers and booleans; empty texts become null."""
    columns = []
    for column in table.frame.iter_columns():
        text = pl.select(pl.when(column.str.strip_chars() != "").then(column)).to_series().alias(column.name)
        columns.append(_typed(text, table.separator))
    return pl.DataFrame(columns)


def typed_rows(table: Table) -> list[JsonTree]:
    """Rows of a table as objects; texts become numbers and booleans."""
    frame = table.frame if table.kind == "parquet" else typed_columns(table)
    rows: list[JsonTree] = frame.to_dicts()
    return rows


def _typed(text: pl.Series, separator: str) -> pl.Series:
    present = text.drop_nulls()
    if not len(present):
        return text
    if present.str.to_lowercase().is_in(["true", "false"]).all():
        return (text.str.to_lowercase() == "true").alias(text.name)
    if present.str.contains(NUMBER_PATTERN).all():
        if present.str.contains(".", literal=True).any():
            return text.cast(pl.Float64)
        integers = text.cast(pl.Int64, strict=False)
        return integers if integers.null_count() == text.null_count() else text
    if separator != "," and present.str.contains(r"^-?[\d.]*\d(,\d+)?$").all():
        numbers, is_wrong, decimal_style = read_numbers(text, separator)
        if decimal_style and not is_wrong.any():
            return numbers.alias(text.name)
    return text


def attribute_texts(rows: list[JsonTree], key: str, fields: Mapping[str, Field] | None = None) -> list[str]:
    """JSON object of every row without its id: sorted keys, no missing values.

    Args:
        fields: Features by name; attributes of kind ``categories`` become lists.
    """
    plain = (
        {name: value for name, raw in row.items() if name != key and (value := _plain(raw)) is not None} for row in rows
    )
    return [object_text(with_categories(row, fields or {})) for row in plain]


def object_texts(column: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Compact JSON texts of a column of objects, and a mask of rows without an object.

    The column holds texts or structs; an empty value becomes null.
    """
    texts: list[str | None] = []
    is_wrong: list[bool] = []
    for raw in column.to_list():
        text = None if raw is None or raw == "" else _object(raw)
        texts.append(text)
        is_wrong.append(text is None and raw is not None and raw != "")
    return pl.Series(column.name, texts, dtype=pl.String), pl.Series(is_wrong, dtype=pl.Boolean)


def _object(raw: Any) -> str | None:
    try:
        value = msgspec.json.decode(raw) if isinstance(raw, str) else _plain(raw)
    except (msgspec.DecodeError, RecursionError):
        return None
    return object_text(value) if isinstance(value, dict) else None


def _plain(value: Any) -> Any:
    """A value as a JSON type; None if it is missing."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value or None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value)
