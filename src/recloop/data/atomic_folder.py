"""Staged folder of tables and lines, synced and hashed before its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pyarrow.parquet

from recloop.data.rejected_rows import RejectedRow
from recloop.files import MAX_PARALLEL_WRITES, replace_json, sync_folder, write_file
from recloop.records import FileFacts
from recloop.storage.data_manifest import MANIFEST


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


def _parquet(frame: pl.DataFrame) -> Any:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(
        frame.to_arrow(), sink, compression="zstd", write_page_checksum=True, store_schema=False, row_group_size=1 << 18
    )
    return sink.getvalue()
