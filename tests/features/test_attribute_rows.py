"""Compressed attribute rows: equal to the decoded list, by index, slice and iteration."""

from __future__ import annotations

import json

import polars as pl
import pytest

from recloop.features import attribute_rows
from recloop.features.attribute_rows import AttributeRows


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    monkeypatch.setattr(attribute_rows, "ROWS_PER_BLOCK", 3)
    return [{"name": f"item é {n}", "price": n / 4, "tags": ["a", "b"][: n % 3]} for n in range(8)]


def rows_of(values: list[dict[str, object]]) -> AttributeRows:
    return AttributeRows(pl.Series([json.dumps(row) for row in values], dtype=pl.String))


def test_rows_equal_the_decoded_list(values: list[dict[str, object]]) -> None:
    rows = rows_of(values)
    assert rows == values
    assert [rows[n] for n in (7, 0, 5, -1, -8)] == [values[n] for n in (7, 0, 5, -1, -8)]
    assert rows[2:7:2] == values[2:7:2]
    assert rows != values[1:]


@pytest.mark.parametrize("row", [8, -9])
def test_row_outside_raises(values: list[dict[str, object]], row: int) -> None:
    with pytest.raises(IndexError):
        rows_of(values)[row]


def test_rows_of_an_empty_table_are_empty() -> None:
    assert list(rows_of([])) == []
