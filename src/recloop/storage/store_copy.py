"""Copies of the rows of a store from one kind of database to another.

All rows and counters keep their values, so seqs, the audit chain and later numbers are those of the source. Each table
is read back and compared with the rows that were written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgspec

from recloop.storage.database import Connection, StoreSchema
from recloop.storage.sqlite import empty_store
from recloop.storage.sqlite_database import SqliteDatabase

COUNTER: Final = "counter"
"""Table with the last seq, which a new store has too."""
DIGEST_BYTES: Final = 16


class RowSum:
    """Number and sum of the hashes of rows, whatever their order."""

    def __init__(self) -> None:
        self.rows = self.sum = 0

    def of(self, rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """Pass rows on and add them."""
        for row in rows:
            digest = blake2b(msgspec.msgpack.encode(tuple(row)), digest_size=DIGEST_BYTES).digest()
            self.rows += 1
            self.sum = (self.sum + int.from_bytes(digest, "big")) % (1 << 8 * DIGEST_BYTES)
            yield row


def write_file(source: Connection, schema: StoreSchema, file: Path) -> None:
    """Write the rows of a store into a new SQLite file.

    Args:
        source: Connection in a transaction that reads as of one commit.
    """
    target = SqliteDatabase(file, schema)
    written = target.open_writer()
    try:
        with target.transaction(written):
            copy_rows(source, written, schema)
    finally:
        target.close_writer(written)


def copy_rows(source: Connection, target: Connection, schema: StoreSchema) -> None:
    """Write all rows of a store into one without rows; inside a transaction of each.

    Raises:
        RuntimeError: the rows that are read back differ.
    """
    for table, names in tables(schema).items():
        columns = [f'"{name}"' for name in names]
        query = f"SELECT {', '.join(columns)} FROM {table}"
        if table == COUNTER:
            target.execute(f"DELETE FROM {COUNTER}")
        written, found = RowSum(), RowSum()
        target.insert(table, columns, written.of(source.stream(query)))
        for _ in found.of(target.stream(query)):
            pass
        if (written.rows, written.sum) != (found.rows, found.sum):
            raise RuntimeError(f"{schema.name}: the copied rows of {table} differ from those of the source")
        if table in schema.numbered:
            target.set_last_id(table, source.last_id(table))


def tables(schema: StoreSchema) -> dict[str, list[str]]:
    """Return the columns of each table of a store."""
    with closing(empty_store(schema.script)) as store:
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name"
        names = [name for (name,) in store.execute(query)]
        return {name: [row[1] for row in store.execute(f"PRAGMA table_info({name})")] for name in names}
