"""Backups of stores in a database and in files: each restores into both, with every row and number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer
from servers import PATIENCE, Server

from recloop.errors import UserError
from recloop.pipeline import backup as backups
from recloop.pipeline.restored_stores import FILES
from recloop.project import Project, open_project
from recloop.storage import Retraction, control_database, open_log

CLI = Callable[..., tuple[int, str, str]]
Serving = Callable[..., Server]
TABLES = ("events", "items", "users")
PAUSED = """
import sys, time
from recloop.pipeline import backup
from recloop.storage import postgres_fill
from recloop.storage.postgres import PostgresConnection, PostgresDatabase
def pause():
    print("paused", flush=True)
    time.sleep(3600)
filled = []
"""
IN_THE_FIRST_TRANSACTION = """
copied = postgres_fill.copy_rows
def slow(source, target, schema):
    copied(source, target, schema)
    pause()
postgres_fill.copy_rows = slow
"""
BETWEEN_THE_COMMITS = """
marked, committed = PostgresDatabase.mark_unfinished, PostgresConnection.commit
def mark(self, connection):
    marked(self, connection)
    filled.append(connection)
def commit(self):
    committed(self)
    if len(filled) == 2:
        pause()
PostgresDatabase.mark_unfinished, PostgresConnection.commit = mark, commit
"""
BEFORE_THE_FOLDER_IS_IN_PLACE = "backup._put_in_place = lambda staged, to: pause()"
BEFORE_THE_END = "postgres_fill.finish = lambda stores: pause()"
COMMAND = """
from recloop.cli import main
main()
"""


def view(number: int) -> dict[str, Any]:
    user_id, item_id = f"u{number % 60:02}", f"i{number % 80:02}"
    return {"user_id": user_id, "item_id": item_id, "event_type": "view", "event_id": f"e{number}", "value": number / 3}


def use(server: Server) -> None:
    """Post rows of every kind, identify, retract, move a release and record decisions."""
    client = server.client
    rows = [view(n) for n in range(200)]
    rows.append({"user_id": "phone", "item_id": "i01", "event_type": "purchase", "event_id": "of the phone"})
    assert client.post("/v1/events", json=rows).json()["accepted"] == len(rows)
    assert client.post("/v1/identify", json={"anonymous_id": "phone", "user_id": "u01"}).json()["moved"] == 1
    assert client.delete("/v1/events/e7").status_code == 200
    assert client.patch("/v1/items/i03", json={"hidden": True}).status_code == 200
    assert client.post("/v1/users", json={"user_id": "u02", "attributes": {"age": "60+"}}).status_code == 200
    assert client.post("/v1/admin/reload", json={}).status_code == 200
    assert client.delete("/v1/users/u05").status_code == 200
    for n in range(30):
        assert client.get(f"/v1/recommend/u{n:02}").status_code == 200
    server.decided()


def content(project: Project) -> dict[str, Any]:
    """Every row of log and control store that a reader sees, and the numbers of the next rows."""
    control = project.open_control()
    with project.open_log() as log:
        return {
            **{table: getattr(log, table)().rows() for table in TABLES},
            "identities": log.identities(),
            "retractions": log.retractions(),
            "last_seq": log.last_seq(),
            "releases": control.releases(),
            "audit": [row for row in control.audit_rows() if row.action != "restore"],
            "audit is whole": control.check_audit().problem,
            "pending": control.pending(),
        }


@pytest.fixture
def used(serving: Serving, shop: Project) -> Project:
    """A project over a database after some use."""
    server = serving(shop.root)
    use(server)
    assert server.stop() == 0
    shop.open_control().submit([Retraction(3, "quarantine")], by="test", at=1)
    return shop


def restored(cli: CLI, copy: Path, to: Path, stores: str) -> Project:
    code, out, err = cli("restore", str(copy), "--to", str(to), "--stores", stores)
    assert code == 0, err
    assert "decisions rebuilt" in out
    return open_project(to)


def test_backup_of_a_database_restores_into_files_and_into_another_database(
    used: Project, address: str, cli: CLI, serving: Serving, tmp_path: Path, postgres: PostgresServer
) -> None:
    before = content(used)
    assert before["audit"]
    assert cli("-C", used.root, "backup", str(tmp_path / "copy"))[0] == 0
    assert {"control.db", "decisions.db", "log.db"} <= {file.name for file in (tmp_path / "copy" / "store").iterdir()}
    in_files = restored(cli, tmp_path / "copy", tmp_path / "files", FILES)
    assert in_files.config.stores.log == "sqlite:///store/log.db"
    assert content(in_files) == before
    assert cli("-C", in_files.root, "backup", str(tmp_path / "copy-2"))[0] == 0
    back = restored(cli, tmp_path / "copy-2", tmp_path / "back", address)
    assert (back.config.stores.log, back.config.stores.control) == (address, address)
    assert content(back) == before
    assert not [*(back.root / "store").glob("log.db*"), *(back.root / "store").glob("control.db*")]
    assert postgres.password not in cli("-C", back.root, "status", "--json")[1]
    for project in (in_files, back):
        assert cli("-C", project.root, "audit", "--verify")[0] == 0
        server = serving(project.root)
        assert server.client.post("/v1/events", json=view(8)).json()["duplicate"] == 1
        assert server.client.post("/v1/events", json={**view(8), "event_id": "new"}).json()["accepted"] == 1
        assert server.client.get("/v1/users/u05").status_code == 404
        assert server.stop() == 0
        with project.open_log() as log:
            assert log.event_seq("new") == before["last_seq"] + 2  # the pending retraction is number 1


def test_backup_while_serving_has_every_row_acknowledged_before_it(
    shop: Project, serving: Serving, cli: CLI, tmp_path: Path
) -> None:
    server, until = serving(shop.root), threading.Event()
    acknowledged: list[str] = []

    def post() -> None:
        while not until.is_set():
            names = [f"e{len(acknowledged) + n}" for n in range(20)]
            rows = [{"user_id": name, "item_id": "i01", "event_type": "view", "event_id": name} for name in names]
            assert server.client.post("/v1/events", json=rows).json()["accepted"] == 20
            acknowledged.extend(names)

    thread = threading.Thread(target=post)
    thread.start()
    end = time.monotonic() + PATIENCE
    while len(acknowledged) < 200:
        assert time.monotonic() < end
        time.sleep(0.01)
    before = list(acknowledged)
    assert cli("-C", shop.root, "backup", str(tmp_path / "copy"))[0] == 0
    until.set()
    thread.join()
    assert len(acknowledged) > len(before)
    with restored(cli, tmp_path / "copy", tmp_path / "files", FILES).open_log() as log:
        seqs, ids = log.events()["seq"].to_list(), log.events()["event_id"].to_list()
    assert set(before) <= set(ids)
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


def test_restore_into_a_database_with_rows_is_refused_and_changes_nothing(used: Project, tmp_path: Path) -> None:
    """As without --stores: the configuration of the backup names the database of the living project."""
    backups.backup(used, tmp_path / "copy")
    before = content(used)
    with pytest.raises(UserError, match=r"stores\.log=.*expected a database without rows of recloop") as caught:
        backups.restore(tmp_path / "copy", tmp_path / "back")
    assert used.config.stores.log not in str(caught.value)
    assert content(used) == before
    assert not (tmp_path / "back").exists()


def kill_restore(copy: Path, to: Path, address: str, at: str) -> None:
    """Begin a restore and kill it where ``at`` pauses."""
    words = [sys.executable, "-c", f"{PAUSED}{at}{COMMAND}", "restore", copy, "--to", to, "--stores", address]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "paused\n"
        os.kill(process.pid, signal.SIGKILL)


def rows_in(postgres: PostgresServer, address: str) -> list[bool]:
    """Whether log and control store have committed rows."""
    with postgres.connect(address.rpartition("/")[2]) as session:
        tables = ("recloop_log.events", "recloop_control.releases")
        return [session.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()[0] for table in tables]


@pytest.mark.parametrize(
    ("at", "rows"),
    [
        (IN_THE_FIRST_TRANSACTION, [False, False]),
        (BETWEEN_THE_COMMITS, [False, True]),
        (BEFORE_THE_FOLDER_IS_IN_PLACE, [True, True]),
    ],
)
def test_restore_that_is_killed_can_be_repeated(
    used: Project, address: str, postgres: PostgresServer, cli: CLI, tmp_path: Path, at: str, rows: list[bool]
) -> None:
    backups.backup(used, tmp_path / "copy")
    open_log(address, tmp_path, write=True).close()  # the tables exist, so that their rows can be counted
    control_database(address, tmp_path).open_writer().close()
    kill_restore(tmp_path / "copy", tmp_path / "back", address, at)
    assert rows_in(postgres, address) == rows
    assert not (tmp_path / "back").exists()
    back = restored(cli, tmp_path / "copy", tmp_path / "back", address)
    assert content(back) == content(used)
    assert [row.action for row in back.open_control().audit_rows()].count("restore") == 1
    with pytest.raises(UserError, match="expected a database without rows of recloop"):
        backups.restore(tmp_path / "copy", tmp_path / "second", stores=address)


def test_project_of_a_restore_that_is_killed_at_its_end_is_whole(
    used: Project, address: str, cli: CLI, serving: Serving, tmp_path: Path
) -> None:
    backups.backup(used, tmp_path / "copy")
    kill_restore(tmp_path / "copy", tmp_path / "back", address, BEFORE_THE_END)
    back = open_project(tmp_path / "back")
    assert content(back) == content(used)
    server = serving(back.root)
    assert server.client.post("/v1/events", json=view(900)).json()["accepted"] == 1
    assert server.stop() == 0
    kept = content(back)
    with pytest.raises(UserError, match="expected a database without rows of recloop"):
        backups.restore(tmp_path / "copy", tmp_path / "second", stores=address)
    assert content(back) == kept


@pytest.mark.parametrize("stores", ["mysql://u:secret@host/db", "sqlite:///x.db", "database"])
def test_other_stores_are_refused(used: Project, cli: CLI, tmp_path: Path, stores: str) -> None:
    backups.backup(used, tmp_path / "copy")
    code, _, err = cli("restore", str(tmp_path / "copy"), "--to", str(tmp_path / "back"), "--stores", stores)
    assert (code, "expected postgresql://USER@HOST:PORT/DATABASE or files" in err) == (2, True)
    assert "secret" not in err
    assert not (tmp_path / "back").exists()
