"""Rule ``burst``: rows of a user who acts faster than a person can.

An *act* is a group_id, or a stamp for rows without one, regardless of its number of rows. A row is in a burst if the
acts of its user in (stamp - seconds, stamp] that were received so far reach ``burst.events``.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Final

import numpy as np
import polars as pl

from recloop.config import Burst
from recloop.records import GROUP_ID, SECOND, TIMESTAMP, USER_ID

STRONG: Final = "strong"
"""Boolean column: targets of a purchase's weight, which the rule ignores."""
Act = int | str


class ActWindow:
    """Acts of one user in the order of arrival; tells which act completes a burst.

    The acts are kept in buckets of the rule's length, so a row reads two buckets, from its stamp backwards, until it has
    found ``burst.events`` acts.
    """

    def __init__(self, burst: Burst) -> None:
        self._events = burst.events
        self._width = width_of(burst)
        self._buckets: dict[int, _Bucket] = {}

    def add(self, stamp: int, group_id: str | None) -> bool:
        """Add a row; return True if it is in a burst.

        Args:
            stamp: int64 microseconds.
        """
        self.put(stamp, group_id)
        acts: set[Act] = set()
        number = stamp // self._width
        after = stamp - self._width
        if self._buckets[number].collect(acts, stamp, after, self._events):
            return True
        earlier = self._buckets.get(number - 1)
        return earlier is not None and earlier.collect(acts, stamp, after, self._events)

    def put(self, stamp: int, group_id: str | None) -> None:
        """Add a row without judging it."""
        bucket = self._buckets.setdefault(stamp // self._width, _Bucket())
        bucket.add(stamp, stamp if group_id is None else group_id)

    def forget_before(self, stamp: int) -> int:
        """Remove buckets that end before a stamp; return the start of the first kept one."""
        first = stamp // self._width
        self._buckets = {number: bucket for number, bucket in self._buckets.items() if number >= first}
        return first * self._width

    def __len__(self) -> int:
        """Number of distinct pairs of act and stamp."""
        return sum(len(bucket.stamps) for bucket in self._buckets.values())


class _Bucket:
    """Distinct pairs of act and stamp, by ascending stamp."""

    __slots__ = ("acts", "pairs", "stamps")

    def __init__(self) -> None:
        self.stamps: list[int] = []
        self.acts: list[Act] = []
        self.pairs: set[tuple[int, Act]] = set()

    def add(self, stamp: int, act: Act) -> None:
        if (stamp, act) in self.pairs:
            return
        self.pairs.add((stamp, act))
        position = bisect_right(self.stamps, stamp)
        self.stamps.insert(position, stamp)
        self.acts.insert(position, act)

    def collect(self, acts: set[Act], until: int, after: int, enough: int) -> bool:
        """Collect acts with ``after`` < stamp <= ``until``; True once there are enough."""
        for position in range(bisect_right(self.stamps, until) - 1, -1, -1):
            if self.stamps[position] <= after:
                break
            acts.add(self.acts[position])
            if len(acts) >= enough:
                return True
        return False


def width_of(burst: Burst) -> int:
    """Length of the rule's window in microseconds, at least 1."""
    return max(round(burst.seconds * SECOND), 1)


def burst_mask(rows: pl.DataFrame, burst: Burst) -> np.ndarray:
    """(n,) bool mask of the rows that are in a burst.

    Linear in the number of rows, also of a single user.

    Args:
        rows: user_id, timestamp, group_id in seq order; stamps may be in any order. Rows marked in an optional Boolean
            column ``strong`` are neither counted nor removed.
    """
    in_burst = np.zeros(len(rows), dtype=bool)
    rows = rows.with_row_index("at")
    if STRONG in rows.columns:
        rows = rows.filter(~pl.col(STRONG))
    if not len(rows):
        return in_burst
    rows = _near_bursts(rows.sort(USER_ID, TIMESTAMP, "at"), burst)
    window = ActWindow(burst)
    newest = -1
    for cluster, at, stamp, group_id in rows.select("cluster", "at", TIMESTAMP, GROUP_ID).iter_rows():
        if cluster != newest:
            window = ActWindow(burst)
            newest = cluster
        in_burst[at] = window.add(stamp, group_id)
    return in_burst


def _near_bursts(rows: pl.DataFrame, burst: Burst) -> pl.DataFrame:
    """Rows of clusters in which a burst is possible, by cluster and arrival.

    A cluster ends where the next row is of another user or at least the window's length later. A burst is possible if
    ``burst.events`` different pairs of act and stamp are in a window, in any order of arrival.

    Args:
        rows: Sorted by user_id, timestamp and ``at``.
    """
    width = width_of(burst)
    stamps = rows[TIMESTAMP].to_numpy()  # (n,)
    users = rows[USER_ID].rle_id().to_numpy()
    key = (USER_ID, TIMESTAMP, GROUP_ID)
    is_repeat = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift()) for name in key)
    is_first = ~rows.select(is_repeat).to_series().to_numpy()
    is_first[0] = True
    pairs = np.flatnonzero(is_first)  # (p,) rows; a repeat adds no act
    if len(pairs) < burst.events:
        return rows.clear().with_columns(pl.lit(0).alias("cluster"))
    last, first = pairs[burst.events - 1 :], pairs[: len(pairs) - burst.events + 1]
    is_possible = (users[last] == users[first]) & (stamps[last] - stamps[first] < width)
    breaks = (np.diff(users) != 0) | (np.diff(stamps) >= width)
    clusters = np.concatenate([[0], np.cumsum(breaks)])  # (n,)
    is_kept = np.zeros(clusters[-1] + 1, dtype=bool)
    is_kept[clusters[last[is_possible]]] = True
    return rows.with_columns(pl.Series("cluster", clusters)).filter(pl.Series(is_kept[clusters])).sort("cluster", "at")
