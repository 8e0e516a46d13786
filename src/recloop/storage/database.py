"""Databases of the log and the control store: SQLite file or PostgreSQL server.

Both run the same statements: parameters are ``?``, and types are those of SQLite. What differs is behind `Database` and
`Connection`.
"""

from __future__ import annotations

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

STORE_ERRORS: Final = (sqlite3.Error, OSError)
"""Errors of a store that cannot be read or written; `StoreError` is one."""


class StoreSchema(NamedTuple):
    """Tables of a store: newest version, statements and settings.

    Attributes:
        name: Name of the store, such as ``log``.
        pragmas: Settings of a SQLite file.
        migrations: Statements that migrate each older version to the next.
        views: Statements that show each older version of a SQLite file as the newest one.
        postgres: Further statements for PostgreSQL only.
        numbered: Tables that keep the largest ``id`` they ever had.
    """

    name: str
    version: int
    script: str
    pragmas: tuple[str, ...]
    migrations: Mapping[int, str]
    views: Mapping[int, str] = {}
    postgres: str = ""
    numbered: tuple[str, ...] = ()


class Cursor(Protocol):
    """Rows of a statement."""

    @property
    def rowcount(self) -> int: ...
    def fetchone(self) -> Any: ...
    def fetchall(self) -> list[Any]: ...
    def __iter__(self) -> Iterator[Any]: ...


class Connection(Protocol):
    """Connection to a database."""

    @property
    def in_transaction(self) -> bool:
        """True inside a transaction, also if it has failed."""

    def execute(self, statement: str, parameters: Sequence[Any] = (), /) -> Cursor:
        """Run a statement with ``?`` for each parameter."""

    def stream(self, query: str, /) -> Iterator[Any]:
        """Run a query and read its rows in parts; inside a transaction."""

    def insert(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Insert rows; several of them cost little more than one."""

    def last_id(self, table: str) -> int:
        """Return the largest ``id`` that a table ever had; 0 for none."""

    def set_last_id(self, table: str, last_id: int) -> None:
        """Keep another largest ``id`` of a table with rows."""

    def close(self) -> None: ...


class Readers(Protocol):
    """Read-only connections that any thread may use."""

    def get(self) -> Connection: ...
    def close(self) -> None: ...


class Database(ABC):
    """Place of the tables of one store.

    Attributes:
        name: File name or address without the password, for messages.
        recovery: Advice for a store that lacks rows.
        files: Files that an open store has; none on a server.
    """

    name: str
    files: tuple[Path, ...] = ()
    recovery: str

    @abstractmethod
    def open_writer(self) -> Connection:
        """Open a writing connection; creates or migrates the tables if needed.

        Raises:
            UserError: the store cannot be used by this version.
            StoreError: the server does not answer.
        """

    @abstractmethod
    def open_reader(self) -> Connection:
        """Open a read-only connection; a missing store reads as an empty one."""

    @abstractmethod
    def open_readers(self) -> Readers:
        """Open read-only connections that are kept."""

    @abstractmethod
    def transaction(self, connection: Any) -> AbstractContextManager[None]:
        """Run a block in a transaction that excludes other writers; roll back on an error.

        After an error during the commit the rows may be stored or not; the caller reads them back.
        """

    @abstractmethod
    def close_writer(self, connection: Any) -> None:
        """Close the writing connection after a last clean-up."""

    @abstractmethod
    def copy_to(self, file: Path) -> None:
        """Copy the store as of one commit into a new SQLite file.

        Writers of the store go on. A missing store is not copied.
        """

    @abstractmethod
    def release_space(self, connection: Any) -> None:
        """Return the space of deleted rows."""

    @abstractmethod
    def rewrite(self) -> None:
        """Write every page again, because deleted rows leave their bytes in free space.

        Raises:
            Refused: the store was in use during each attempt.
        """

    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes on disk; 0 for a store that does not exist."""


def bool_as_int(values: Iterable[Any]) -> list[Any]:
    """Return the values with 1 for True and 0 for False, as the columns have them."""
    return [int(value) if isinstance(value, bool) else value for value in values]
