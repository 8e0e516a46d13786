"""Gaps between the moments of a user with an item, and the usual gap of each item."""

from __future__ import annotations

from typing import Final

import numpy as np

from recloop.records import DAY

PRIOR_GAPS: Final = 3
"""Gaps of usual length that each item has besides its own."""
DEFAULT_GAP: Final = 30.0
"""Usual days between two moments with an item in a log without repeats."""


def gaps_of(
    users: np.ndarray, items: np.ndarray, stamps: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Gaps in days between the moments of a user with an item.

    Returns:
        (G,) gaps, (G,) their items, (N+1,) users of each item, (N+1,) users with a gap for each item.
    """
    pairs = users * size + items
    order = np.lexsort((stamps, pairs))
    pairs, stamps = pairs[order], stamps[order]
    is_repeat = pairs[1:] == pairs[:-1]
    gaps = (stamps[1:] - stamps[:-1])[is_repeat] / DAY
    repeated = pairs[1:][is_repeat]
    users_of, repeaters = (np.bincount(_distinct(ordered) % size, minlength=size) for ordered in (pairs, repeated))
    return gaps, repeated % size, users_of, repeaters


def usual_log_gaps(gaps: np.ndarray, items: np.ndarray, size: int) -> np.ndarray:
    """(N+1,) mean of ln(1 + gap) of each item, shrunk to that of all items.

    Args:
        gaps: (G,) days. items: (G,) their items.
    """
    log_gap = float(np.log1p(gaps).mean()) if len(gaps) else float(np.log1p(DEFAULT_GAP))
    totals = np.bincount(items, weights=np.log1p(gaps), minlength=size)
    means: np.ndarray = (totals + PRIOR_GAPS * log_gap) / (np.bincount(items, minlength=size) + PRIOR_GAPS)
    return means


def _distinct(ordered: np.ndarray) -> np.ndarray:
    """Distinct values of ascending numbers; faster than ``np.unique``."""
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered
