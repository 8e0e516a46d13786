"""Rows of a backup in PostgreSQL databases; a killed restore can be repeated.

    fill     check that no project uses a database, copy all rows, mark each database as unfinished, commit them in turn
    finish   after the project folder has its name: remove the marks

A process that is killed before `finish` leaves marked databases, and the next restore fills them again. The first writer
of a project removes the mark (`PostgresDatabase.open_writer`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

from recloop.errors import UserError
from recloop.storage.database import StoreSchema
from recloop.storage.postgres import PostgresConnection, PostgresDatabase
from recloop.storage.sqlite_database import SqliteDatabase
from recloop.storage.store_copy import COUNTER, copy_rows, tables


class FilledStore(NamedTuple):
    """Database of a store, and the SQLite file with the rows to write into it."""

    database: PostgresDatabase
    schema: StoreSchema
    file: Path


def fill(stores: Sequence[FilledStore]) -> None:
    """Write the rows of SQLite files into databases that no project uses.

    An error changes none of them.

    Raises:
        UserError: a database has rows of a project.
    """
    with ExitStack() as stack:
        for store in stores:
            source = stack.enter_context(closing(SqliteDatabase(store.file, store.schema).open_reader()))
            target = stack.enter_context(closing(store.database.open_unfinished()))
            stack.enter_context(store.database.transaction(target))
            _empty(target, store)
            copy_rows(source, target, store.schema)
            store.database.mark_unfinished(target)


def finish(stores: Sequence[FilledStore]) -> None:
    """Remove the marks of filled databases."""
    for store in stores:
        store.database.open_writer().close()


def _empty(target: PostgresConnection, store: FilledStore) -> None:
    """Delete the rows of an unfinished restore.

    Raises:
        UserError: the rows are those of a project.
    """
    unfinished = store.database.is_unfinished(target)
    for table in tables(store.schema):
        if unfinished:
            target.execute(f"DELETE FROM {table}")
            continue
        where = "WHERE seq > 0" if table == COUNTER else ""
        if target.execute(f"SELECT EXISTS (SELECT 1 FROM {table} {where})").fetchone()[0]:
            fix = "createdb --encoding UTF8 --template template0 DATABASE"
            raise UserError(
                f"stores.{store.schema.name}", store.database.name, "a database without rows of recloop", fix
            )
