"""Decoded JSON values as columns of texts."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import polars as pl

from recloop.data.json.leaves import entry_of
from recloop.data.json.paths import Indices


class JsonColumn:
    """Decoded values at one path."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def key(self, name: str) -> JsonColumn:
        return JsonColumn([value.get(name) if type(value) is dict else None for value in self.values])

    def entry(self, name: str) -> JsonColumn:
        return JsonColumn([entry_of(value, name) for value in self.values])

    def elements(self) -> tuple[JsonColumn, Indices]:
        lists = [value if type(value) is list else () if value is None else (value,) for value in self.values]
        return JsonColumn(list(itertools.chain.from_iterable(lists))), np.fromiter(
            map(len, lists), np.int64, len(lists)
        )

    def series(self) -> pl.Series:
        return texts(self.values)


def texts(values: list[Any]) -> pl.Series:
    """Texts of JSON values; see `json_text`."""
    kinds = set(map(type, values))
    if kinds <= {str, type(None)}:
        return pl.Series(values, dtype=pl.String)
    if kinds <= {int, type(None)}:
        try:
            return pl.Series(values, dtype=pl.Int64).cast(pl.String)
        except (OverflowError, TypeError, pl.exceptions.PolarsError):
            pass  # an integer of more than 64 bits
    return pl.Series([value if type(value) is str else json_text(value) for value in values], dtype=pl.String)


def json_text(value: Any) -> str | None:
    """Text of a JSON value: ``1``, ``1.0`` and ``"1"`` are the same id."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)
    return str(value) if isinstance(value, int) else msgspec.json.encode(value, order="deterministic").decode()
