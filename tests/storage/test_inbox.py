"""The inbox of retractions: any process adds them, the writer applies each once."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from recloop.errors import UserError
from recloop.records import Event
from recloop.storage import Retraction, open_control, open_log
from recloop.storage.control import PendingRetraction
from recloop.storage.retractions import RESTORED, retracted_at

URL = "sqlite:///store/control.db"
MOVE = {"by": "test", "reason": "because", "evidence": {}, "at": 7}
OLD = """
CREATE TABLE releases (
    generation INTEGER PRIMARY KEY, at INTEGER NOT NULL, bundle TEXT NOT NULL, sha256 TEXT NOT NULL,
    "from" TEXT NOT NULL, "to" TEXT NOT NULL, "by" TEXT NOT NULL, reason TEXT NOT NULL, evidence TEXT NOT NULL);
INSERT INTO releases VALUES (1, 7, 'b', 'ab', '', 'registered', 'test', 'because', '{}');
PRAGMA user_version = 1"""


def test_inbox_keeps_retractions_until_they_are_applied(tmp_path: Path) -> None:
    control = open_control(URL, tmp_path)
    assert control.pending() == []
    assert not (tmp_path / "store").exists()  # reading creates no file
    control.submit([Retraction(5, "duplicates"), Retraction(3, "burst")], "recloop update", 11)
    open_control(URL, tmp_path).submit([Retraction(5, "crawler"), Retraction(9, "crawler")], "again", 12)
    waiting = control.pending()
    assert waiting == [
        PendingRetraction(1, 5, "duplicates", "recloop update", 11),
        PendingRetraction(2, 3, "burst", "recloop update", 11),
        PendingRetraction(waiting[2].id, 9, "crawler", "again", 12),
    ]
    assert waiting[0].retraction == Retraction(5, "duplicates")
    control.mark_applied([waiting[0].id, waiting[2].id])
    assert [one.retracted_seq for one in control.pending()] == [3]
    control.submit([Retraction(5, "duplicates")], "recloop update", 13)  # an update continued after a kill
    assert [one.retracted_seq for one in control.pending()] == [3]


def test_control_store_of_schema_1_is_read_and_migrated_on_write(tmp_path: Path) -> None:
    file = tmp_path / "store" / "control.db"
    file.parent.mkdir()
    connection = sqlite3.connect(file)
    connection.executescript(OLD)
    connection.close()
    before = file.read_bytes()
    control = open_control(URL, tmp_path)
    assert [row.bundle for row in control.releases()] == ["b"]
    assert control.pending() == []
    assert file.read_bytes() == before  # reading changes no file
    control.move("b", "ab", "registered", "live", expected_generation=1, **MOVE)
    control.submit([Retraction(5, "duplicates")], "x", 1)
    assert (control.generation(), [one.retracted_seq for one in control.pending()]) == (2, [5])
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA user_version").fetchone() == (5,)
    connection.close()
    newer = tmp_path / "newer"
    shutil.copytree(tmp_path / "store", newer / "store")
    connection = sqlite3.connect(newer / "store" / "control.db")
    connection.execute("PRAGMA user_version = 6")
    connection.close()
    with pytest.raises(UserError, match="schema 6: expected schema 5 or older"):
        open_control(URL, newer)


def test_control_store_of_schema_2_keeps_its_inbox(tmp_path: Path) -> None:
    file = tmp_path / "store" / "control.db"
    file.parent.mkdir()
    connection = sqlite3.connect(file)
    connection.executescript(
        OLD.replace("user_version = 1", "user_version = 2")
        + """;
        CREATE TABLE inbox (
            id INTEGER PRIMARY KEY, of_seq INTEGER NOT NULL UNIQUE, rule TEXT NOT NULL, "by" TEXT NOT NULL,
            at INTEGER NOT NULL, taken INTEGER NOT NULL DEFAULT 0);
        INSERT INTO inbox VALUES (4, 7, 'duplicates', 'recloop update', 11, 1), (5, 8, 'burst', 'recloop update', 11, 0)"""
    )
    connection.close()
    control = open_control(URL, tmp_path)
    assert [one.retracted_seq for one in control.pending()] == [8]
    assert (
        control.submit([Retraction(7, "burst"), Retraction(7, RESTORED), Retraction(8, RESTORED)], "x", 1, "why") == 2
    )
    assert [(one.id, one.retracted_seq, one.rule) for one in control.pending()] == [
        (5, 8, "burst"), (6, 7, RESTORED), (7, 8, RESTORED)
    ]  # fmt: skip


FIXTURES = Path(__file__).parent / "fixtures" / "schema-3" / "store"


def test_log_of_schema_1_reader_stays_open_over_the_migration(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES, tmp_path / "store")
    with open_log("sqlite:///store/log.db", tmp_path) as reader:
        before = reader.retractions()
        with open_log("sqlite:///store/log.db", tmp_path, write=True) as writer:
            kept = writer.append_retractions([Retraction(660, "burst")])
            assert writer.retractions() == reader.retractions() == [*before, *kept]


def test_control_of_schema_3_inbox_is_migrated_by_the_first_write(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES, tmp_path / "store")
    control = open_control(URL, tmp_path)
    (pending,) = control.pending()
    control.mark_applied([pending.id])
    assert control.pending() == []
    connection = sqlite3.connect(tmp_path / "store" / "control.db")
    row = connection.execute("SELECT retracted_seq, applied FROM inbox WHERE id = ?", (pending.id,)).fetchone()
    connection.close()
    assert row == (pending.retracted_seq, 1)


def test_retractions_and_restorations_alternate_and_keep_earlier_states(tmp_path: Path) -> None:
    log = open_log("sqlite:///store/log.db", tmp_path, write=True)
    log.append_events([Event(user_id="u", item_id=f"i{n}", timestamp=n) for n in range(3)])
    kept = log.append_retractions(
        [Retraction(1, "quarantine"), Retraction(1, "burst"), Retraction(2, RESTORED), Retraction(1, RESTORED)]
    )
    assert [(row.retracted_seq, row.rule, row.seq) for row in kept] == [(1, "quarantine", 4), (1, RESTORED, 5)]
    assert log.append_retractions([Retraction(1, RESTORED)]) == []
    log.append_retractions([Retraction(1, "quarantine"), Retraction(3, "quarantine")])
    rows = log.retractions()
    log.close()
    assert [retracted_at(rows, seq) for seq in range(3, 8)] == [set(), {1}, set(), {1}, {1, 3}]
    assert retracted_at(rows) == {1, 3}
