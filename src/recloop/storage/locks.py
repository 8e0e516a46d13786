"""File locks of a project folder: writer, update, update loop and settings search."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from recloop.errors import Locked
from recloop.files import private_folder


def writer_lock(root: Path, verb: str = "serve") -> _Lock:
    """Lock ``store/writer.lock`` for writing log.db and decisions.db.

    It is a separate file, because closing any handle of a database file drops all locks of the process on it.
    """
    return _Lock(root / "store" / "writer.lock", verb)


def run_lock(root: Path, verb: str) -> _Lock:
    """Lock ``store/turn.lock`` for writing ``data/``, ``bundles/`` and ``runs/``."""
    return _Lock(root / "store" / "turn.lock", verb)


def schedule_lock(root: Path) -> _Lock:
    """Lock ``store/every.lock`` for repeating updates in a project."""
    return _Lock(root / "store" / "every.lock", "update --every")


def tune_lock(root: Path) -> _Lock:
    """Lock ``store/tune.lock`` for writing ``tuning/``; updates go on meanwhile."""
    return _Lock(root / "store" / "tune.lock", "tune")


def keys_lock(root: Path) -> _Lock:
    """Lock ``store/keys.lock`` for changing the API keys."""
    return _Lock(root / "store" / "keys.lock", "keys")


class _Lock:
    """Context manager of a flock on a file that records its holder.

    The kernel frees the lock when the process ends.

    Raises:
        Locked: on entering, if another holder has the lock, in this process or another.
    """

    def __init__(self, file: Path, verb: str) -> None:
        self._file = file
        self._verb = verb
        self._handle = -1
        self._who: dict[str, object] = {}

    def __enter__(self) -> Self:
        private_folder(self._file.parent)
        handle = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _holder(os.pread(handle, 4096, 0))
            os.close(handle)
            raise Locked(f"{self._file.parent.name}/{self._file.name}", holder) from None
        self._handle = handle
        self._who = {"verb": self._verb, "pid": os.getpid(), "start": datetime.now(UTC).isoformat(timespec="seconds")}
        self.note()
        return self

    def note(self, **facts: str) -> None:
        """Record the holder of the lock, with facts such as the service's ``url``."""
        self._who |= facts
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps(self._who).encode(), 0)

    def __exit__(self, *_: object) -> None:
        os.ftruncate(self._handle, 0)  # the file is kept: removing it would allow two holders
        os.close(self._handle)
        self._handle = -1


def server_url(root: Path) -> str:
    """Address of the service that holds the writer lock; empty if none is ready."""
    try:
        return str(json.loads((root / "store" / "writer.lock").read_text("utf-8")).get("url", ""))
    except (FileNotFoundError, ValueError, AttributeError):
        return ""


def _holder(text: bytes) -> str:
    try:
        holder = json.loads(text)
        return f"`recloop {holder['verb']}` (process {holder['pid']}, since {holder['start']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
