"""SQLite files: location, connections, schema versions, migrations and free space."""

from __future__ import annotations

import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from recloop.config.store_address import POSTGRES_FORM, POSTGRES_STORES, without_password
from recloop.errors import Refused, UserError
from recloop.files import private_file, private_folder, sync_folder

BUSY_SECONDS = 10.0
INCREMENTAL = 2
"""Value of ``PRAGMA auto_vacuum`` for a file that frees pages in steps."""
MIN_RELEASED_BYTES = 1_000_000
"""Free space from which a file is rewritten."""
MAX_CHECKPOINTS = 50
CHECKPOINT_SECONDS = 0.2
STATEMENT_ROWS = (64, 8, 1)
"""Rows of one INSERT; the interpreter lock is released and taken once a statement."""


class Store(ABC):
    """Base class of stores: a context manager that closes the store."""

    @abstractmethod
    def close(self) -> None:
        """Release the store's files; idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SqliteConnection(sqlite3.Connection):
    """Connection to a SQLite file; see `recloop.storage.database.Connection`."""

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        self.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})", rows)

    def stream(self, query: str, /) -> Iterator[Any]:
        return iter(self.execute(query))

    def last_id(self, table: str) -> int:
        has_counter = self.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone()
        if not has_counter:  # an empty store in memory
            return 0
        query = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = ?"
        return int(self.execute(query, (table,)).fetchone()[0])

    def set_last_id(self, table: str, last_id: int) -> None:
        self.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table,))
        self.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table, last_id))


def locate(key: str, url: str, root: Path) -> Path:
    """Resolve a store's URL to a file.

    ``sqlite:///store/log.db`` is relative to the project, ``sqlite:////srv/log.db`` is absolute.

    Raises:
        UserError: another scheme than sqlite.
    """
    scheme, sep, path = url.partition(":///")
    if scheme != "sqlite" or not sep or not path:
        expected = f"sqlite:///PATH or {POSTGRES_FORM}" if key in POSTGRES_STORES else "sqlite:///PATH"
        raise UserError(
            key, without_password(url), expected, f'--set {key}="sqlite:///store/{key.rpartition(".")[2]}.db"'
        )
    return root / path


def open_writer(
    file: Path, version: int, script: str, pragmas: tuple[str, ...], migrations: Mapping[int, str] | None = None
) -> SqliteConnection:
    """Open a writing connection; creates the file and its folder if needed.

    Args:
        migrations: Statements that migrate each older version to the next; applied in order.

    Raises:
        UserError: not a SQLite file, or its schema is newer than this version or too old.
    """
    private_folder(file.parent)
    private_file(file)
    connection = sqlite3.connect(
        file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, factory=SqliteConnection
    )
    try:
        file_version = _version(connection, file, version)
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        if file_version == 0:
            with transaction(connection):
                if _version(connection, file, version) == 0:  # another process may have done it
                    for statement in script.split(";"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {version}")
            sync_folder(file.parent)
        elif file_version < version:
            _migrate(connection, file, version, migrations or {})
    except BaseException:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection, file: Path, version: int, migrations: Mapping[int, str]) -> None:
    with transaction(connection):
        for from_version in range(_version(connection, file, version), version):  # another process may have done it
            if from_version not in migrations:
                expected = f"schema {min(migrations, default=version)} or newer"
                raise UserError(
                    file.name, f"schema {from_version}", expected, "an earlier recloop version, which migrates it"
                )
            for statement in migrations[from_version].split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {from_version + 1}")


def open_reader(
    file: Path, version: int, script: str, views: Mapping[int, str] | None = None, immutable: bool = False
) -> SqliteConnection:
    """Open a read-only connection; a missing file reads as an empty store.

    Args:
        views: Statements that show each older version as the newest one, by temporary views that hide its tables.
    """
    if file.exists():
        query = "?mode=ro&immutable=1" if immutable else "?mode=ro"
        address = f"file:{quote(str(file.absolute()))}{query}"
        connection = sqlite3.connect(
            address,
            uri=True,
            timeout=BUSY_SECONDS,
            isolation_level=None,
            check_same_thread=False,
            factory=SqliteConnection,
        )
        try:
            file_version = _version(connection, file, version)
            for statement in (views or {}).get(file_version, "").split(";"):
                connection.execute(statement)
        except BaseException:
            connection.close()
            raise
        if file_version:
            return connection
        connection.close()  # its writer has not created the tables yet
    return empty_store(script)


def empty_store(script: str) -> SqliteConnection:
    """Open an empty store in memory, in place of one that does not exist."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, factory=SqliteConnection)
    connection.executescript(script)
    return connection


def _version(connection: sqlite3.Connection, file: Path, version: int) -> int:
    """Read the schema version; 0 for a new file.

    Raises:
        UserError: not a SQLite file, or written by a newer recloop.
    """
    try:
        file_version = _user_version(connection)
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise UserError(file.name, file, f"a SQLite file ({error})", f"restore {file} from a backup") from None
    if file_version > version:
        raise UserError(
            file.name, f"schema {file_version}", f"schema {version} or older", "pip install --upgrade recloop"
        )
    return file_version


def _user_version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run a block in a transaction with an immediate lock; roll back on an error.

    After an error during the commit the rows may be stored or not; the caller reads them back.
    """
    if connection.in_transaction:  # an earlier rollback failed
        connection.execute("ROLLBACK")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def insert_rows(connection: sqlite3.Connection, insert: str, rows: Sequence[tuple[Any, ...]], suffix: str = "") -> int:
    """Insert rows by statements of many rows and return how many were inserted.

    Args:
        insert: Statement up to ``VALUES``.
        suffix: Text after the values, such as ``ON CONFLICT DO NOTHING``.
    """
    inserted = 0
    start = 0
    for n_rows in STATEMENT_ROWS:
        while len(rows) - start >= n_rows:
            values = f"({', '.join('?' * len(rows[start]))})"
            statement = f"{insert} VALUES {', '.join([values] * n_rows)} {suffix}"
            flat = [value for row in rows[start : start + n_rows] for value in row]
            inserted += max(0, connection.execute(statement, flat).rowcount)
            start += n_rows
    return inserted


def check_pages(file: Path) -> None:
    """Check the pages of a SQLite file; a missing file passes.

    Raises:
        UserError: the file is damaged.
    """
    if not file.exists():
        return
    address = f"file:{quote(str(file.absolute()))}?mode=ro"
    connection = sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:  # without access; the store's own connection reports it
        return
    except sqlite3.DatabaseError as error:
        result = str(error)
    finally:
        connection.close()
    if result != "ok":
        raise UserError(file.name, file, f"a SQLite file without damage ({result})", f"restore {file} from a backup")


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite file as of one commit into a private file.

    Writers of the source go on.
    """
    private_file(target)
    address = f"file:{quote(str(source.absolute()))}?mode=rw"  # a reader of a write-ahead log needs its index file
    with (
        closing(sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS)) as read,
        closing(sqlite3.connect(target)) as written,
    ):
        read.backup(written)


def close_writer(connection: sqlite3.Connection) -> None:
    """Copy the write-ahead log into the file and close its writing connection.

    Open readers do not prevent it, so that the file alone is complete after a clean stop.
    """
    with suppress(sqlite3.Error):  # a full disk: the rows stay in the write-ahead log
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


def release_space(connection: sqlite3.Connection) -> None:
    """Return free pages of a file to the disk.

    A file with ``auto_vacuum = INCREMENTAL`` frees them in steps. A file of an earlier version is rewritten if at least
    a quarter of it and 1 MB are free. It then frees pages in steps.
    """

    def pragma(name: str) -> int:
        return int(connection.execute(f"PRAGMA {name}").fetchone()[0])

    free = pragma("freelist_count")
    pages = pragma("page_count")
    if pragma("auto_vacuum") == INCREMENTAL:
        while free and (remaining := _step(connection)) < free:
            free = remaining
    elif 4 * free >= pages and free * pragma("page_size") >= MIN_RELEASED_BYTES:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _step(connection: sqlite3.Connection) -> int:
    """Free some pages and return the number of free pages left."""
    connection.execute("PRAGMA incremental_vacuum(1000)").fetchall()
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])


def rewrite(file: Path) -> None:
    """Write every page of a store again and empty its write-ahead log.

    Deleted rows leave their bytes in free space otherwise. Readers and writers of the store go on; a writer waits.

    Raises:
        Refused: a reader kept the write-ahead log open during each attempt.
    """
    if not file.exists():
        return
    with closing(sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None)) as connection:
        connection.execute("VACUUM")
        for _ in range(MAX_CHECKPOINTS):
            busy, *_ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                return
            time.sleep(CHECKPOINT_SECONDS)
    raise Refused(file.name, "in use", "an empty write-ahead log", "a long read holds it; run recloop forget again")


def bytes_of(file: Path) -> int:
    """Size in bytes of a SQLite file and its write-ahead log."""
    return sum(path.stat().st_size for path in open_files(file) if path.exists())


def open_files(file: Path) -> tuple[Path, Path]:
    """Return a SQLite file and its write-ahead log."""
    return file, file.with_name(f"{file.name}-wal")


class ReaderPool:
    """Read-only connections to one file, one per thread."""

    def __init__(self, file: Path, version: int, script: str, views: Mapping[int, str]) -> None:
        self._file = file
        self._version = version
        self._script = script
        self._views = views
        self._local = threading.local()
        self._all: list[SqliteConnection] = []
        self.get()  # refuse an unreadable file at once

    def get(self) -> SqliteConnection:
        """Return this thread's connection; a new one after a migration."""
        connection: SqliteConnection | None = getattr(self._local, "connection", None)
        if connection is None or _user_version(connection) != self._local.version:
            connection = self._local.connection = open_reader(self._file, self._version, self._script, self._views)
            self._local.version = _user_version(connection)
            self._all.append(connection)
        return connection

    def close(self) -> None:
        while self._all:
            self._all.pop().close()
        self._local = threading.local()
