"""Size-tiered compaction of the files that updates append."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

SIZE_RATIO: Final = 2
"""A new file absorbs an earlier one of at most this many times its size."""


def absorbed(sizes: Sequence[int], new: int) -> int:
    """Number of newest files that a new one of ``new`` bytes is merged with.

    A file grows by the size of each file that it absorbs. So n updates leave O(log n) files, and each row is rewritten
    O(log n) times.

    Args:
        sizes: Bytes of the existing files, oldest first.
    """
    count = 0
    for size in reversed(sizes):
        if size > SIZE_RATIO * new:
            break
        new += size
        count += 1
    return count
