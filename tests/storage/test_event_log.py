"""The event log: seqs, retries, transactions over all kinds of rows, readers, schema versions."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from recloop.errors import UserError
from recloop.records import EVENT_SCHEMA, ITEM_SCHEMA, USER_SCHEMA, Event, Item, User
from recloop.storage import EventLog, logged_items, open_log
from recloop.storage.event_log import UserWindow

URL = "sqlite:///store/log.db"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    log = open_log(URL, tmp_path, write=True)
    yield log
    log.close()


def event(item_id: str = "i", user_id: str = "u", **more: object) -> Event:
    return Event(**{"user_id": user_id, "item_id": item_id, "timestamp": 1, "received_at": 5, **more})


@pytest.fixture
def filled_log(log: EventLog) -> EventLog:
    """A log of three events, one item and one user after an import of 100 rows."""
    log.start_at(100)
    log.append_events([event("a"), event("b")])
    log.append_items([Item(item_id="a", attributes={"z": 1, "b": "x"}, hidden=True)])
    log.append_users([User(user_id="u", attributes={"age": "30-44"})])
    log.append_events([event("c")])
    return log


def test_event_log_numbers_all_rows_after_the_import(log: EventLog) -> None:
    log.start_at(100)
    assert log.last_seq() == 100
    assert log.is_empty()
    assert [row.seq for row in log.append_events([event("a"), event("b")])] == [101, 102]
    assert log.append_items([Item(item_id="a")])[0].seq == 103
    assert log.append_users([User(user_id="u")])[0].seq == 104
    assert log.append_events([event("c")])[0].seq == 105
    assert log.last_seq() == 105
    assert not log.is_empty()


def test_event_log_tables_have_the_documented_schemas(filled_log: EventLog) -> None:
    events = filled_log.events()
    assert events.schema == {**EVENT_SCHEMA, "rule": pl.String}
    assert events["seq"].to_list() == [101, 102, 105]
    assert filled_log.items().schema == ITEM_SCHEMA
    assert filled_log.items().row(0) == ("a", 103, 0, '{"b":"x","z":1}', True, False)
    assert filled_log.users().schema == USER_SCHEMA


def test_event_log_start_at_after_new_rows_is_refused(log: EventLog) -> None:
    log.start_at(100)
    log.start_at(40)
    assert log.last_seq() == 40
    log.append_events([event()])
    log.start_at(40)  # as a server does at each start
    with pytest.raises(UserError, match="watermark=90: expected at most 41"):
        log.start_at(90)
    assert log.last_seq() == 41


def test_event_log_events_round_trip(log: EventLog) -> None:
    full = event(
        seq=1, value=2.5, quantity=3.0, group_id="g", event_id="e", anonymous_id="an", session_id="s", placement="p",
        request_id="r", context='{"a":1}', event_type="purchase",
    )  # fmt: skip
    log.append_events([full])
    row = log.events().row(0, named=True)
    assert Event(**row) == full


def test_event_log_retry_is_duplicate_and_changed_content_conflict(log: EventLog) -> None:
    first = event(event_id="e1", value=2.0)
    got = log.append_events([first, event(event_id="e1", value=2.0), event(event_id="e1", value=3.0), event()])
    assert [(r.status, r.seq) for r in got] == [("accepted", 1), ("duplicate", 1), ("conflict", 1), ("accepted", 2)]
    again = log.append_events([event(event_id="e1", value=2.0, received_at=99), event(), event("x", event_id="e1")])
    assert [(r.status, r.seq) for r in again] == [("duplicate", 1), ("accepted", 3), ("conflict", 1)]
    assert log.events()["value"].to_list() == [2.0, None, None]


def test_event_log_retry_without_a_timestamp_is_duplicate(log: EventLog) -> None:
    log.append_events([event(event_id="e", timestamp=5, received_at=5)])
    assert log.append_events([event(event_id="e", timestamp=9, received_at=9)])[0].status == "duplicate"
    assert log.append_events([event(event_id="e", timestamp=8, received_at=9)])[0].status == "conflict"


def test_find_duplicates_recognises_imported_event_ids(log: EventLog) -> None:
    log.start_at(10)
    arrived = [event(event_id="old"), event("other", event_id="old"), event(event_id="new")]
    with log.commit():
        arrivals = log.find_duplicates(arrived, {"old": event(event_id="old", seq=7)})
        got = arrivals.receipts(log.insert_events(arrivals.rows, [None]))
    assert [(r.status, r.seq) for r in got] == [("duplicate", 7), ("conflict", 7), ("accepted", 11)]


def test_find_duplicates_returns_only_new_rows_with_seqs(log: EventLog) -> None:
    log.append_events([event(event_id="e")])
    with log.commit():
        arrivals = log.find_duplicates([event(event_id="e"), event("bad"), event("good")], {})
        assert [row[0] for row in arrivals.rows] == [2, 3]
        got = arrivals.receipts(log.insert_events(arrivals.rows, ["burst", None]))
    assert [(r.status, r.rule) for r in got] == [("duplicate", None), ("quarantined", "burst"), ("accepted", None)]
    assert log.events()["rule"].to_list() == [None, "burst", None]


def test_insert_events_after_other_rows_were_appended_raises(log: EventLog) -> None:
    with log.commit():
        arrivals = log.find_duplicates([event()], {})
    log.append_users([User(user_id="u")])
    with pytest.raises(RuntimeError, match="not the newest seq 1 plus 1"):
        log.insert_events(arrivals.rows, [None])
    assert log.last_seq() == 1
    assert log.events().is_empty()


def test_event_log_transaction_is_all_or_nothing(log: EventLog) -> None:
    def half() -> None:
        with log.commit():
            log.append_events([event()])
            log.append_users([User(user_id="u")])
            raise RuntimeError("power failure")

    with pytest.raises(RuntimeError, match="power failure"):
        half()
    assert log.last_seq() == 0
    assert log.is_empty()
    with log.commit():
        log.append_events([event()])
        assert log.last_seq() == 0  # readers see no uncommitted rows
        assert log.recent([UserWindow("u", 0, 1)])["seq"].to_list() == [1]  # the writer sees them
    assert log.last_seq() == 1


def test_event_log_reads_by_user_and_seq(log: EventLog) -> None:
    log.append_events([event("a", "u"), event("b", "v"), event("c", "u"), event("d", "u", timestamp=50)])
    assert log.events("u")["item_id"].to_list() == ["a", "c", "d"]
    assert log.events("u", after=1, until=3)["item_id"].to_list() == ["c"]
    assert log.events(until=2)["item_id"].to_list() == ["a", "b"]
    assert log.events("unknown").schema == log.events().schema
    windows = [UserWindow("u", 1, 50), UserWindow("v", 0, 0), UserWindow("u", 49, 60)]
    assert log.recent(windows)["item_id"].to_list() == ["d"]
    assert log.recent([]).schema == log.events().schema
    assert log.has_item("b")
    assert not log.has_item("z")
    log.append_events([event("z", "v")])
    assert log.has_item("z")  # rows after the last call are read
    assert log.count_recent(windows[:2]) == {"u": 1}
    assert log.has_user("v")
    assert not log.has_user("w")


def test_event_log_long_reads_use_slices(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recloop.storage.event_log.MAX_SLICE_ROWS", 7)
    log.append_events([event(str(n)) for n in range(21)])
    assert log.events()["item_id"].to_list() == [str(n) for n in range(21)]
    assert len(log.events(after=3, until=20)) == 17


def test_event_log_readers_in_other_threads_see_committed_rows(log: EventLog, tmp_path: Path) -> None:
    reader = open_log(URL, tmp_path)
    log.append_events([event()])
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(reader.last_seq()))
    thread.start()
    thread.join()
    assert seen == [1]
    with pytest.raises(RuntimeError, match="open for reading"):
        reader.append_events([event()])
    reader.close()


def test_event_log_file_is_a_durable_wal(log: EventLog, tmp_path: Path) -> None:
    log.append_events([event()])
    with log.commit() as writer:
        assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert writer.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_event_log_without_a_file_is_empty(tmp_path: Path) -> None:
    log = open_log(URL, tmp_path)
    assert log.last_seq() == 0
    assert log.events().is_empty()
    assert not (tmp_path / "store").exists()
    log.close()


def test_event_log_of_a_newer_schema_is_refused(tmp_path: Path) -> None:
    open_log(URL, tmp_path, write=True).close()
    connection = sqlite3.connect(tmp_path / "store" / "log.db")
    connection.execute("PRAGMA user_version = 6")
    connection.close()
    for write in (True, False):
        with pytest.raises(UserError, match=r"log\.db=schema 6: expected schema 5 or older; try: pip install"):
            open_log(URL, tmp_path, write=write)


def test_event_log_that_is_not_a_database_raises(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "log.db").write_text("a text file, longer than the header of a database, twice over\n" * 4)
    with pytest.raises(UserError, match="expected a SQLite file"):
        open_log(URL, tmp_path, write=True)


@pytest.mark.parametrize("url", ["postgresql://host/db", "store/log.db", "sqlite:///"])
def test_event_log_with_an_unsupported_url_raises(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stores.log=.*expected sqlite:///PATH"):
        open_log(url, tmp_path)


def test_event_log_items_are_read_in_slices(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logged_items, "SLICE_ROWS", 2)
    log.append_events([event(name, "u") for name in "abcde"])
    assert [log.has_item(name) for name in "abcdef"] == [True] * 5 + [False]
