"""The two locks of a project folder: one server (or writer) of the log, one run of a turn; the kernel frees both."""

from __future__ import annotations

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from recloop.errors import Locked


def writer_lock(root: Path, verb: str = "serve") -> _Lock:
    """The right to write log.db and decisions.db: ``store/writer.lock``, a file of its own.

    Opening and closing a database file drops every lock that its process holds on it, SQLite's included.
    """
    return _Lock(root / "store" / "writer.lock", verb)


def run_lock(root: Path, verb: str) -> _Lock:
    """The right to write ``data/``, ``bundles/`` and ``runs/``: ``store/turn.lock``."""
    return _Lock(root / "store" / "turn.lock", verb)


def every_lock(root: Path) -> _Lock:
    """The right to repeat updates in a project: ``store/every.lock``."""
    return _Lock(root / "store" / "every.lock", "update --every")


class _Lock:
    """A flock on a file that says who holds it; a context manager, freed when the process ends however it ends.

    Raises:
        Locked: on entering, another process (or another holder in this one) has it.
    """

    def __init__(self, file: Path, verb: str) -> None:
        self._file, self._verb = file, verb
        self._handle = -1
        self._who: dict[str, object] = {}

    def __enter__(self) -> Self:
        self._file.parent.mkdir(parents=True, exist_ok=True)
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
        """Write who holds the lock, with further facts such as ``url``: where it takes rows over HTTP."""
        self._who |= facts
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, json.dumps(self._who).encode(), 0)

    def __exit__(self, *_: object) -> None:
        os.ftruncate(self._handle, 0)  # the file stays: removing it would let two holders in
        os.close(self._handle)
        self._handle = -1


def served_at(root: Path) -> str:
    """The address of the service that holds the writer's lock; empty: there is none, or it is not up yet."""
    try:
        return str(json.loads((root / "store" / "writer.lock").read_text("utf-8")).get("url", ""))
    except (FileNotFoundError, ValueError, AttributeError):
        return ""


def _holder(text: bytes) -> str:
    try:
        who = json.loads(text)
        return f"`recloop {who['verb']}` (process {who['pid']}, since {who['start']})"
    except (ValueError, KeyError, TypeError):
        return "another process"
