"""Migration of a project of an earlier version: its steps, its backup, and kills between and within stores."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from recloop.errors import Locked, UserError
from recloop.pipeline import migration
from recloop.pipeline.migration import SCHEMAS, migrate, plan
from recloop.project import Project, open_project
from recloop.storage import locks
from recloop.storage.sqlite import copy_database

FIXTURE = Path(__file__).parents[1] / "storage" / "fixtures" / "schema-3"
FIRST = {"log": 1, "decisions": 3, "control": 3}
"""Schemas of the fixture."""


@pytest.fixture
def old(tmp_path: Path) -> Project:
    folder = shutil.copytree(FIXTURE, tmp_path / "shop")
    (folder / "recloop.toml").write_text("", "utf-8")  # its keys had other names then; the stores are under test
    return open_project(folder)


def schemas(root: Path) -> dict[str, int]:
    found = {}
    for name in FIRST:
        with closing(sqlite3.connect(root / "store" / f"{name}.db")) as connection:
            found[name] = int(connection.execute("PRAGMA user_version").fetchone()[0])
    return found


def content(project: Project) -> dict[str, Any]:
    """Rows of every store, read by this version."""
    with project.open_log() as log, project.open_decisions() as decisions:
        return {
            "events": log.events().rows(),
            "retractions": log.retractions(),
            "decisions": decisions.rows(),
            "releases": project.open_control().releases(),
            "pending": project.open_control().pending(),
        }


NEWEST = {name: SCHEMAS[name].version for name in FIRST}


def test_dry_run_lists_the_steps_and_changes_nothing(old: Project, cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = cli("-C", old.root, "migrate", "--dry-run")
    assert code == 0
    expected = [f"{name}.db {n} -> {n + 1}" for name, first in FIRST.items() for n in range(first, NEWEST[name])]
    assert out.splitlines() == expected
    assert schemas(old.root) == FIRST


def test_migration_keeps_every_row_and_makes_a_backup_first(old: Project, tmp_path: Path) -> None:
    before = content(old)
    with pytest.raises(UserError, match="--backup"):
        migrate(old, "")
    assert schemas(old.root) == FIRST
    done = migrate(old, str(tmp_path / "copy"))
    assert schemas(old.root) == NEWEST
    assert content(old) == before
    assert schemas(tmp_path / "copy") == FIRST
    assert done.backup == str(tmp_path / "copy")
    again = migrate(old, str(tmp_path / "copy"))
    assert (again.steps, again.backup) == ([], ""), "nothing to do, so no backup"


@pytest.mark.parametrize("n_stores", range(len(FIRST)))
@pytest.mark.parametrize("within", [False, True])
def test_killed_migration_goes_on_at_the_next_call(
    old: Project, monkeypatch: pytest.MonkeyPatch, n_stores: int, within: bool
) -> None:
    """SIGKILL before a store, or between its last statement and its commit."""
    before = content(old)
    right = migration._migrate
    count = [0]

    def kill(project: Project, store: migration.StoreMigration) -> None:
        if count[0] == n_stores:
            if not within:
                os.kill(os.getpid(), signal.SIGKILL)
            file = migration._files(project)[store.store]
            connection = sqlite3.connect(file, isolation_level=None)
            connection.execute("BEGIN IMMEDIATE")
            for number in range(store.schema, store.newest):
                for statement in SCHEMAS[store.store].migrations[number].split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {store.newest}")
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1
        right(project, store)

    with monkeypatch.context() as patch:
        patch.setattr(migration, "_migrate", kill)
        process = multiprocessing.get_context("fork").Process(
            target=migrate, args=(old, ""), kwargs={"no_backup": True}
        )
        process.start()
        process.join(60)
    assert process.exitcode == -signal.SIGKILL
    done = [name for name, version in schemas(old.root).items() if version == NEWEST[name]]
    assert done == list(FIRST)[:n_stores]
    assert content(old) == before
    migrate(old, "", no_backup=True)
    assert schemas(old.root) == NEWEST
    assert content(old) == before


def test_migration_beside_a_service_is_refused(old: Project) -> None:
    with locks.writer_lock(old.root, "serve"), pytest.raises(Locked):
        migrate(old, "", no_backup=True)
    assert schemas(old.root) == FIRST


def test_newer_and_damaged_stores_are_refused(old: Project, tmp_path: Path) -> None:
    file = old.store / "decisions.db"
    copy_database(file, tmp_path / "kept.db")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="schema 99: expected schema 6 or older"):
        plan(old)
    file.write_bytes(b"no database" * 1_000)
    with pytest.raises(UserError, match=r"decisions\.db"):
        plan(old)
    shutil.copy(tmp_path / "kept.db", file)
    assert [store.store for store in plan(old)] == list(FIRST)
