"""Numbers of accepted decisions, in a file that survives the processes.

The file ``decisions.taken`` has eight bytes for the writer process and eight for each of its workers. It is written,
not mapped: a mapped file on a full disk ends the process.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

from recloop.files import replace_file

NUMBER: Final = struct.Struct("<Q")
WRITER_SLOT: Final = 0


def accepted_file(store: Path) -> Path:
    """Return the file beside a store of decisions."""
    return store.with_suffix(".taken")


def total(file: Path) -> int:
    """Return the number of decisions that all processes accepted; 0 without a file."""
    if not file.exists():
        return 0
    content = file.read_bytes()
    return sum(number for (number,) in NUMBER.iter_unpack(content[: len(content) // NUMBER.size * NUMBER.size]))


def restart(file: Path, n_accepted: int) -> None:
    """Write a new file with the number of earlier processes.

    A worker that outlives its writer process for a moment still writes to the old file.
    """
    replace_file(file, NUMBER.pack(n_accepted))
    file.chmod(0o600)


class AcceptedCounter:
    """Number of decisions that one process accepted.

    Args:
        file: File of `restart`.
        slot: `WRITER_SLOT`, or the number of a worker.

    Raises:
        OSError: the disk is full.
    """

    def __init__(self, file: Path, slot: int = WRITER_SLOT) -> None:
        self._slot = slot
        self._handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(self._handle, slot * NUMBER.size, NUMBER.size)
        except OSError:
            os.close(self._handle)
            raise
        self.value = self._read(slot)

    def add(self, n: int) -> None:
        self.value += n
        self._write(self._slot, self.value)

    def take_over(self, slot: int) -> int:
        """Add the number of a worker that ended to this one, and return it.

        A kill in between counts the worker twice, so that decisions of it seem lost; none is lost uncounted.
        """
        n_accepted = self._read(slot)
        self.add(n_accepted)
        self._write(slot, 0)
        return n_accepted

    def close(self) -> None:
        os.close(self._handle)

    def _read(self, slot: int) -> int:
        return int.from_bytes(os.pread(self._handle, NUMBER.size, slot * NUMBER.size), "little")

    def _write(self, slot: int, value: int) -> None:
        with suppress(OSError):  # another process cut the file, and the disk is full
            os.pwrite(self._handle, NUMBER.pack(value), slot * NUMBER.size)
