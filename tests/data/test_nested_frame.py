"""Nested Parquet files: the paths of JSON, with the types of the columns."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recloop.config import Data
from recloop.config.data import Cell
from recloop.data.sources import InputFile
from recloop.data.tables import read_table, sample_table


@pytest.fixture
def ga4(tmp_path: Path) -> InputFile:
    rows = [
        {
            "event_timestamp": 1769421484671015,
            "event_params": [
                {"key": "page", "value": {"string_value": "/p", "int_value": None}},
                {"key": "ga_session_id", "value": {"string_value": None, "int_value": 7}},
            ],
            "ecommerce": {"transaction_id": "T1"},
            "items": [{"item_id": "A", "price": 54.85}, {"item_id": "B", "price": None}],
        },
        {"event_timestamp": 1769421484671016, "event_params": [], "ecommerce": None, "items": []},
    ]
    pl.DataFrame(rows).write_parquet(tmp_path / "log.parquet")
    return InputFile("data.events", tmp_path / "log.parquet", "log.parquet")


def test_read_table_of_nested_parquet_has_one_row_per_element(ga4: InputFile) -> None:
    names = ["event_timestamp", "items[].item_id", "items[].price", "event_params[ga_session_id]"]
    read = read_table(ga4, Data(), [*names, "ecommerce.transaction_id", "items[].missing", "other.x"])
    assert read.frame.columns == [*names, "ecommerce.transaction_id"]
    assert read.frame.rows() == [
        (1769421484671015, "A", 54.85, "7", "T1"),
        (1769421484671015, "B", None, "7", "T1"),
        (1769421484671016, None, None, None, None),
    ]
    assert read.records is not None
    assert read.records.to_list() == [0, 0, 1]
    assert read.n_records == 2
    assert {"items[].item_id", "ecommerce.transaction_id", "event_params"} <= set(read.columns)
    assert [line for line, _ in read.locate([0, 1])] == [1, 2]
    assert '"items[].item_id":"A"' in read.locate([0])[0][1]


def test_read_table_of_nested_parquet_without_lists_keeps_rows(ga4: InputFile) -> None:
    read = read_table(ga4, Data(), ["ecommerce.transaction_id"])
    assert read.records is None
    assert read.frame["ecommerce.transaction_id"].to_list() == ["T1", None]
    assert read_table(ga4, Data()).frame.columns == ["event_timestamp", "event_params", "ecommerce", "items"]


def test_sample_table_of_nested_parquet_expands_the_items(ga4: InputFile) -> None:
    sample = sample_table(ga4, Data(), 10)
    assert sample.frame["items[].item_id"].to_list() == ["A", "B", None]
    assert sample.frame["event_params[page]"].to_list() == ["/p", "/p", None]
    assert sample.frame.schema["items[].price"] == pl.Float64


def test_read_table_of_parquet_sessions_reads_elements_of_lists(tmp_path: Path) -> None:
    frame = pl.DataFrame({"session": [1, 2], "aids": [[5, 6], None], "a.b": ["x", "y"]})
    frame.write_parquet(tmp_path / "log.parquet")
    read = read_table(
        InputFile("data.events", tmp_path / "log.parquet", "log.parquet"), Data(), ["session", "aids[]", "a.b"]
    )
    assert read.frame.rows() == [(1, 5, "x"), (1, 6, "x"), (2, None, "y")]


def test_lists_of_parquet_in_samples_and_cells_are_json_texts(tmp_path: Path) -> None:
    frame = pl.DataFrame({"session": [1, 2], "aids": [[5, 6], []], "none": [[], []]})
    frame.write_parquet(tmp_path / "log.parquet")
    source = InputFile("data.events", tmp_path / "log.parquet", "log.parquet")
    assert sample_table(source, Data(), 10).frame.rows() == [(1, "[5,6]", "[]"), (2, "[]", "[]")]
    data = Data(cell=Cell(column="aids", separator="json"))
    assert read_table(source, data, ["session", "aids"]).frame.rows() == [(1, "[5,6]"), (2, "[]")]
