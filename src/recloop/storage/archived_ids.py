"""Hashes of the archive's ids in files, memory-mapped.

``data/ids/POLARS/FROM-TO/`` covers the rows with FROM < seq <= TO: sorted 64-bit hashes of their event_ids with the seqs
beside them, and of their user and item ids. The hashes depend on the version of Polars, so another version makes new
files. An update adds a folder for its rows; folders of similar size are merged, so a few cover the archive.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from recloop.files import sync_folder
from recloop.records import EVENT_ID, ITEM_ID, SEQ, USER_ID

FOLDER: Final = "ids"
HASHES: Final = f"rows-{pl.__version__}"  # versions of Polars may hash differently
MAX_GROWTH: Final = 2  # a folder is merged with an earlier one of at most this many times its rows


def hashes_of(ids: pl.Series) -> np.ndarray:
    """(n,) uint64 hashes of texts."""
    return pl.DataFrame({"id": ids.cast(pl.String)}).hash_rows(0).to_numpy()


@dataclass(frozen=True)
class IdPart:
    """Hashes of the ids of rows with ``after`` < seq <= ``until``.

    Attributes:
        hashes: (n,) uint64, ascending, of event_ids.
        seqs: (n,) int64, their rows.
        users, items: uint64, ascending and distinct.
    """

    after: int
    until: int
    hashes: np.ndarray
    seqs: np.ndarray
    users: np.ndarray
    items: np.ndarray

    @classmethod
    def of_rows(cls, after: int, until: int, rows: pl.DataFrame) -> IdPart:
        """Part of rows with event_id, user_id, item_id and seq."""
        named = rows.select(EVENT_ID, SEQ).drop_nulls(EVENT_ID)
        hashes = hashes_of(named[EVENT_ID])
        seqs = named[SEQ].to_numpy()
        order = np.lexsort((seqs, hashes))
        users, items = (np.unique(hashes_of(rows[name].unique())) for name in (USER_ID, ITEM_ID))
        return cls(after, until, hashes[order], seqs[order], users, items)

    @classmethod
    def read(cls, folder: Path) -> IdPart:
        """Map a folder's arrays."""
        after, until = map(int, folder.name.split("-"))
        hashes, seqs, users, items = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ARRAYS)
        return cls(after, until, hashes, seqs, users, items)

    def write(self, root: Path) -> None:
        """Write the part's folder; it is complete once it has its name."""
        target = root / f"{self.after}-{self.until}"
        staged = root / f"{target.name}.{os.getpid()}.tmp"
        shutil.rmtree(staged, ignore_errors=True)
        staged.mkdir(parents=True)
        for name in ARRAYS:
            with (staged / f"{name}.npy").open("wb") as file:
                np.save(file, getattr(self, name))
                file.flush()
                os.fsync(file.fileno())
        sync_folder(staged)
        shutil.rmtree(target, ignore_errors=True)  # a damaged one; mapped arrays stay readable
        staged.rename(target)
        sync_folder(root)

    def merged(self, later: IdPart) -> IdPart:
        """Part of the rows of both; ``later`` begins where this one ends."""
        hashes, seqs = np.concatenate([self.hashes, later.hashes]), np.concatenate([self.seqs, later.seqs])
        order = np.argsort(hashes, kind="stable")  # sorted runs
        users, items = np.union1d(self.users, later.users), np.union1d(self.items, later.items)
        return IdPart(self.after, later.until, hashes[order], seqs[order], users, items)

    def __len__(self) -> int:
        return len(self.hashes) + len(self.users) + len(self.items)


ARRAYS: Final = ("hashes", "seqs", "users", "items")


class ArchivedIds:
    """Look-up of ids among the archive's rows, without reading the rows.

    Args:
        parts: Consecutive parts from seq 0 on.
    """

    def __init__(self, parts: Sequence[IdPart]) -> None:
        self._parts = tuple(parts)

    @property
    def until(self) -> int:
        """Last covered seq."""
        return self._parts[-1].until if self._parts else 0

    def seqs_of(self, event_ids: Sequence[str]) -> list[int]:
        """Seqs of the rows whose event_id has the hash of one of these."""
        parts = [part for part in self._parts if len(part.hashes)]
        if not parts:
            return []
        asked = hashes_of(pl.Series(event_ids, dtype=pl.String))
        seqs: list[int] = []
        for part in parts:
            first = np.searchsorted(part.hashes, asked)
            is_stored = part.hashes[np.minimum(first, len(part.hashes) - 1)] == asked
            for row in np.flatnonzero(is_stored).tolist():
                last = np.searchsorted(part.hashes, asked[row], side="right")
                seqs += part.seqs[first[row] : last].tolist()
        return sorted(seqs)

    def has(self, column: str, raw_ids: pl.Series) -> np.ndarray:
        """(n,) True for each user_id or item_id that a row has; by its 64-bit hash."""
        asked = hashes_of(raw_ids)
        has_row = np.zeros(len(asked), dtype=bool)
        for part in self._parts:
            hashes = part.users if column == USER_ID else part.items
            if len(hashes):
                has_row |= hashes[np.minimum(np.searchsorted(hashes, asked), len(hashes) - 1)] == asked
        return has_row

    @classmethod
    def open(cls, data: Path, rows_after: Callable[[int], pl.LazyFrame], until: int) -> ArchivedIds:
        """Map the folders of ``data/``; write those that are missing.

        Args:
            rows_after: Returns the archived rows after a seq; it may return earlier ones too.
            until: Last seq to cover.
        """
        root = data / FOLDER / HASHES
        ids = cls(list(_chain(root)))
        if ids.until >= until:
            return ids
        new_rows = (
            rows_after(ids.until).filter(pl.col(SEQ) > ids.until).select(EVENT_ID, USER_ID, ITEM_ID, SEQ).collect()
        )
        part = IdPart.of_rows(ids.until, until, new_rows)
        parts = list(ids._parts)
        while parts and len(parts[-1]) <= MAX_GROWTH * len(part):
            part = parts.pop().merged(part)
        try:
            part.write(root)
            _remove_merged(data / FOLDER, root)
        except OSError:  # a full or read-only disk: the look-up works from memory
            pass
        return cls([*parts, part])


def _chain(root: Path) -> Iterator[IdPart]:
    """Consecutive parts from seq 0 on, the longest first."""
    folders = [folder.name.split("-") for folder in root.glob("*-*") if not folder.name.endswith(".tmp")]
    ends: dict[int, int] = {}
    for after, until in ((int(first), int(last)) for first, last in folders):
        ends[after] = max(until, ends.get(after, 0))
    seq = 0
    while seq in ends:
        try:
            part = IdPart.read(root / f"{seq}-{ends[seq]}")
        except (OSError, ValueError):  # removed by a merge, or damaged: the rest is written again
            return
        yield part
        seq = part.until


def _remove_merged(folder: Path, root: Path) -> None:
    """Remove folders whose rows a longer one covers, and those of other versions."""
    parts = [tuple(map(int, path.name.split("-"))) for path in root.glob("*-*") if not path.name.endswith(".tmp")]
    for (after, until), (other_after, other_until) in itertools.permutations(parts, 2):
        if other_after <= after and until <= other_until:
            shutil.rmtree(root / f"{after}-{until}", ignore_errors=True)
    for other in folder.iterdir():
        if other != root:
            shutil.rmtree(other, ignore_errors=True)
