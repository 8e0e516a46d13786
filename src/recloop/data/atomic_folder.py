"""Staged folder of tables and lines, synced and hashed before its manifest."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl
import pyarrow.parquet
from polars.datatypes import DataTypeClass

from recloop.data.rejected_rows import RejectedRow
from recloop.files import MAX_PARALLEL_WRITES, replace_json, sync_folder, write_file
from recloop.records import FileFacts
from recloop.storage.data_manifest import MANIFEST

GROUP_ROWS: Final = 1 << 18
"""Rows of a row group."""
PARQUET_OPTIONS: Final[dict[str, Any]] = {"compression": "zstd", "write_page_checksum": True, "store_schema": False}


class AtomicFolder:
    """Writer of a staged folder: files are synced to disk, with hash and size.

    A log of many years is thousands of small files that each wait for the disk, so several are written in parallel.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: dict[str, FileFacts] = {}
        self._pool = ThreadPoolExecutor(MAX_PARALLEL_WRITES)
        self._jobs: dict[str, Future[FileFacts]] = {}
        folder.mkdir(parents=True)

    def table(self, name: str, frame: pl.DataFrame) -> None:
        self._jobs[name] = self._pool.submit(self._put, name, lambda: _parquet(frame))

    def lines(self, name: str, rows: Sequence[RejectedRow]) -> None:
        self._jobs[name] = self._pool.submit(
            self._put, name, lambda: b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        )

    def stream(self, name: str, schema: Mapping[str, DataTypeClass]) -> TableStream:
        """Table whose rows arrive in parts; its file equals that of `table` on all rows."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return TableStream(path, schema)

    def finished(self, name: str, stream: TableStream) -> None:
        """Sync the file of a stream to disk."""
        facts = stream.close()
        self._jobs[name] = self._pool.submit(lambda: facts)

    def drain(self) -> None:
        """Wait until the tables so far are written, so that their rows can be freed."""
        for job in self._jobs.values():
            job.result()

    def wait(self) -> None:
        """Wait until every file is on disk, then sync every folder."""
        self.written = {name: job.result() for name, job in self._jobs.items()}
        folders = [path for path in self.folder.rglob("*") if path.is_dir()]
        list(self._pool.map(sync_folder, folders))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def manifest(self, tree: Mapping[str, Any]) -> None:
        """Write the manifest last and by rename; a folder without it is incomplete."""
        replace_json(self.folder / MANIFEST, tree)

    def _put(self, name: str, content: Callable[[], Any]) -> FileFacts:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        payload = content()
        write_file(path, payload)
        return FileFacts(hashlib.sha256(payload).hexdigest(), len(payload))


class TableStream:
    """Parquet file written in row groups of `GROUP_ROWS` rows as its rows arrive."""

    def __init__(self, path: Path, schema: Mapping[str, DataTypeClass]) -> None:
        self._schema = schema
        self._rest = pl.DataFrame(schema=schema)
        self._file = _HashedFile(path)
        self._writer = pyarrow.parquet.ParquetWriter(self._file, self._rest.to_arrow().schema, **PARQUET_OPTIONS)
        self.rows = 0

    def append(self, frame: pl.DataFrame) -> None:
        """Add rows; columns of the schema that ``frame`` lacks are null."""
        self.rows += len(frame)
        self._rest = pl.concat([self._rest, with_columns_of(self._schema, frame)])
        n_whole = len(self._rest) // GROUP_ROWS * GROUP_ROWS
        for start in range(0, n_whole, GROUP_ROWS):
            self._write(self._rest[start : start + GROUP_ROWS])
        self._rest = self._rest[n_whole:].clone() if n_whole else self._rest

    def close(self) -> FileFacts:
        """Write the last rows and sync the file."""
        if len(self._rest) or not self.rows:
            self._write(self._rest)
        self._writer.close()
        return self._file.finish()

    def abort(self) -> None:
        """Close the file after an error; its content is incomplete."""
        if self._writer.is_open:
            self._file.is_aborted = True
            self._writer.close()
            self._file.close()

    def _write(self, frame: pl.DataFrame) -> None:
        self._writer.write_table(frame.rechunk().to_arrow(), row_group_size=GROUP_ROWS)


class _HashedFile(io.RawIOBase):
    """File that hashes what is written."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._hash = hashlib.sha256()
        self._size = 0
        self.is_aborted = False

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        if self.is_aborted:
            return len(content)
        self._hash.update(content)
        self._size += len(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self._size

    def finish(self) -> FileFacts:
        """Sync and close the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return FileFacts(self._hash.hexdigest(), self._size)

    def close(self) -> None:
        self._file.close()
        super().close()


def with_columns_of(schema: Mapping[str, DataTypeClass], frame: pl.DataFrame) -> pl.DataFrame:
    """Columns of a schema in its order; those that ``frame`` lacks are null."""
    return frame.select(
        pl.col(name) if name in frame.columns else pl.lit(None, kind).alias(name) for name, kind in schema.items()
    )


def _parquet(frame: pl.DataFrame) -> Any:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(frame.to_arrow(), sink, row_group_size=GROUP_ROWS, **PARQUET_OPTIONS)
    return sink.getvalue()
