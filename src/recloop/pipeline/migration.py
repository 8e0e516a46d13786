"""Migration of the stores to the schemas of this version, after a backup.

    plan     list each step of each store, such as ``log.db`` 1 -> 2
    backup   copy the project as `recloop backup` does
    migrate  one store after the other, each with all its steps in one transaction

A store in a PostgreSQL database is migrated when it is opened for writing, and is not listed here.

A migration that was killed goes on when it is called again: a store has its earlier schema or the newest one. `serve` and
`update` migrate the stores too when they open them; this command does it at a time of your choice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from recloop.errors import UserError
from recloop.files import JsonTree
from recloop.pipeline.backup import backup
from recloop.progress import NullProgress, Progress
from recloop.project import Project
from recloop.storage import control, decision_schema, event_schema, locks, rejected
from recloop.storage.database import StoreSchema
from recloop.storage.sqlite import check_pages, open_writer

SCHEMAS: Final[Mapping[str, StoreSchema]] = {
    "log": event_schema.LOG_SCHEMA,
    "decisions": StoreSchema(
        "decisions",
        decision_schema.SCHEMA,
        decision_schema.SCRIPT,
        decision_schema.PRAGMAS,
        decision_schema.MIGRATIONS,
    ),
    "control": control.CONTROL_SCHEMA,
    "rejected": StoreSchema("rejected", rejected.SCHEMA, rejected.SCRIPT, rejected.PRAGMAS, {}),
}
"""Stores in the order of their migration."""


@dataclass(frozen=True)
class StoreMigration:
    """Steps of one store, from its schema to the newest one."""

    store: str
    file: str
    schema: int
    newest: int

    @property
    def steps(self) -> list[str]:
        return [f"{self.file} {number} -> {number + 1}" for number in range(self.schema, self.newest)]


@dataclass(frozen=True)
class MigrationResult:
    """Result of one call, with the keys of ``recloop migrate --json``.

    ``backup`` is the folder of the backup, or empty.
    """

    stores: list[StoreMigration]
    steps: list[str]
    backup: str
    dry_run: bool

    def to_json(self) -> JsonTree:
        return asdict(self)


def migrate(
    project: Project, backup_to: str, dry_run: bool = False, progress: Progress | None = None, no_backup: bool = False
) -> MigrationResult:
    """Migrate every store that has an earlier schema.

    Args:
        backup_to: New folder for the backup that is made first; not used if there is nothing to migrate.
        dry_run: Only list the steps.
        no_backup: Migrate without a backup.

    Raises:
        UserError: no backup is named, its folder exists, or a store is damaged, too old or of a newer version.
        Locked: a service, an update or another writer uses the folder.
    """
    progress = progress or NullProgress()
    stores = plan(project)
    waiting = [store for store in stores if store.steps]
    steps = [step for store in waiting for step in store.steps]
    if dry_run or not waiting:
        return MigrationResult(stores, steps, "", dry_run)
    if not backup_to and not no_backup:
        raise UserError("--backup", "", "a new folder for the backup", "recloop migrate --backup ../before-migration")
    with locks.run_lock(project.root, "migrate"), locks.writer_lock(project.root, "migrate"):
        for store in waiting:
            check_pages(_files(project)[store.store])
        if not no_backup:
            backup(project, Path(backup_to), progress)
        for store in waiting:
            _migrate(project, store)
            for step in store.steps:
                progress.say("migrate", step)
    return MigrationResult(stores, steps, "" if no_backup else backup_to, dry_run)


def plan(project: Project) -> list[StoreMigration]:
    """Read the schema of each store that exists.

    Raises:
        UserError: a store is not a SQLite file, or was written by a newer version.
    """
    stores = []
    for name, schema in SCHEMAS.items():
        file = _files(project).get(name)
        if file is None or not file.exists():
            continue
        found = _schema_of(file)
        if found > schema.version:
            expected = f"schema {schema.version} or older"
            raise UserError(file.name, f"schema {found}", expected, "pip install --upgrade recloop")
        stores.append(StoreMigration(name, file.name, found or schema.version, schema.version))
    return stores


def _migrate(project: Project, store: StoreMigration) -> None:
    """Migrate one store in one transaction; a second call has no effect."""
    schema = SCHEMAS[store.store]
    open_writer(_files(project)[store.store], schema.version, schema.script, schema.pragmas, schema.migrations).close()


def _files(project: Project) -> dict[str, Path]:
    """SQLite files by store."""
    return {**project.store_files(), "rejected": project.store / rejected.FILE_NAME}


def _schema_of(file: Path) -> int:
    """Schema of a store; 0 if its tables do not exist yet."""
    try:
        with closing(sqlite3.connect(f"file:{file.absolute()}?mode=ro", uri=True)) as connection:
            return int(connection.execute("PRAGMA user_version").fetchone()[0])
    except sqlite3.DatabaseError as error:
        raise UserError(file.name, file, f"a SQLite file ({error})", f"restore {file} from a backup") from None
