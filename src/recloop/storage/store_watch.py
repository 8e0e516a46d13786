"""Watch of the files of an open SQLite store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

Identity = tuple[int, int]
"""Device and inode of a file."""


class StoreWatch:
    """Identities of a store's files since they were first seen.

    A store on a database server has none.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self._seen: dict[Path, Identity] = {}
        self.is_moved()

    def is_moved(self) -> bool:
        """True if a file that was seen is missing or another one."""
        is_moved = False
        for file in self._files:
            identity = _identity(file)
            if file not in self._seen and identity is not None:
                self._seen[file] = identity
            is_moved |= self._seen.get(file) != identity
        return is_moved


def _identity(file: Path) -> Identity | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
