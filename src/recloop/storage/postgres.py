"""Store in a PostgreSQL database: sessions, schema versions and outages.

A store has a database schema of its own, such as ``recloop_log``. A writing transaction holds one advisory lock, so that
seqs are assigned in commit order, also with several writers. A lost session is opened again by the next read or transaction.
"""

from __future__ import annotations

import itertools
import re
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import conninfo
from psycopg.pq import TransactionStatus

from recloop.config.store_address import POSTGRES_FORM, without_password
from recloop.errors import StoreError, UserError
from recloop.storage.database import Connection, Cursor, Database, StoreSchema
from recloop.storage.postgres_session import Session, reason_of, server_of
from recloop.storage.sqlite import empty_store
from recloop.storage.store_copy import write_file

MAX_READERS: Final = 4
"""Sessions of one open store that read; each costs the server a process."""
STREAM_ROWS: Final = 10_000
"""Rows of one part of a long read."""
DEFAULTS: Final = {
    "application_name": "recloop", "client_encoding": "UTF8", "connect_timeout": "3", "tcp_user_timeout": "10000",
    "keepalives_idle": "5", "keepalives_interval": "2", "keepalives_count": "3",
}  # fmt: skip
"""Settings of a session that the address does not name."""
READER: Final = "SET default_transaction_read_only TO on"
WRITER: Final = """SET lock_timeout TO '10s'; SET idle_in_transaction_session_timeout TO '60s';
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"""
"""A vanished writer frees the lock after 60 s at the latest; a commit is on disk before its answer."""

UNFINISHED: Final = "unfinished_restore"
"""Table without rows that exists until the project of a restore is in place."""


class PostgresConnection:
    """Session of a database; see `recloop.storage.database.Connection`."""

    def __init__(self, database: PostgresDatabase, settings: str) -> None:
        self._database = database
        self._settings = settings
        self._in_block = False
        self._session = database.connect(settings)

    @property
    def in_transaction(self) -> bool:
        return self._in_block

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Cursor:
        if self._in_block or self._settings != READER:
            return self._execute(statement, parameters)
        self._open_again()
        try:
            return self._execute(statement, parameters)
        except StoreError:
            if not self._session.closed:
                raise
        self._open_again()
        return self._execute(statement, parameters)

    def _execute(self, statement: str, parameters: Sequence[Any]) -> Cursor:
        with self._database.explained():
            return self._session.execute(translated(statement), tuple(parameters))

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        statement = f"COPY {table} ({', '.join(columns)}) FROM STDIN"
        with self._database.explained(), self._session.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)

    def stream(self, query: str, /) -> Iterator[Any]:
        with self._database.explained(), self._session.cursor(name="recloop") as cursor:
            cursor.itersize = STREAM_ROWS
            yield from cursor.execute(query)

    def last_id(self, table: str) -> int:
        return int(self.execute(f"SELECT last_id FROM {table}_counter").fetchone()[0])

    def set_last_id(self, table: str, last_id: int) -> None:
        self.execute(f"UPDATE {table}_counter SET last_id = ?", (last_id,))

    def run(self, script: str) -> None:
        """Run statements without parameters."""
        with self._database.explained():
            self._session.execute(script)

    def begin(self, lock: int) -> None:
        """Begin a transaction and wait for its lock."""
        statements = f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({lock})"
        self._open_again()
        try:
            self.run(statements)
        except StoreError:
            if not self._session.closed:
                self.rollback()
                raise
            self._open_again()
            self.run(statements)
        self._in_block = True

    def commit(self) -> None:
        """Commit the transaction.

        Raises:
            StoreError: it was rolled back, or its end is unknown.
        """
        with self._database.explained():
            status = self._session.execute("COMMIT").statusmessage
        if status != "COMMIT":  # the server rolls a failed transaction back without an error
            raise self._database.error("a statement of the transaction failed")
        self._in_block = False

    def rollback(self) -> None:
        """End the transaction; a session that cannot is closed."""
        self._in_block = False
        try:
            if not self._session.closed:
                self._session.execute("ROLLBACK")
        except psycopg.Error:
            self._session.close()

    def close(self) -> None:
        self._session.close()

    def _open_again(self) -> None:
        if self._session.closed or self._session.info.transaction_status == TransactionStatus.UNKNOWN:
            self._session.close()
            self._session = self._database.connect(self._settings)


class PostgresDatabase(Database):
    """Schema of a PostgreSQL database with the tables of one store.

    Args:
        key: Key of the store, such as ``stores.log``.
        address: Address with which libpq connects.
    """

    def __init__(self, key: str, address: str, schema: StoreSchema) -> None:
        self.name = without_password(address)
        self.recovery = "restore the database from its backup"
        self._key = key
        self._schema = schema
        self._namespace = f"recloop_{schema.name}"
        self._lock = zlib.crc32(self._namespace.encode())
        try:
            self._server = server_of({**DEFAULTS, **conninfo.conninfo_to_dict(address)})
        except psycopg.Error:  # its message has the password
            raise UserError(key, self.name, POSTGRES_FORM, f"correct {key}") from None

    def open_writer(self) -> PostgresConnection:
        connection = self.open_unfinished()
        try:
            if self.is_unfinished(connection):
                with self.transaction(connection):
                    connection.run(f"DROP TABLE IF EXISTS {UNFINISHED}")
        except BaseException:
            connection.close()
            raise
        return connection

    def open_unfinished(self) -> PostgresConnection:
        """Open a writing connection for a restore, which may find an unfinished one."""
        connection = PostgresConnection(self, WRITER)
        try:
            self._check_durable(connection)
            if self._version(connection) < self._schema.version:
                self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def is_unfinished(self, connection: PostgresConnection) -> bool:
        """Return True if the rows are those of a restore that did not reach its end."""
        query = "SELECT to_regclass(?) IS NOT NULL"
        return bool(connection.execute(query, (f"{self._namespace}.{UNFINISHED}",)).fetchone()[0])

    def mark_unfinished(self, connection: PostgresConnection) -> None:
        """Mark the rows as those of an unfinished restore; inside a transaction."""
        connection.run(f"CREATE TABLE IF NOT EXISTS {UNFINISHED} ()")

    def open_reader(self) -> Connection:
        connection = PostgresConnection(self, READER)
        try:
            version = self._version(connection)
        except BaseException:
            connection.close()
            raise
        if version:
            return connection
        connection.close()
        return empty_store(self._schema.script)

    def open_readers(self) -> PostgresReaders:
        return PostgresReaders(self)

    @contextmanager
    def transaction(self, connection: PostgresConnection) -> Iterator[None]:
        connection.begin(self._lock)
        try:
            yield
            connection.commit()
        except BaseException:
            connection.rollback()
            raise

    def close_writer(self, connection: PostgresConnection) -> None:
        connection.close()

    def copy_to(self, file: Path) -> None:
        with closing(PostgresConnection(self, READER)) as connection:
            if self._version(connection):
                connection.run("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                write_file(connection, self._schema, file)

    def release_space(self, connection: PostgresConnection) -> None:
        """Do nothing: the server's autovacuum reuses the space of deleted rows."""

    def rewrite(self) -> None:
        """Write every table again.

        Write-ahead log, replicas and backups are the server's.
        """
        with closing(PostgresConnection(self, WRITER)) as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = ?", (self._namespace,))
            for (table,) in tables.fetchall():
                connection.run(f"VACUUM (FULL) {table}")

    def size_bytes(self) -> int:
        with closing(PostgresConnection(self, READER)) as connection:
            query = """SELECT coalesce(sum(pg_total_relation_size(quote_ident(schemaname) || '.' || tablename)), 0)
                FROM pg_tables WHERE schemaname = ?"""
            return int(connection.execute(query, (self._namespace,)).fetchone()[0])

    def connect(self, settings: str) -> Session:
        """Open a session.

        Raises:
            StoreError: the server does not answer or refuses the user.
            UserError: the database has another encoding than UTF8.
        """
        with self.explained():
            session = self._server.connect()
            try:
                session.execute(f"{settings}; SET search_path TO {self._namespace}")
            except psycopg.Error:
                session.close()
                raise
        encoding = session.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            session.close()
            fix = "createdb --encoding UTF8 --template template0 DATABASE"
            raise UserError(self._key, self.name, f"a database with encoding UTF8, not {encoding}", fix)
        return session

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of the server into `StoreError`, but not those of one row."""
        try:
            yield
        except (psycopg.DataError, psycopg.IntegrityError):
            raise
        except psycopg.Error as error:
            raise self.error(reason_of(error)) from error

    def error(self, reason: str) -> StoreError:
        return StoreError(self._key, self.name, reason)

    def _check_durable(self, connection: PostgresConnection) -> None:
        (fsync,) = connection.execute("SHOW fsync").fetchone()
        if fsync != "on":
            raise UserError(self._key, self.name, "a server with fsync = on", "ALTER SYSTEM SET fsync = on")

    def _version(self, connection: PostgresConnection) -> int:
        """Read the schema version; 0 for a new store."""
        table = f"{self._namespace}.schema_version"
        if connection.execute("SELECT to_regclass(?)", (table,)).fetchone()[0] is None:
            return 0
        version = int(connection.execute(f"SELECT version FROM {table}").fetchone()[0])
        if version > self._schema.version:
            expected = f"schema {self._schema.version} or older, not {version}"
            raise UserError(self._key, self.name, expected, "pip install --upgrade recloop")
        return version

    def _migrate(self, connection: PostgresConnection) -> None:
        """Create or migrate the tables in one transaction."""
        with self.transaction(connection):
            version = self._version(connection)  # another process may have done it
            if version == 0:
                query = "SELECT 1 FROM pg_namespace WHERE nspname = ?"
                if connection.execute(query, (self._namespace,)).fetchone() is None:
                    connection.run(f"CREATE SCHEMA {self._namespace}")
                connection.run("CREATE TABLE schema_version (version BIGINT NOT NULL)")
                connection.run(f"{definitions(self._schema.script)};{self._schema.postgres}")
                connection.run(f"INSERT INTO schema_version VALUES ({self._schema.version})")
            for earlier in range(version or self._schema.version, self._schema.version):
                connection.run(definitions(self._schema.migrations[earlier]))
                connection.run(f"UPDATE schema_version SET version = {earlier + 1}")


class PostgresReaders:
    """Reading sessions of a store; a thread keeps one of at most `MAX_READERS`."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._connections: list[Connection | None] = [None] * MAX_READERS
        self._locks = [threading.Lock() for _ in range(MAX_READERS)]
        self._slots = itertools.cycle(range(MAX_READERS))
        self._local = threading.local()
        self.get()  # refuse an unreadable store at once

    def get(self) -> Connection:
        """Return this thread's session; opened again if the store did not exist."""
        slot: int | None = getattr(self._local, "slot", None)
        if slot is None:
            slot = self._local.slot = next(self._slots)
        with self._locks[slot]:
            connection = self._connections[slot]
            if not isinstance(connection, PostgresConnection):
                connection = self._connections[slot] = self._database.open_reader()
            return connection

    def close(self) -> None:
        for slot, connection in enumerate(self._connections):
            if connection is not None:
                connection.close()
            self._connections[slot] = None


@cache
def translated(statement: str) -> str:
    """Return a statement with the parameters of psycopg.

    recloop's statements have a ? only for a parameter.
    """
    return statement.replace("%", "%%").replace("?", "%s")


def definitions(script: str) -> str:
    """Return table definitions with PostgreSQL's types."""
    script = re.sub(r"\bINTEGER\b", "BIGINT", script.replace(" AUTOINCREMENT", ""))
    return re.sub(r"\bREAL\b", "DOUBLE PRECISION", script)
