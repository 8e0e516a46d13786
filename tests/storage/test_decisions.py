"""Decisions: written after the answer, the first row per request, counted losses."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recloop.records import Decision
from recloop.storage import DecisionLog, open_decisions
from recloop.storage import decisions as module
from recloop.storage.accepted_count import WRITER_SLOT, AcceptedCounter, accepted_file, restart, total

URL = "sqlite:///store/decisions.db"
FIXTURES = Path(__file__).parent / "fixtures"


def decision(request_id: str = "r", **more: object) -> Decision:
    values: dict[str, object] = {
        "request_id": request_id, "role": "answer", "user_id": "u", "served_at": 10, "as_of_seq": 3, "bundle": "counts-1",
        "generation": 1, "variant": "live", "placement": "home", "n": 2, "query": {"exclude": ["x"], "filter": ""},
        "items": ["a", "b"], "scores": [0.1, 1 / 3], "sources": ["history", "popular"], "degraded": ["log"],
        "inputs": {"state": "0a1b2c3d"}, "positives": 4, "latency_us": 900,
    }  # fmt: skip
    return Decision(**(values | more))


@pytest.fixture
def decisions(tmp_path: Path) -> Iterator[DecisionLog]:
    decisions = open_decisions(URL, tmp_path, write=True)
    yield decisions
    decisions.close()


def test_decisions_round_trip(decisions: DecisionLog) -> None:
    rows = [decision(str(n), served_at=n) for n in range(5)]
    for row in rows:
        assert decisions.put(row)
    assert decisions.flush()
    assert decisions.rows() == rows
    assert decisions.rows(last=2) == rows[-2:]
    assert decisions.rows(since=1, until=3) == rows[1:3]


def wait_until(met: Callable[[], object], seconds: float = 60.0) -> bool:
    """Wait until a condition holds; return whether it did."""
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_decisions_are_written_without_a_flush(decisions: DecisionLog) -> None:
    decisions.put(decision())
    assert wait_until(lambda: len(decisions.rows()) == 1)


def test_decisions_keep_the_first_row_of_a_request(decisions: DecisionLog) -> None:
    decisions.put(decision("r", n=1))
    decisions.put(decision("r", n=2))
    decisions.put(decision("r", n=3, role="shadow"))
    decisions.put(decision("r", n=4, bundle="other"))
    decisions.flush()
    assert [row.n for row in decisions.rows()] == [1, 3, 4]


def test_decisions_with_a_repeated_key_are_dropped_and_counted(decisions: DecisionLog, tmp_path: Path) -> None:
    for _ in range(4):
        decisions.put(decision("r"))
    decisions.put(decision("s"))
    decisions.flush()
    assert (len(decisions.rows()), decisions.repeated, decisions.dropped) == (2, 3, 0)
    kept = sqlite3.connect(tmp_path / "store" / "decisions.db")
    assert kept.execute("SELECT settled, repeated FROM counts").fetchone() == (5, 3)
    kept.close()


def test_decisions_with_one_client_id_are_all_stored(decisions: DecisionLog) -> None:
    for n in range(1_000):
        decisions.put(decision(f"ours-{n}", client_request_id="page-view-7"))
    decisions.flush()
    rows = decisions.rows()
    assert len({row.request_id for row in rows}) == 1_000
    assert {row.client_request_id for row in rows} == {"page-view-7"}
    assert (decisions.repeated, decisions.dropped) == (0, 0)


SCHEMA_1 = """
CREATE TABLE decisions (
    n INTEGER PRIMARY KEY, request_id TEXT NOT NULL, role TEXT NOT NULL, user_id TEXT NOT NULL, at INTEGER NOT NULL,
    as_of INTEGER NOT NULL, bundle TEXT NOT NULL, generation INTEGER NOT NULL, variant TEXT NOT NULL,
    placement TEXT NOT NULL, k INTEGER NOT NULL, query TEXT NOT NULL, items TEXT NOT NULL, scores TEXT NOT NULL,
    sources TEXT NOT NULL, propensities TEXT, degraded TEXT NOT NULL, session_id TEXT, anonymous_id TEXT,
    positives INTEGER NOT NULL, inputs TEXT NOT NULL, micros INTEGER NOT NULL, UNIQUE (request_id, role, bundle));
CREATE INDEX decisions_at ON decisions (at);
CREATE TABLE counts (one INTEGER PRIMARY KEY CHECK (one = 1), settled INTEGER NOT NULL, dropped INTEGER NOT NULL,
    lost INTEGER NOT NULL);
INSERT INTO counts VALUES (1, 3, 0, 0);
PRAGMA user_version = 1"""


def test_decisions_of_schema_1_are_read_and_migrated_by_a_writer(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    old = sqlite3.connect(tmp_path / "store" / "decisions.db", isolation_level=None)
    old.executescript(SCHEMA_1)
    for request, role, variant in (("a", "answer", "live"), ("b", "answer", "candidate"), ("a", "shadow", "shadow")):
        old.execute(
            "INSERT INTO decisions VALUES (NULL, ?, ?, 'u', 1, 1, 'b', 1, ?, 'home', 1, '{}', '[]', '[]', '[]', NULL, "
            "'[]', NULL, NULL, 0, '{}', 0)",
            (request, role, variant),
        )
    old.close()
    expected = [("a", "answer", "live"), ("b", "answer", "candidate"), ("a", "shadow", "live")]
    reader = open_decisions(URL, tmp_path)
    assert [(row.request_id, row.role, row.assigned) for row in reader.rows()] == expected
    writer = open_decisions(URL, tmp_path, write=True)
    writer.put(decision("c", client_request_id="theirs", assigned="candidate"))
    writer.flush()
    rows = writer.rows()
    assert [(row.request_id, row.role, row.assigned) for row in rows] == [*expected, ("c", "answer", "candidate")]
    assert [row.client_request_id for row in rows] == [None, None, None, "theirs"]
    writer.close()
    reader.close()


@pytest.fixture
def schema_3(tmp_path: Path) -> Path:
    """A copy of decisions.db of schema 3 with one more row, of the role that is now called replica."""
    file = tmp_path / "store" / "decisions.db"
    file.parent.mkdir()
    shutil.copy(FIXTURES / "schema-3" / "store" / "decisions.db", file)
    connection = sqlite3.connect(file, isolation_level=None)
    names = [
        row[1] for row in connection.execute("PRAGMA table_info(decisions)") if row[1] not in {"n", "role", "variant"}
    ]
    columns = ", ".join(names)
    connection.execute(
        f"INSERT INTO decisions (role, variant, {columns}) SELECT 'twin', 'twin', {columns} FROM decisions LIMIT 1"
    )
    connection.close()
    return file


def test_decisions_schema_3_reads_the_same_before_and_after_its_migration(schema_3: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(schema_3)
    old = connection.execute("SELECT request_id, at, as_of, micros FROM decisions ORDER BY n").fetchall()
    connection.close()
    before = schema_3.read_bytes()
    with open_decisions(URL, tmp_path) as reader:
        rows, totals, newest = reader.rows(), reader.totals(), reader.newest_served_at()
        assert schema_3.read_bytes() == before
        with open_decisions(URL, tmp_path, write=True) as writer:
            assert (writer.rows(), writer.totals(), writer.newest_served_at()) == (rows, totals, newest)
        assert reader.rows() == rows  # opened before the migration
    assert [(row.request_id, row.served_at, row.as_of_seq, row.latency_us) for row in rows] == old
    assert [(row.role, row.variant) for row in rows] == [("answer", "live")] * 3 + [("replica", "replica")]


def test_decisions_migrated_file_has_the_columns_of_a_new_one(schema_3: Path, tmp_path: Path) -> None:
    open_decisions(URL, tmp_path, write=True).close()
    open_decisions(URL, tmp_path / "new", write=True).close()
    migrated, new = (
        {row[1] for row in sqlite3.connect(file).execute("PRAGMA table_info(decisions)")}
        for file in (schema_3, tmp_path / "new" / "store" / "decisions.db")
    )
    assert migrated == new
    assert not migrated & {"at", "as_of", "micros", "propensities"}


def test_decisions_failed_migration_leaves_the_old_file(
    schema_3: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.MIGRATIONS, 3, f"{module.MIGRATIONS[3]}; SELECT no_such_column FROM decisions")
    with pytest.raises(sqlite3.OperationalError, match="no_such_column"):
        open_decisions(URL, tmp_path, write=True)
    with open_decisions(URL, tmp_path) as reader:
        assert len(reader.rows()) == 4
    assert sqlite3.connect(schema_3).execute("PRAGMA user_version").fetchone() == (3,)


def test_decisions_over_the_buffer_are_dropped_and_counted(
    decisions: DecisionLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "MAX_BUFFERED_ROWS", 0)
    assert not decisions.put(decision("lost"))
    assert decisions.dropped == 1
    monkeypatch.setattr(module, "MAX_BUFFERED_ROWS", 10)
    decisions.put(decision("kept"))
    decisions.close()
    again = open_decisions(URL, tmp_path, write=True)
    assert [row.request_id for row in again.rows()] == ["kept"]
    assert again.lost == 0  # dropped is not lost
    again.close()


def test_decisions_on_a_failing_disk_are_kept_and_retried(decisions: DecisionLog, tmp_path: Path) -> None:
    decisions.flush()
    other = sqlite3.connect(tmp_path / "store" / "decisions.db", isolation_level=None)
    other.execute("ALTER TABLE counts RENAME TO hidden")
    decisions.put(decision())
    assert not decisions.flush(0.1)
    assert wait_until(lambda: decisions.failing)
    other.execute("ALTER TABLE hidden RENAME TO counts")
    other.close()
    assert decisions.flush(60.0)
    assert not decisions.failing
    assert len(decisions.rows()) == 1


def test_counter_whose_file_is_cut_while_it_is_used_goes_on(tmp_path: Path) -> None:
    """A mapped file would end the process with SIGBUS."""
    file = tmp_path / "decisions.taken"
    restart(file, 7)
    counter = AcceptedCounter(file)
    os.truncate(file, 0)
    counter.add(3)
    assert (counter.value, total(file)) == (10, 10)
    counter.close()


def _answer_and_die(root: Path) -> None:
    module.COMMIT_SECONDS = 60.0  # the second part is not written automatically
    decisions = open_decisions(URL, root, write=True)
    for n in range(5):
        decisions.put(decision(f"kept{n}"))
    decisions.flush()
    for n in range(3):
        decisions.put(decision(f"gone{n}"))
    worker = AcceptedCounter(accepted_file(decisions.file), WRITER_SLOT + 1)
    worker.add(4)
    decisions.put_many([decision("of a worker")], of_worker=True)
    os.kill(os.getpid(), 9)


def test_decisions_lost_by_a_kill_are_counted(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=_answer_and_die, args=(tmp_path,))
    child.start()
    child.join(60)
    assert child.exitcode == -9
    for _ in range(2):  # counted once over several openings
        decisions = open_decisions(URL, tmp_path, write=True)
        assert [row.request_id for row in decisions.rows()] == [f"kept{n}" for n in range(5)]
        assert decisions.lost == 3 + 4
        decisions.close()
    reader = open_decisions(URL, tmp_path)
    assert reader.lost == 3 + 4
    assert not reader.is_empty()
    reader.close()
