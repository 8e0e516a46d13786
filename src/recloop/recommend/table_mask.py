"""Table mask: the items of an item table that pass a filter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

VERSIONS: Iterator[int] = count(1)
"""Versions of the masks of this process."""


@dataclass(frozen=True)
class TableMask:
    """Immutable mask of an item table; a change makes a new one.

    Attributes:
        mask: (N+1,) bool: items that pass; row 0 is False.
        n_allowed: Number of items that pass.
        key: Sum of the passing items' hashes modulo 2^64; equal masks have equal keys in every process.
        version: Number of this mask, unique in the process.
    """

    mask: np.ndarray
    n_allowed: int
    key: int
    version: int

    @classmethod
    def of(cls, mask: np.ndarray) -> TableMask:
        """Return a mask of (N+1,) bool; the array must not change afterwards."""
        item_ix = np.flatnonzero(mask)
        return cls(mask, len(item_ix), _hash_sum(item_ix), next(VERSIONS))

    @property
    def is_all(self) -> bool:
        """True if every item passes."""
        return self.n_allowed == len(self.mask) - 1

    @property
    def digest(self) -> bytes:
        """8 bytes that identify the passing items."""
        return self.key.to_bytes(8, "little")

    def patched(self, item_ix: np.ndarray, passes: np.ndarray) -> TableMask:
        """Return this mask with new values of some items, or itself if all are equal.

        Args:
            item_ix: (n,) distinct items, without 0.
            passes: (n,) bool.
        """
        differs = self.mask[item_ix] != passes
        if not differs.any():
            return self
        added, removed = item_ix[differs & passes], item_ix[differs & ~passes]
        mask = self.mask.copy()
        mask[added], mask[removed] = True, False
        key = (self.key + _hash_sum(added) - _hash_sum(removed)) % 2**64
        return TableMask(mask, self.n_allowed + len(added) - len(removed), key, next(VERSIONS))


def _hash_sum(item_ix: np.ndarray) -> int:
    """Return the sum of the items' hashes modulo 2^64 (finalizer of SplitMix64)."""
    bits = item_ix.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return int((bits ^ (bits >> np.uint64(31))).sum(dtype=np.uint64))
