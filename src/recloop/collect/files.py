"""A folder written beside, flushed to the disk file by file, and renamed into place: whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import msgspec
import polars as pl
import pyarrow.parquet

MANIFEST: Final = "manifest.json"
WAITING: Final = 8
"""Files that are flushed at once."""


class Files:
    """Files written beside, each flushed to the disk, with its hash and size.

    A log of many years is thousands of small files, and each waits for the disk: several wait at once.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: dict[str, dict[str, Any]] = {}
        self._pool = ThreadPoolExecutor(WAITING)
        self._jobs: dict[str, Future[dict[str, Any]]] = {}
        folder.mkdir(parents=True)

    def table(self, name: str, frame: pl.DataFrame) -> None:
        self._jobs[name] = self._pool.submit(self._put, name, lambda: _parquet(frame))

    def lines(self, name: str, rows: list[dict[str, Any]]) -> None:
        self._jobs[name] = self._pool.submit(
            self._put, name, lambda: b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        )

    def wait(self) -> None:
        """Until every file is on the disk, then every folder."""
        self.written = {name: job.result() for name, job in self._jobs.items()}
        folders = [path for path in self.folder.rglob("*") if path.is_dir()]
        list(self._pool.map(_sync, folders))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def manifest(self, tree: Mapping[str, Any]) -> None:
        """The manifest, last and by rename: a folder without it is not whole."""
        text = json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        beside = self.folder / f"{MANIFEST}.tmp"
        _flush(beside, text.encode())
        beside.rename(self.folder / MANIFEST)
        _sync(self.folder)

    def _put(self, name: str, content: Callable[[], Any]) -> dict[str, Any]:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = content()
        _flush(path, whole)
        return {"sha256": hashlib.sha256(whole).hexdigest(), "bytes": len(whole)}


def _parquet(frame: pl.DataFrame) -> Any:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(
        frame.to_arrow(), sink, compression="zstd", write_page_checksum=True, store_schema=False, row_group_size=1 << 18
    )
    return sink.getvalue()


def _flush(path: Path, content: Any) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def swap(beside: Path, target: Path) -> None:
    """Put the new folder in the place of the old one; `recover` finishes what a crash cuts in two."""
    old = target.with_name(target.name + ".old")
    if target.exists():
        target.rename(old)
    beside.rename(target)
    _sync(target.parent)
    _remove(old)


def _remove(folder: Path) -> None:
    """Delete a folder of very many files, several at once."""
    days = [path for path in folder.glob("archive/*") if path.is_dir()]
    with ThreadPoolExecutor(WAITING) as pool:
        list(pool.map(lambda day: shutil.rmtree(day, ignore_errors=True), days))
    shutil.rmtree(folder, ignore_errors=True)


def recover(data: Path) -> None:
    """Finish or take back a rename that a crash cut in two."""
    old = data.with_name(data.name + ".old")
    if old.exists():
        if data.exists():
            _remove(old)
        else:
            old.rename(data)
