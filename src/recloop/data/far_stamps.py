"""Warning about rows whose time lies years before or after all others."""

from __future__ import annotations

from typing import Final

import polars as pl

from recloop.features.log_end import end_of, robust_end
from recloop.records import DAY, TIMESTAMP, USER_ID

YEAR: Final = 365.25 * DAY
MIN_YEARS: Final = 1.0
"""Smallest distance from the rest, in years, that is named."""


def far_stamps(frame: pl.DataFrame) -> str | None:
    """Name the rows that lie a year or more from the rest; None if there are none.

    The ends of the rest are those of `recloop.features.log_end`, so a few wrong clocks do not move them.

    Args:
        frame: Rows with user_id and timestamp (int64 microseconds).
    """
    if not len(frame):
        return None
    stamps = frame[TIMESTAMP]
    end = end_of(frame)
    start = -robust_end(-stamps, frame[USER_ID])
    texts = []
    for distances, side in ((stamps - end, "after"), (start - stamps, "before")):
        years = (distances / YEAR).filter(distances >= MIN_YEARS * YEAR).sort()
        if len(years):
            first, last = (f"{float(years[index]):.0f}" for index in (0, -1))
            span = f"{first} to {last}" if first != last else first
            texts.append(f"{len(years):,} row{'s lie' if len(years) > 1 else ' lies'} {span} years {side} the rest")
    if not texts:
        return None
    days = ((pl.Series([start, end])).cast(pl.Datetime("us")).dt.date()).to_list()
    return f"{'; '.join(texts)} ({days[0]} .. {days[1]})"
