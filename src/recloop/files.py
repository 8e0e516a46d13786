"""Atomic writes of files and folders: write beside, fsync, rename, fsync the folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

MAX_PARALLEL_WRITES: Final = 8
"""Files of one folder that are flushed or deleted at once."""


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a path beside ``target``; fsync what the block wrote there and rename it into place.

    A reader sees the old file or the new one. An error in the block removes the new file and keeps the old one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    try:
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(target.parent)


def replace_file(target: Path, content: str | bytes) -> None:
    """Replace a file atomically; text is written as UTF-8."""
    with replacing(target) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def replace_json(target: Path, tree: Any) -> None:
    """Replace a JSON file atomically: sorted keys, one space of indent, UTF-8."""
    replace_file(target, json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def write_file(path: Path, content: Any) -> None:
    """Write bytes to a file of a staged folder and fsync it.

    Args:
        content: Bytes, or another object with the buffer protocol.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Fsync the names in a folder: a file created or renamed in it survives a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder over ``target``; a missing source is ignored, so that a second call does nothing."""
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    source.rename(target)
    sync_folder(target.parent)


def swap_folder(staged: Path, target: Path) -> None:
    """Replace a folder by a staged one; `recover_folder` completes a swap that a crash interrupted."""
    old = _old(target)
    if target.exists():
        target.rename(old)
    staged.rename(target)
    sync_folder(target.parent)
    remove_folder(old)


def recover_folder(target: Path) -> None:
    """Complete or undo a `swap_folder` that a crash interrupted."""
    old = _old(target)
    if old.exists():
        if target.exists():
            remove_folder(old)
        else:
            old.rename(target)


def remove_folder(folder: Path) -> None:
    """Delete a folder; its ``archive/*`` folders, which hold many files, are deleted in parallel."""
    days = [path for path in folder.glob("archive/*") if path.is_dir()]
    with ThreadPoolExecutor(MAX_PARALLEL_WRITES) as pool:
        list(pool.map(lambda day: shutil.rmtree(day, ignore_errors=True), days))
    shutil.rmtree(folder, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(target.name + ".old")
