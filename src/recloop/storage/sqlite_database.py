"""Store in a SQLite file."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from recloop.storage import sqlite
from recloop.storage.database import Database, StoreSchema
from recloop.storage.sqlite import ReaderPool, SqliteConnection


class SqliteDatabase(Database):
    """File with the tables of one store."""

    def __init__(self, file: Path, schema: StoreSchema) -> None:
        self.file = file
        self.files = sqlite.open_files(file)
        self.name = file.name
        self.recovery = f"restore {file} with its -wal file from a backup"
        self._schema = schema

    def open_writer(self) -> SqliteConnection:
        schema = self._schema
        return sqlite.open_writer(self.file, schema.version, schema.script, schema.pragmas, schema.migrations)

    def open_reader(self) -> SqliteConnection:
        return sqlite.open_reader(self.file, self._schema.version, self._schema.script, self._schema.views)

    def open_readers(self) -> ReaderPool:
        return ReaderPool(self.file, self._schema.version, self._schema.script, self._schema.views)

    def transaction(self, connection: SqliteConnection) -> AbstractContextManager[None]:
        return sqlite.transaction(connection)

    def close_writer(self, connection: SqliteConnection) -> None:
        sqlite.close_writer(connection)

    def copy_to(self, file: Path) -> None:
        if self.file.exists():
            sqlite.copy_database(self.file, file)

    def release_space(self, connection: SqliteConnection) -> None:
        sqlite.release_space(connection)

    def rewrite(self) -> None:
        sqlite.rewrite(self.file)

    def size_bytes(self) -> int:
        return sqlite.bytes_of(self.file)
