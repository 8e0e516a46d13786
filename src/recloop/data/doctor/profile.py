"""Profile of a log: events per day and hour, histories, items by popularity."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Final

import polars as pl

from recloop.files import JsonTree
from recloop.records import ITEM_ID, LABEL, SECOND, TIMESTAMP, USER_ID, guest_rows

HISTORY_STARTS: Final = (1, 2, 3, 5, 10, 20, 50, 100)
"""Smallest number of positive rows of each bucket of users."""
TOP_SHARES: Final = (0.01, 0.1, 0.2, 0.5)
N_TOP_ITEMS: Final = 10
N_GAPS: Final = 3


@dataclass(frozen=True)
class Gap:
    """Days without an event, both ends inclusive."""

    first: str
    last: str
    days: int


@dataclass(frozen=True)
class LogProfile:
    """Counts of the kept rows; histories and items count positive rows.

    Attributes:
        first_day: First date in UTC; ``per_day[0]`` is its number of rows.
        per_day: Rows of each day from the first to the last.
        empty_days: Days without a row.
        gaps: The longest runs of such days, longest first.
        per_hour: (24,) rows by hour of the day in ``timezone``.
        histories: Users by number of rows; key ``"3-4"`` or ``"100+"``.
        top_items: Item and rows of the most frequent items.
        top_share: Share of rows with the most frequent 1, 10, 20 and 50 % of items.
        single_items: Items with one row.
    """

    first_day: str
    per_day: tuple[int, ...]
    empty_days: int
    gaps: tuple[Gap, ...]
    timezone: str
    per_hour: tuple[int, ...]
    histories: dict[str, int]
    top_items: tuple[tuple[str, int], ...]
    top_share: dict[str, float]
    single_items: int

    def to_json(self) -> JsonTree:
        """JSON object under ``profile`` of ``recloop doctor --json``."""
        return {
            **vars(self),
            "gaps": [vars(gap) for gap in self.gaps],
            "per_day": list(self.per_day),
            "per_hour": list(self.per_hour),
            "top_items": [{"item_id": item, "rows": rows} for item, rows in self.top_items],
        }


def profile(valid_rows: pl.DataFrame, timezone: str = "UTC") -> LogProfile | None:
    """Profile of labelled rows; None without rows.

    Args:
        valid_rows: Rows with user_id, item_id, timestamp and label.
        timezone: Time zone of the hours.
    """
    if not len(valid_rows):
        return None
    stamps = valid_rows.select(pl.from_epoch(TIMESTAMP, time_unit="us").dt.replace_time_zone("UTC"))[TIMESTAMP]
    first_day, per_day = _per_day(stamps)
    gaps = _gaps(first_day, per_day)
    hours = dict(stamps.dt.convert_time_zone(timezone).dt.hour().value_counts().iter_rows())
    positive = valid_rows.filter(pl.col(LABEL) > 0)
    with_user = positive.filter(~guest_rows())
    items = positive.group_by(ITEM_ID).len().sort(["len", ITEM_ID], descending=[True, False])
    total = max(1, len(positive))
    top = {
        f"{share * 100:.0f} %": float(items.head(max(1, round(share * len(items))))["len"].sum()) / total
        for share in TOP_SHARES
    }
    return LogProfile(
        first_day=first_day.isoformat(),
        per_day=tuple(per_day),
        empty_days=sum(count == 0 for count in per_day),
        gaps=tuple(gaps[:N_GAPS]),
        timezone=timezone,
        per_hour=tuple(hours.get(hour, 0) for hour in range(24)),
        histories=_histories(with_user),
        top_items=tuple((str(item), int(rows)) for item, rows in items.head(N_TOP_ITEMS).iter_rows()),
        top_share={name: round(share, 4) for name, share in top.items()},
        single_items=int((items["len"] == 1).sum()),
    )


def _per_day(stamps: pl.Series) -> tuple[date, list[int]]:
    """First day and rows of each day up to the last."""
    counts = dict(stamps.dt.date().value_counts().iter_rows())
    first, last = min(counts), max(counts)
    return first, [counts.get(first + timedelta(days=day), 0) for day in range((last - first).days + 1)]


def _gaps(first: date, per_day: list[int]) -> list[Gap]:
    """Runs of days without rows, longest first."""
    gaps = []
    start: int | None = None
    for day, count in enumerate(per_day):
        if count == 0 and start is None:
            start = day
        if count and start is not None:
            ends = (first + timedelta(days=start)).isoformat(), (first + timedelta(days=day - 1)).isoformat()
            gaps.append(Gap(*ends, day - start))
            start = None
    return sorted(gaps, key=lambda gap: (-gap.days, gap.first))


def _histories(positive: pl.DataFrame) -> dict[str, int]:
    """Users by number of positive rows."""
    sizes = positive.group_by(USER_ID).len()["len"]
    ends = (*HISTORY_STARTS[1:], None)
    return {_bucket(start, end): _n_between(sizes, start, end) for start, end in zip(HISTORY_STARTS, ends, strict=True)}


def _n_between(sizes: pl.Series, start: int, end: int | None) -> int:
    mask = sizes >= start if end is None else (sizes >= start) & (sizes < end)
    return int(mask.sum())


def _bucket(start: int, end: int | None) -> str:
    if end is None:
        return f"{start}+"
    return str(start) if end == start + 1 else f"{start}-{end - 1}"


def timestamp_resolution(stamps: pl.Series) -> str:
    """Resolution of stamps: ``day``, ``hour``, ``minute``, or "" for seconds or finer."""
    for name, seconds in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if (
            len(stamps)
            and (stamps % (seconds * SECOND) == stamps[0] % (seconds * SECOND)).all()
            and stamps.n_unique() > 1
        ):
            return name
    return ""
