"""Timestamps by file, stdin, POST and Python: each input gives the same time or refuses it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.config import Config, Data
from recloop.data.frames import config_for, frame_as_table
from recloop.data.read import parse_events
from recloop.data.sources import InputFile
from recloop.data.tables import Table, read_table
from recloop.errors import UserError
from recloop.features.clock_rule import received_by_end, wrong_clock
from recloop.features.timestamp_text import parse_timestamp
from recloop.ingest import bulk, parse
from recloop.ingest.body import parse_rows
from recloop.records import SECOND, Event

NOW = 1_795_010_112 * SECOND + 345_000  # 2026-11-18T13:15:12.345Z
ARRIVAL = NOW + 60 * SECOND
BERLIN = Data(timezone="Europe/Berlin")
Value = Any


def file_of(value: Value, data: Data, folder: Path, kind: str) -> int | None:
    """Read the value from a file."""
    path = folder / f"log.{kind}"
    row = {"user_id": "u", "item_id": "i", "timestamp": value}
    if kind == "csv":
        text = io.StringIO()
        csv.writer(text).writerows([row.keys(), row.values()])
        path.write_text(text.getvalue(), "utf-8")
    elif kind == "jsonl":
        path.write_text(json.dumps(row) + "\n", "utf-8")
    else:
        pl.DataFrame([row]).write_parquet(path)
    try:
        return int(
            parse_events([read_table(InputFile("data.events", path, path.name), data)], data).frame["timestamp"][0]
        )
    except UserError:
        return None


def python(value: Value, data: Data, _: Path) -> int | None:
    """Read the value as `fit` and `observe` read a frame."""
    frame = pl.DataFrame([{"user_id": "u", "item_id": "i", "timestamp": value}])
    own = config_for(frame, {"data": {"timezone": data.timezone, "time_unit": data.time_unit}}).data
    try:
        return int(parse_events([frame_as_table(frame, "events")], own).frame["timestamp"][0])
    except UserError:
        return None


def posted(value: Value, data: Data, _: Path) -> int | None:
    """Read the value as ``POST /v1/events`` reads a body."""
    body = json.dumps({"user_id": "u", "item_id": "i", "event_type": "purchase", "timestamp": value}).encode()
    (row,) = parse_rows(body, "application/json")
    event = parse.check_event(row, ARRIVAL, data)
    return event.timestamp if isinstance(event, Event) else None


def stdin(value: Value, data: Data, _: Path) -> int | None:
    """Read the value as ``recloop ingest -`` reads a line."""
    line = json.dumps({"user_id": "u", "item_id": "i", "event_type": "purchase", "timestamp": value}).encode()
    batch = bulk._checked_batch([(1, line)], Config(data=data))
    return batch.events[0].timestamp if batch.events else None


INPUTS: dict[str, Callable[[Value, Data, Path], int | None]] = {
    "csv": lambda value, data, folder: file_of(value, data, folder, "csv"),
    "jsonl": lambda value, data, folder: file_of(value, data, folder, "jsonl"),
    "parquet": lambda value, data, folder: file_of(value, data, folder, "parquet"),
    "stdin": stdin,
    "post": posted,
    "python": python,
}
TABLE: list[tuple[Value, int | None]] = [
    ("2026-11-18T13:55:12.345Z", NOW),
    ("2026-11-18T13:55:12.345", NOW - 3_600 * SECOND),  # without a zone: data.timezone
    ("2026-11-18T14:55:12.345+01:00", NOW),
    ("2026-11-18 13:55:12.345", NOW - 3_600 * SECOND),
    ("2026-11-18", 1_794_956_400 * SECOND),
    ("18.11.2026 13:55", NOW - 3_600 * SECOND - 12_345_000),
    (1_795_010_112, NOW - 345_000),
    (1_795_010_112_345, NOW),
    (1_795_010_112_345_000, NOW),
    (1_795_010_112.345, NOW),
    ("1795010112", NOW - 345_000),
    ("1795010112345", NOW),
    ("1795010112345000", NOW),
    (" 1795010112.345 ", NOW),
    (0, 0),
    (-1, None),
    ("-1", None),
    (-1.5, None),
    (1e18, 1_000_000_000 * SECOND),  # nanoseconds
    ("1e18", 1_000_000_000 * SECOND),
    ("0005-01-01T00:00:00Z", None),
    ("9999-12-31T00:00:00Z", None),
    ("2026-11-19T13:55:12.345Z", NOW + 86_400 * SECOND),  # tomorrow: read, then quarantined
    ("2026-10-25 02:30", 1_792_888_200 * SECOND),  # the first of a repeated hour
    ("2026-03-29 02:30", None),  # in a skipped hour
    ("20261118", None),
    (20261118, None),
    ("20261118135512", None),
    (46027.35, 1_767_597_840 * SECOND),  # a day of a spreadsheet: 08:24 in Berlin
    ("46027,35", 1_767_597_840 * SECOND),
    (46027, None),  # a day of a spreadsheet or an order number
    ("01/02/2026", None),  # the order of day and month is ambiguous
    ("2026-02-29", None),
    ("0000-01-01", None),
    (10**22, None),
    ("10000000000000000000000", None),
    ("yesterday", None),
    ("", None),
]


@pytest.mark.parametrize(("value", "stamp"), TABLE)
def test_timestamp_by_each_input_is_equal_or_refused(value: Value, stamp: int | None, tmp_path: Path) -> None:
    assert datetime(2026, 11, 18, 13, 55, 12, 345_000, tzinfo=UTC).timestamp() * SECOND == NOW
    inputs = (
        INPUTS if value != 10**22 else {name: INPUTS[name] for name in ("csv", "stdin", "post")}
    )  # no column type can represent it
    assert {name: read(value, BERLIN, tmp_path) for name, read in inputs.items()} == dict.fromkeys(inputs, stamp)


@pytest.mark.parametrize(
    ("stamp", "wrong"), [(-SECOND, True), (NOW, False), (NOW + 86_400 * SECOND, True), (253_402_214_400 * SECOND, True)]
)
def test_wrong_clock_by_each_input_is_quarantined(stamp: int, wrong: bool) -> None:
    """In a file the end of the log replaces the unknown arrival."""
    rows = [{"user_id": f"u{n % 9}", "timestamp": NOW - n * 3_600 * SECOND} for n in range(90)]
    frame = pl.DataFrame([*rows, {"user_id": "u", "timestamp": stamp}])
    for arrived in (received_by_end(frame), frame.with_columns(pl.lit(ARRIVAL).alias("received_at"))):
        assert wrong_clock(arrived, Config().clean).to_list() == [*[False] * 90, wrong]


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1)),  # noqa: DTZ001 - the zone is drawn separately
    st.sampled_from(
        [
            "%Y-%m-%dT%H:%M:%SZ",
            "%Y-%m-%d %H:%M",
            "%Y/%m/%d %H:%M:%S.%f",
            "%d.%m.%Y %H:%M",
            "%m/%d/%Y %I:%M %p",
            "%a %b %d %H:%M:%S -0730 %Y",
            "%b %d, %Y %I:%M:%S %p",
            "%d-%b-%y %H.%M",
            "%d/%m/%y",
            "%Y%m%d",
        ]
    ),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]),
)
def test_parse_timestamp_of_a_text_equals_that_of_a_file(moment: datetime, form: str, timezone: str) -> None:
    assert one_and_column(moment.strftime(form), Data(timezone=timezone))


@given(
    st.integers(-(10**19), 10**19) | st.floats(-1e12, 1e12).map(repr),
    st.sampled_from(["auto", "s", "ms", "us", "ns", "days", "order", "iso"]),
)
def test_parse_timestamp_of_a_number_equals_that_of_a_file(value: int | str, unit: str) -> None:
    assert one_and_column(str(value), Data(time_unit=unit))  # type: ignore[arg-type]


def one_and_column(text: str, data: Data) -> bool:
    try:
        one: int | None = parse_timestamp(text, data)
    except ValueError:
        one = None
    source = InputFile("data.events", Path("log.csv"), "log.csv")
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [text]})
    table = Table(source, "csv", "utf-8", ",", tuple(frame.columns), frame, {})
    try:
        column: int | None = int(parse_events([table], data).frame["timestamp"][0])
    except UserError:
        column = None
    near = one is not None and column is not None and abs(one - column) <= 1  # halves of a microsecond
    assert one == column or near, (text, one, column)
    return True
