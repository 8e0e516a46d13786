"""One row as a file of the import, as a posted body, as a file of ``recloop ingest`` and as a line of stdin."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from recloop.config import Config, Data
from recloop.data.read import parse_events
from recloop.data.sources import InputFile
from recloop.data.tables import read_table
from recloop.errors import UserError
from recloop.ingest import bulk, parse
from recloop.ingest.body import Rejected, parse_rows
from recloop.ingest.file_rows import read_arrivals
from recloop.records import SECOND, Event

ARRIVAL = 1_795_010_112 * SECOND
COLUMNS = ("user_id", "item_id", "timestamp", "event_type", "value", "group_id", "event_id")
Row = dict[str, Any]
Result = tuple[Any, ...] | None


def data(**settings: Any) -> Data:
    names = {"event_type": "event_type", "value": "value", "group_id": "group_id", "event_id": "event_id"}
    return Data(columns=names, **settings)  # type: ignore[arg-type]


def written(row: Row, folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    full = {**dict.fromkeys(COLUMNS), **row}
    if kind == "jsonl":
        path.write_text(json.dumps(full) + "\n", "utf-8")
    else:
        text = io.StringIO()
        csv.writer(text).writerows([full.keys(), full.values()])
        path.write_text(text.getvalue(), "utf-8")
    return path


def imported(row: Row, settings: Data, folder: Path, kind: str = "jsonl") -> Result:
    path = written(row, folder, kind)
    try:
        raw = parse_events([read_table(InputFile("data.events", path, path.name), settings)], settings)
    except UserError:
        return None
    return raw.frame.select(COLUMNS).row(0) if len(raw.frame) else None


def ingested(row: Row, settings: Data, folder: Path, kind: str = "jsonl") -> Result:
    path = written(row, folder, kind)
    try:
        raw = read_arrivals(folder, str(path), settings, ARRIVAL)
    except UserError:
        return None
    return raw.frame.select(COLUMNS).row(0) if len(raw.frame) else None


def posted(row: Row, settings: Data) -> Result:
    (parsed,) = parse_rows(json.dumps(row).encode(), "application/json")
    return of(parse.check_event(parsed, ARRIVAL, settings))


def piped(row: Row, settings: Data) -> Result:
    batch = bulk._checked_batch([(1, json.dumps(row).encode())], Config(data=settings))
    return of(batch.events[0]) if batch.events else None


def of(event: Event | Rejected) -> Result:
    return tuple(getattr(event, name) for name in COLUMNS) if isinstance(event, Event) else None


GIVEN: Row = {"user_id": "u", "item_id": "i", "timestamp": 1_735_732_800, "event_type": "view", "event_id": "e"}
NOON = 1_735_732_800 * SECOND
TABLE: list[tuple[Row, Row | None]] = [
    ({}, {}),
    ({"user_id": 1000, "item_id": 5}, {"user_id": "1000", "item_id": "5"}),
    ({"user_id": 1000.0}, {"user_id": "1000"}),
    ({"user_id": "1000.0"}, {"user_id": "1000.0"}),
    ({"user_id": 0, "event_id": 7, "group_id": 12.0}, {"user_id": "0", "event_id": "7", "group_id": "12"}),
    ({"user_id": 2**63}, {"user_id": str(2**63)}),
    ({"user_id": -4, "event_type": 2}, {"user_id": "-4", "event_type": "2"}),
    ({"user_id": ""}, None),
    ({"user_id": None}, None),
    ({"user_id": " ", "group_id": "b"}, {"user_id": "guest:b", "group_id": "b"}),
    ({"item_id": ""}, None),
    ({"item_id": "  "}, None),
    ({"group_id": "", "event_id": " "}, {"event_id": None}),
    ({"value": "9.5"}, {"value": 9.5}),
    ({"value": "1,5"}, {"value": 1.5}),
    ({"value": ""}, {}),
    ({"value": "many"}, None),
    ({"timestamp": "1735732800000"}, {}),
    ({"timestamp": 1_735_732_800_000_000}, {}),
    ({"timestamp": "2025-01-01 13:00"}, {}),  # a local time of Berlin
    ({"timestamp": "Wed Jan 01 13:00:00 +0100 2025"}, {}),
    ({"timestamp": "2026-03-29 02:30"}, None),  # in a skipped hour
    ({"timestamp": "1969-12-31T00:00:00Z"}, None),
    ({"timestamp": "9999-12-31"}, None),
    ({"timestamp": -5}, None),
    ({"timestamp": "1711-12-13"}, None),
    ({"timestamp": "soon"}, None),
    ({"timestamp": ""}, None),
]


@pytest.mark.parametrize(("given", "expected"), TABLE, ids=str)
def test_row_by_each_input_gives_the_same_event_or_is_rejected(
    given: Row, expected: Row | None, tmp_path: Path
) -> None:
    row = GIVEN | given
    settings = data(timezone="Europe/Berlin")
    result: Result = None
    if expected is not None:
        changed = {name: value for name, value in GIVEN.items() if name != "timestamp"}
        full = {**dict.fromkeys(COLUMNS), **changed, "timestamp": NOON}
        full |= expected
        result = tuple(full[name] for name in COLUMNS)
    assert imported(row, settings, tmp_path) == result
    assert ingested(row, settings, tmp_path) == result
    assert posted(row, settings) == result
    assert piped(row, settings) == result


@pytest.mark.parametrize("value", [True, 1.5])
@pytest.mark.parametrize("name", ["user_id", "item_id"])
def test_posted_id_that_is_a_fraction_or_boolean_is_rejected(name: str, value: object) -> None:
    assert posted(GIVEN | {name: value}, data()) is None
    assert piped(GIVEN | {name: value}, data()) is None


@pytest.mark.parametrize("name", ["user_id", "item_id", "event_type", "group_id", "event_id"])
def test_long_id_or_name_by_each_input_is_rejected(name: str, tmp_path: Path) -> None:
    row = GIVEN | {name: "é" * 257}
    for kind in ("csv", "jsonl"):
        assert imported(row, data(), tmp_path, kind) is None
        assert ingested(row, data(), tmp_path, kind) is None
    assert posted(row, data()) is None
    assert piped(row, data()) is None


def test_row_by_each_input_has_the_configured_form_of_ids(tmp_path: Path) -> None:
    row = GIVEN | {"user_id": "17.0", "item_id": 42}
    for form, expected in (("integer", ("17", "42")), ("zeros:4", ("17.0", "0042"))):
        settings = data(id_form=form)
        for result in (
            imported(row, settings, tmp_path), imported(row, settings, tmp_path, "csv"),
            ingested(row, settings, tmp_path), posted(row, settings), piped(row, settings),
        ):  # fmt: skip
            assert result is not None
            assert result[:2] == expected


def test_missing_user_by_each_input_is_rejected(tmp_path: Path) -> None:
    row = GIVEN | {"user_id": "guest"}
    settings = data(missing_users=("guest",))
    assert imported(row, settings, tmp_path) is None
    assert ingested(row, settings, tmp_path) is None
    assert posted(row, settings) is None
    assert piped(row, settings) is None


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_row_without_a_timestamp_has_the_time_of_arrival(kind: str, tmp_path: Path) -> None:
    row = {name: value for name, value in GIVEN.items() if name != "timestamp"}
    file = written(row, tmp_path, kind)
    text = file.read_text()
    file.write_text(text.replace("timestamp", "other"))
    raw = read_arrivals(tmp_path, str(file), data(), ARRIVAL)
    result = posted(row, data())
    assert result is not None
    assert raw.frame["timestamp"].to_list() == [ARRIVAL] == [result[2]]


def test_row_with_a_null_timestamp_has_the_time_of_arrival(tmp_path: Path) -> None:
    row = GIVEN | {"timestamp": None}
    result = posted(row, data())
    assert result is not None
    assert (ingested(row, data(), tmp_path), result[2]) == (result, ARRIVAL)


def test_row_with_a_time_offset_by_each_input_has_its_time_of_day(tmp_path: Path) -> None:
    row = GIVEN | {"timestamp": "2025-01-01", "clock": "13:00"}
    names = data().columns.model_copy(update={"time_offset": "clock"})
    settings = data(timezone="Europe/Berlin").model_copy(update={"columns": names})
    for result in (imported(row, settings, tmp_path), ingested(row, settings, tmp_path), piped(row, settings)):
        assert result is not None
        assert result[2] == NOON


def test_ingested_file_without_the_columns_of_where_is_read(tmp_path: Path) -> None:
    settings = data(where="status <> 'refunded'")
    assert ingested(GIVEN, settings, tmp_path) == ingested(GIVEN, data(), tmp_path)
    assert ingested(GIVEN | {"status": "refunded"}, settings, tmp_path) is None
