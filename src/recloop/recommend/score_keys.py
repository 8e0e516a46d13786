"""Integer keys that order items by score, ties by popularity.

A key is the bits of a score with the rank in training popularity in its low bits. Sorting integers is faster than sorting
indices by two arrays.
"""

from __future__ import annotations

from typing import Final

import numpy as np

RANK_BITS: Final = 29
"""Low bits of a float64 with a significand of 24 bits; they are 0 and hold the rank of a key."""
MAX_RANK: Final = (1 << RANK_BITS) - 1


def rank_keys(rank: np.ndarray) -> np.ndarray:
    """Return the low bits of keys: an item of a better rank has a larger key."""
    keys: np.ndarray = MAX_RANK - rank.astype(np.int64)
    return keys


def ranked(items: np.ndarray, scores: np.ndarray, rank: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all items (int32) and scores by descending score, ties by rank.

    Args:
        items: (n,) distinct item_ix above 0.
        scores: (n,) float64, at least 0, with a significand of 24 bits.
        rank: (N+1,) rank of each item in training popularity. order: (N,) the item_ix of each rank.
    """
    keys = scores.view(np.int64) | rank_keys(rank.take(items))
    keys.sort()
    keys = keys[::-1]
    best: np.ndarray = order.take(MAX_RANK - (keys & MAX_RANK)).astype(np.int32, copy=False)
    return best, (keys >> RANK_BITS << RANK_BITS).view(np.float64)
