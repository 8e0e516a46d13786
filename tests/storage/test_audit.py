"""The hash chain of the audit log: breaks are found, writers at the same time keep it whole, old stores get it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from access import control_of
from hypothesis import given
from hypothesis import strategies as st

from recloop.storage import ControlStore, api_keys
from recloop.storage.audit import AuditAction, AuditEntry, AuditRow, chain_hash, check
from recloop.storage.sqlite_database import SqliteDatabase

FIXTURES = Path(__file__).parent / "fixtures"


def entry(number: int = 0) -> AuditEntry:
    return AuditEntry("test", AuditAction.FORGET, f"person {number}", {"number": number}, number)


@pytest.fixture
def control(tmp_path: Path) -> ControlStore:
    """A control store with five rows."""
    store = control_of(tmp_path)
    for number in range(5):
        store.record([entry(number)])
    return store


def file_of(control: ControlStore) -> Path:
    database = control._database
    assert isinstance(database, SqliteDatabase)
    return database.file


def run(control: ControlStore, *statements: str) -> None:
    connection = sqlite3.connect(file_of(control))
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statements", "problem"),
    [
        (("UPDATE audit SET who = 'other' WHERE id = 3",), "row 3 differs from its hash"),
        (("UPDATE audit SET at = at + 1 WHERE id = 1",), "row 1 differs from its hash"),
        (("UPDATE audit SET details = '{}' WHERE id = 5",), "row 5 differs from its hash"),
        (("UPDATE audit SET hash = 'f' WHERE id = 2",), "row 2 differs from its hash"),
        (("DELETE FROM audit WHERE id = 1",), "row 1 is missing"),
        (("DELETE FROM audit WHERE id = 4",), "row 4 is missing"),
        (("DELETE FROM audit WHERE id > 3",), "rows 4 to 5 are missing"),
        (("DELETE FROM audit",), "rows 1 to 5 are missing"),
        (
            (
                "UPDATE audit SET id = 9 WHERE id = 2",
                "UPDATE audit SET id = 2 WHERE id = 3",
                "UPDATE audit SET id = 3 WHERE id = 9",
            ),
            "row 2 differs from its hash",
        ),
        (
            ("DELETE FROM audit WHERE id = 2", "UPDATE audit SET id = id - 1 WHERE id > 2"),
            "row 2 differs from its hash",
        ),
    ],
)
def test_changed_removed_or_reordered_row_is_found(
    control: ControlStore, statements: tuple[str, ...], problem: str
) -> None:
    assert control.check_audit().problem == ""
    run(control, *statements)
    assert control.check_audit().problem == problem


def test_rows_after_a_cut_do_not_hide_it(control: ControlStore) -> None:
    run(control, "DELETE FROM audit WHERE id = 5")
    control.record([entry(6)])
    assert control.check_audit().problem == "row 5 is missing"


@given(st.data())
def test_any_change_of_one_value_breaks_the_chain(data: st.DataObject) -> None:
    rows: list[AuditRow] = []
    for number in range(1, 5):
        values = (number, 7, "who", "forget", "subject", json.dumps({"n": number}))
        rows.append(AuditRow(*values, chain_hash(rows[-1].hash if rows else "", values)))
    assert check(rows, 4).problem == ""
    position = data.draw(st.integers(0, 3))
    name = data.draw(st.sampled_from(["at", "who", "action", "subject", "details", "hash"]))
    value = data.draw(st.integers(0, 99) if name == "at" else st.text(max_size=5))
    changed = rows[position]._replace(**{name: value})
    if changed != rows[position]:
        rows[position] = changed
        assert check(rows, 4).problem == f"row {position + 1} differs from its hash"


def test_writers_at_the_same_time_keep_the_chain_whole(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda: [control_of(tmp_path).record([entry(n), entry(n)]) for n in range(5)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result = control_of(tmp_path).check_audit()
    assert (result.rows, result.problem) == (40, "")


def test_rows_of_a_subject_are_found(control: ControlStore) -> None:
    assert [row.id for row in control.audit_rows("person 3")] == [4]
    assert [row.id for row in control.audit_rows()] == [1, 2, 3, 4, 5]
    assert control.audit_rows("person 9") == []


def test_store_without_audit_log_is_empty_and_gets_one(tmp_path: Path) -> None:
    folder = shutil.copytree(FIXTURES / "schema-3", tmp_path / "shop")
    control = control_of(folder)
    assert control.audit_rows() == []
    assert control.check_audit() == (0, "", "")
    releases, pending = control.releases(), control.pending()
    api_keys.add(folder, control, "shop", ["read"])
    assert [(row.id, row.action, row.subject) for row in control.audit_rows()] == [(1, "key added", "shop")]
    assert (control.check_audit().problem, control.releases(), control.pending()) == ("", releases, pending)


def test_store_of_schema_4_gets_the_audit_log(control: ControlStore) -> None:
    control.move("b", "00", "", "registered", by="t", reason="", evidence={}, expected_generation=0, at=1)
    run(control, "DROP TABLE audit", "PRAGMA user_version = 4")  # the counter goes with the table
    assert control.audit_rows() == []
    control.record([entry()])
    assert (control.check_audit().rows, control.check_audit().problem) == (1, "")
    assert [row.bundle for row in control.releases()] == ["b"]


def test_key_is_not_changed_without_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = control_of(tmp_path)
    api_keys.add(tmp_path, control, "first", ["read"])

    def fail(_: object) -> None:
        raise sqlite3.OperationalError

    monkeypatch.setattr(control, "record", fail)
    actions: list[Callable[[], object]] = [
        lambda: api_keys.add(tmp_path, control, "second", ["read"]),
        lambda: api_keys.revoke(tmp_path, control, "first"),
    ]
    for action in actions:
        with pytest.raises(sqlite3.OperationalError):
            action()
    assert [key.name for key in api_keys.read(tmp_path) or ()] == ["first"]
