"""The import's rows as the write path reads them: by event_id, by user and stamp, whole."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from recloop.backends.archive import Archive
from recloop.errors import UserError
from recloop.records import DAY, EVENT_SCHEMA, RULE

START = 20_000 * DAY  # 2024-10-04


def rows(*given: tuple[int, str | None, str, int]) -> pl.DataFrame:
    """Events of (seq, event_id, user_id, timestamp)."""
    full = [
        {"seq": seq, "event_id": event_id, "user_id": user, "item_id": f"i{seq}", "timestamp": stamp, "event_type": "x"}
        for seq, event_id, user, stamp in given
    ]
    return pl.DataFrame([{name: row.get(name) for name in EVENT_SCHEMA} for row in full], schema=EVENT_SCHEMA)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    days = {
        "2024-10-04": rows((3, "e3", "u", START + 5), (4, None, "v", START + 6)),
        "2024-10-05": rows((6, "e6", "u", START + DAY), (7, "e7", "u", START + DAY + 100)),
    }
    for day, frame in days.items():
        folder = tmp_path / "archive" / f"date={day}"
        folder.mkdir(parents=True)
        frame.write_parquet(folder / "events.parquet")
    taken = rows((5, "e3", "u", START + 5), (8, "e8", "u", START + DAY + 200))
    taken.with_columns(pl.lit("burst").alias(RULE)).write_parquet(tmp_path / "quarantine.parquet")
    (tmp_path / "manifest.json").write_text(json.dumps({"watermark": 8}))
    return Archive(tmp_path)


def test_it_reads_whole_and_in_order(archive: Archive) -> None:
    assert archive.watermark == 8
    assert archive.events()["seq"].to_list() == [3, 4, 6, 7]
    assert archive.events().schema == EVENT_SCHEMA
    assert archive.items() is None
    assert archive.users() is None


def test_event_ids_are_known_and_the_first_of_several_stands(archive: Archive) -> None:
    found = archive.known(["e3", "e7", "e8", "nope"])
    assert {name: event.seq for name, event in found.items()} == {"e3": 3, "e7": 7, "e8": 8}
    assert found["e7"].user_id == "u"
    assert archive.known([]) == {}


def test_rows_near_a_stamp_come_by_user_the_quarantined_too(archive: Archive) -> None:
    near = archive.between(["u"], START + DAY - 1, START + DAY + 200)
    assert near["seq"].to_list() == [6, 7, 8]
    assert near["rule"].to_list() == [None, None, "burst"]
    assert archive.between(["u", "v"], START, START + 6)["seq"].to_list() == [3, 4, 5]
    assert archive.between(["u"], START + 2 * DAY, START + 3 * DAY).is_empty()
    assert archive.between(["u"], -(10**18), 10**18)["seq"].to_list() == [3, 5, 6, 7, 8]


def test_whom_and_what_it_has_heard_of(archive: Archive) -> None:
    assert archive.heard_of("item_id", "i4")
    assert archive.heard_of("item_id", "i8")
    assert not archive.heard_of("item_id", "u")
    assert archive.heard_of("user_id", "v")


def test_nothing_prepared_yet(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=.*manifest.json: expected a prepared log; try: recloop update"):
        Archive(tmp_path)
