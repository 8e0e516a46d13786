"""The event log: seqs, retries, transactions over all kinds of rows, readers, schema versions."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from recloop.errors import UserError
from recloop.records import EVENT_SCHEMA, ITEM_SCHEMA, USER_SCHEMA, Event, Item, User
from recloop.storage import EventLog, open_log

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


def test_event_log_tables_have_the_documented_schemas(filled_log: EventLog) -> None:
    events = filled_log.events()
    assert events.schema == {**EVENT_SCHEMA, "rule": pl.String}
    assert events["seq"].to_list() == [101, 102, 105]
    assert filled_log.items().schema == ITEM_SCHEMA
    assert filled_log.items().row(0) == ("a", 103, 0, '{"b":"x","z":1}', True, False)
    assert filled_log.users().schema == USER_SCHEMA


def test_find_duplicates_returns_only_new_rows_with_seqs(log: EventLog) -> None:
    log.append_events([event(event_id="e")])
    with log.commit():
        arrivals = log.find_duplicates([event(event_id="e"), event("bad"), event("good")], {})
        assert [row[0] for row in arrivals.rows] == [2, 3]
        got = arrivals.receipts(log.insert_events(arrivals.rows, ["burst", None]))
    assert [(r.status, r.rule) for r in got] == [("duplicate", None), ("quarantined", "burst"), ("accepted", None)]
    assert log.events()["rule"].to_list() == [None, "burst", None]


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


@pytest.mark.parametrize("url", ["mysql://host/db", "store/log.db", "sqlite:///"])
def test_event_log_with_an_unsupported_url_raises(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"stores.log=.*expected sqlite:///PATH or postgresql://"):
        open_log(url, tmp_path)


WRITES = """
import sys
from pathlib import Path
from test_event_log import private_memory_of_writes
print(*private_memory_of_writes(Path(sys.argv[1])))
"""


def private_memory_of_writes(folder: Path) -> tuple[float, float]:
    """Private memory of this process in MiB after 75,000 rows in a log, and after as many more."""
    random.seed(0)
    held = []
    with open_log(URL, folder, write=True) as log:
        for _ in range(2):
            for _ in range(75):
                log.append_events([event(event_id=f"{random.getrandbits(128):032x}") for _ in range(1_000)])
            status = Path("/proc/self/status").read_text()
            held.append(int(status.partition("RssAnon:")[2].split()[0]) / 1024)
    return held[0], held[1]


@pytest.mark.slow
def test_memory_of_a_writer_does_not_grow_with_its_rows(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES, str(tmp_path)]
    written = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    earlier, later = map(float, written.stdout.split())
    assert later < earlier + 4
