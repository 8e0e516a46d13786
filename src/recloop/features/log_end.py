"""End of a log: its newest credible stamp, robust to a few wrong clocks.

Every cut, reference window, tail and half-life is measured from this stamp, never from the maximum.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recloop.records import DAY, TIMESTAMP, USER_ID

MIN_ROWS: Final = 10
"""Minimum rows for an estimate of usual gaps; the end of a shorter log is its maximum."""
MAX_FEW_ROWS: Final = 5
"""Number of rows or users that is too small to support an outlying stamp, if it is at most a fifth."""
MAX_FEW_SHARE: Final = 0.01
"""The same limit for a large log, as a share of its rows or users."""
MAX_FEW_USERS_SHARE: Final = 0.05
"""Rows of a few users are ignored up to this share of the log."""
GAP_FACTOR: Final = 3
"""A jump is longer than this many times the longest pause before it."""


def robust_end(stamps: pl.Series | NDArray[np.int64], users: pl.Series | Callable[[], pl.Series] | None = None) -> int:
    """Newest stamp of a log without rows that are far later than all others.

    Arrival times may be unknown, so the log is checked against its pauses. A *jump* is a pause of a day or more
    that is longer than ``GAP_FACTOR`` times every earlier pause. The oldest few rows are ignored, because their clocks may
    be wrong too. Rows after a jump are ignored if they are few: at most 5 rows and a fifth of the log, or 1 % of a large
    log. Rows of as few users are ignored too, up to 5 % of all rows. The check repeats until all remaining rows are kept.

    A quantile would cut the last day of every log. A fixed distance fits neither a log of one hour nor a log of ten years.
    Many rows after a jump are a normal continuation of the log.

    Args:
        stamps: int64 microseconds, in any order.
        users: The user of each row, or a function that reads them; without it only rows are counted.

    Returns:
        int64 microseconds; 0 for an empty log, the maximum for one with fewer than 10 rows.
    """
    values = np.asarray(stamps, dtype=np.int64)
    is_ascending = bool((values[1:] >= values[:-1]).all())
    ascending = values if is_ascending else np.sort(values)
    owners = None if users is None else functools.cache(lambda: _owners(values, users))
    size = len(ascending)
    while size >= MIN_ROWS:
        remaining = _before_jump(ascending[:size], owners)
        if remaining == size:
            break
        size = remaining
    return int(ascending[size - 1]) if size else 0


def end_of(events: pl.DataFrame, column: str = TIMESTAMP) -> int:
    """`robust_end` of a frame of events by its column of stamps."""
    return robust_end(events[column], events[USER_ID])


def few(size: int) -> int:
    """Largest number of rows or users, out of ``size``, that cannot support a stamp."""
    return max(min(MAX_FEW_ROWS, size // 5), int(size * MAX_FEW_SHARE))


def _owners(values: NDArray[np.int64], users: pl.Series | Callable[[], pl.Series]) -> NDArray[np.int64]:
    """(n,) number of each row's user, in the order of the stamps."""
    users = users if isinstance(users, pl.Series) else users()
    return users.rank("dense").to_numpy().astype(np.int64)[np.argsort(values, kind="stable")]


def _before_jump(ascending: NDArray[np.int64], owners: Callable[[], NDArray[np.int64]] | None) -> int:
    """Number of ascending stamps before the first jump with too few rows after it.

    Users are numbered only if a jump needs them.
    """
    size = len(ascending)
    skipped = few(size)
    gaps = np.diff(ascending)  # (n-1,) the pause after each row
    if not (gaps >= DAY).any():
        return size
    longest = np.zeros(size - 1, dtype=np.int64)  # (n-1,) the longest pause before it
    longest[skipped + 1 :] = np.maximum.accumulate(gaps[skipped:])[:-1]
    jumps = np.flatnonzero((gaps >= DAY) & (gaps / GAP_FACTOR > longest))
    for jump in jumps[jumps >= size // 2].tolist():
        rows = size - jump - 1
        if rows <= skipped:
            return int(jump) + 1
        if owners is not None and rows <= MAX_FEW_USERS_SHARE * size:
            of_rows = owners()[:size]
            if len(np.unique(of_rows[jump + 1 :])) <= few(int(of_rows.max())):
                return int(jump) + 1
    return size
