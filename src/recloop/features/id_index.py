"""Indexes of raw ids: item codes that only grow, and users found by hash.

A code is valid in one store of states only. Hashes are equal in every process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np

from recloop.features.vocabulary import Vocabulary


def id_hash(raw: str) -> int:
    """64-bit hash of an id."""
    return int.from_bytes(hashlib.blake2b(raw.encode(), digest_size=8).digest(), "little")


class ItemCodes:
    """Codes of raw item ids; an id keeps its code, and new ids get the next one.

    One thread adds ids. Arrays that were returned before stay valid.
    """

    def __init__(self, ids: Iterable[str] = (), hashes: np.ndarray | None = None) -> None:
        """Number ids; ``hashes`` (n,) uint64 are those of `hashes`, if they are known."""
        self._ids = list(ids)
        self._code = {raw: code for code, raw in enumerate(self._ids)}
        self._names = np.array(self._ids, dtype=object)
        self._hashes = np.zeros(len(self._ids), dtype=np.uint64) if hashes is None else hashes  # 0: not computed yet
        self._table_rows: WeakKeyDictionary[Vocabulary, np.ndarray] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> Sequence[str]:
        """Raw ids by code."""
        return self._ids

    @property
    def names(self) -> np.ndarray:
        """(n,) object array of the raw ids by code."""
        names: np.ndarray = self._names[: len(self._ids)]
        return names

    def code(self, raw: str) -> int | None:
        """Code of an id; None for an unknown one."""
        return self._code.get(raw)

    def add(self, raw: str) -> int:
        """Code of an id, which is added if it is unknown."""
        code = self._code.get(raw)
        if code is None:
            code = len(self._ids)
            if code == len(self._names):
                self._names, self._hashes = _grown(self._names), _grown(self._hashes)
            self._names[code] = raw
            self._ids.append(raw)
            self._code[raw] = code
        return code

    def hashes(self, codes: np.ndarray) -> np.ndarray:
        """(n,) uint64 hashes of the ids of these codes."""
        values: np.ndarray = self._hashes[codes]
        if not values.all():
            for code in np.unique(codes[values == 0]).tolist():
                self._hashes[code] = id_hash(self._ids[code])
            values = self._hashes[codes]
        return values

    def table_rows(self, vocabulary: Vocabulary) -> np.ndarray:
        """(n,) int32 item_ix of each code in a bundle's item table; 0 outside it."""
        rows = self._table_rows.get(vocabulary)
        if rows is None or len(rows) < len(self._ids):
            known = np.zeros(0, dtype=np.int32) if rows is None else rows
            new_ids = self._ids[len(known) :]
            rows = np.concatenate([known, vocabulary.lookup(new_ids, len(new_ids))])
            self._table_rows[vocabulary] = rows
        return rows


def _grown(array: np.ndarray) -> np.ndarray:
    """Copy of an array with room for twice as many entries."""
    grown = np.zeros(max(64, 2 * len(array)), dtype=array.dtype)
    grown[: len(array)] = array
    return grown


class UserIndex:
    """Users in the order of their hashes; ids are compared, so hashes may collide.

    Attributes:
        hashes: (U,) uint64, ascending.
        offsets: (U+1,) int64 into ``text``, the UTF-8 bytes of all ids.
    """

    def __init__(self, hashes: np.ndarray, offsets: np.ndarray, text: np.ndarray) -> None:
        self.hashes = hashes
        self.offsets = offsets
        self.text = text

    @classmethod
    def from_ids(cls, ids: Sequence[str]) -> tuple[UserIndex, np.ndarray]:
        """Index of distinct ids, and the position (n,) int64 of each id in it."""
        encoded = [raw.encode() for raw in ids]
        digests = b"".join(hashlib.blake2b(data, digest_size=8).digest() for data in encoded)
        hashes = np.frombuffer(digests, dtype="<u8").astype(np.uint64)
        order = np.argsort(hashes, kind="stable")
        positions = np.empty(len(ids), dtype=np.int64)
        positions[order] = np.arange(len(ids))
        ordered = [encoded[n] for n in order.tolist()]
        offsets = np.concatenate([[0], np.cumsum([len(data) for data in ordered], dtype=np.int64)]).astype(np.int64)
        return cls(hashes[order], offsets, np.frombuffer(b"".join(ordered), dtype=np.uint8)), positions

    def __len__(self) -> int:
        return len(self.hashes)

    def find(self, raw: str) -> int:
        """Position of an id; -1 for an unknown one."""
        encoded = raw.encode()
        wanted = np.frombuffer(hashlib.blake2b(encoded, digest_size=8).digest(), dtype="<u8")[0]
        position = int(self.hashes.searchsorted(wanted))
        while position < len(self.hashes) and self.hashes[position] == wanted:
            if self.text[self.offsets[position] : self.offsets[position + 1]].tobytes() == encoded:
                return position
            position += 1
        return -1

    def ids(self) -> list[str]:
        """Raw ids of all users, in the order of their positions."""
        text, offsets = self.text.tobytes(), self.offsets.tolist()
        return [text[low:high].decode() for low, high in pairwise(offsets)]
