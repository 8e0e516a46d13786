"""Counts of valid rows for the report, by one pass over users, items and types.

Counts of logs with different users can be added, so that a large log is counted shard by shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from recloop.config import Config
from recloop.data.repeats import positive_acts
from recloop.features.labels import EventLabeler, class_of, count_unnamed, with_uses
from recloop.features.moments import reused_groups
from recloop.features.undo import without_undone
from recloop.records import (
    EVENT_TYPE,
    GROUP_ID,
    ITEM_ID,
    LABEL,
    MOMENT,
    SECOND,
    SEQ,
    TIMESTAMP,
    USE,
    USER_ID,
    Use,
    guest_rows,
)

UNIT_SECONDS: Final = {"day": 86_400, "hour": 3_600, "minute": 60}
"""Resolutions of stamps, coarsest first."""
USER_ROWS: Final = {USER_ID: pl.String, "rows": pl.UInt32, "moments": pl.UInt32}
ITEM_ROWS: Final = {ITEM_ID: pl.String, "rows": pl.UInt32}
TYPE_ROWS: Final = {EVENT_TYPE: pl.String, "rows": pl.UInt32, "low": pl.Int8, "high": pl.Int8}
CLASSES: Final = {EVENT_TYPE: pl.String, USE: pl.Int8, LABEL: pl.Int8}
REUSED: Final = {USER_ID: pl.String, GROUP_ID: pl.String, SEQ: pl.Int64}


@dataclass(frozen=True)
class LogCounts:
    """Counts of the valid rows of some users; each user is in one of them.

    Attributes:
        rows: Valid rows.
        first, last: Earliest and latest timestamp, int64 microseconds; None without rows.
        offsets: Smallest and largest distance (us) of a stamp from the start of its day, hour and minute.
        users: USER_ROWS, guest baskets included.
        items: ITEM_ROWS.
        types: TYPE_ROWS with the smallest and largest label.
        classes: CLASSES, distinct.
        shared: Rows that share user and timestamp with another row.
        pairs, acts: Pairs of user and item with a positive row, and their acts (`recloop.data.repeats`).
        returns, undone: Rows that undo, and rows that they undo.
        reused: REUSED, groups that span more than a day, by their first distant row.
        unnamed: Rows by event type without a rule of ``[events]``.
    """

    rows: int
    first: int | None
    last: int | None
    offsets: dict[str, tuple[int, int]]
    users: pl.DataFrame
    items: pl.DataFrame
    types: pl.DataFrame
    classes: pl.DataFrame
    shared: int
    pairs: int
    acts: int
    returns: int
    undone: int
    reused: pl.DataFrame
    unnamed: dict[str, int]

    @classmethod
    def of(cls, valid_rows: pl.DataFrame, config: Config) -> LogCounts:
        """Count valid rows (LABELLED) in seq order."""
        stamps = valid_rows[TIMESTAMP]
        first, last = stamps.min(), stamps.max()
        acts = positive_acts(valid_rows)
        return cls(
            rows=len(valid_rows),
            first=first if isinstance(first, int) else None,
            last=last if isinstance(last, int) else None,
            offsets=_offsets(stamps),
            users=valid_rows.group_by(USER_ID).agg(
                pl.len().alias("rows"), (pl.col(MOMENT).max() + 1).cast(pl.UInt32).alias("moments")
            ),
            items=valid_rows.group_by(ITEM_ID).agg(pl.len().alias("rows")),
            types=valid_rows.group_by(EVENT_TYPE).agg(
                pl.len().alias("rows"), pl.col(LABEL).min().alias("low"), pl.col(LABEL).max().alias("high")
            ),
            classes=with_uses(valid_rows).select(*CLASSES).unique(),
            shared=int(valid_rows.select(pl.struct(USER_ID, TIMESTAMP).is_duplicated().sum()).item()),
            pairs=len(acts),
            acts=int(acts.sum()),
            returns=int((valid_rows[USE] == Use.UNDO).sum()),
            undone=_undone(valid_rows),
            reused=_reused(valid_rows),
            unnamed=count_unnamed(EventLabeler(config.events, config.clean), valid_rows),
        )

    @classmethod
    def total(cls, parts: Sequence[LogCounts]) -> LogCounts:
        """Add the counts of disjoint sets of users."""
        if len(parts) == 1:
            return parts[0]
        filled = [part for part in parts if part.rows]
        firsts, lasts = ([getattr(part, name) for part in filled] for name in ("first", "last"))
        unnamed = pl.DataFrame(
            [row for part in filled for row in part.unnamed.items()],
            schema={EVENT_TYPE: pl.String, "rows": pl.Int64},
            orient="row",
        )
        types = pl.concat([pl.DataFrame(schema=TYPE_ROWS), *(part.types for part in filled)])
        return cls(
            rows=sum(part.rows for part in filled),
            first=min(firsts, default=None),
            last=max(lasts, default=None),
            offsets={
                unit: (min(part.offsets[unit][0] for part in filled), max(part.offsets[unit][1] for part in filled))
                for unit in UNIT_SECONDS
                if filled
            },
            users=pl.concat([pl.DataFrame(schema=USER_ROWS), *(part.users for part in filled)]),
            items=pl.concat([pl.DataFrame(schema=ITEM_ROWS), *(part.items for part in filled)])
            .group_by(ITEM_ID)
            .agg(pl.col("rows").sum()),
            types=types.group_by(EVENT_TYPE).agg(pl.col("rows").sum(), pl.col("low").min(), pl.col("high").max()),
            classes=pl.concat([pl.DataFrame(schema=CLASSES), *(part.classes for part in filled)]).unique(),
            shared=sum(part.shared for part in filled),
            pairs=sum(part.pairs for part in filled),
            acts=sum(part.acts for part in filled),
            returns=sum(part.returns for part in filled),
            undone=sum(part.undone for part in filled),
            reused=pl.concat([pl.DataFrame(schema=REUSED), *(part.reused for part in filled)]).sort(SEQ),
            unnamed=_most_first(unnamed),
        )

    @property
    def of_users(self) -> pl.DataFrame:
        """USER_ROWS without guest baskets."""
        return self.users.filter(~guest_rows())

    @property
    def guests(self) -> pl.DataFrame:
        """USER_ROWS of the guest baskets."""
        return self.users.filter(guest_rows())

    @property
    def moments(self) -> int:
        return int(self.users["moments"].sum())

    @property
    def repeats(self) -> float:
        """Share of repeats; see `recloop.data.repeats.repeat_share`."""
        return 1.0 - self.pairs / self.acts if self.pairs else 0.0

    @property
    def has_positive(self) -> bool:
        return bool((self.types["high"] > 0).any())

    @property
    def shared_share(self) -> float:
        """Share of the rows that share user and timestamp with another row."""
        return self.shared / self.rows

    @property
    def resolution(self) -> str:
        """Resolution of the stamps: ``day``, ``hour``, ``minute``, or "" if finer."""
        if self.first == self.last:
            return ""
        return next((unit for unit, (low, high) in self.offsets.items() if low == high), "")

    def event_classes(self) -> dict[str, str]:
        """Class of each event type's rows; ``by condition`` if they differ."""
        classes: dict[str, str] = {}
        for name, use, label in self.classes.sort(EVENT_TYPE).iter_rows():
            class_name = class_of(use, label)
            classes[name] = class_name if classes.setdefault(name, class_name) == class_name else "by condition"
        return classes


def _offsets(stamps: pl.Series) -> dict[str, tuple[int, int]]:
    ends = {}
    for unit, seconds in UNIT_SECONDS.items():
        offsets = stamps % (seconds * SECOND)
        low, high = offsets.min(), offsets.max()
        if isinstance(low, int) and isinstance(high, int):
            ends[unit] = (low, high)
    return ends


def _undone(valid_rows: pl.DataFrame) -> int:
    if not (valid_rows[USE] == Use.UNDO).any():
        return 0
    uses = pl.DataFrame({"before": valid_rows[USE], "after": without_undone(valid_rows)[USE]})
    is_undone = pl.col("before").is_in([int(Use.TARGET), int(Use.INPUT), int(Use.NEGATIVE)]) & (pl.col("after") == 0)
    return len(uses.filter(is_undone))


def _reused(valid_rows: pl.DataFrame) -> pl.DataFrame:
    if valid_rows[GROUP_ID].null_count() == len(valid_rows):
        return pl.DataFrame(schema=REUSED)
    return reused_groups(valid_rows)


def _most_first(rows: pl.DataFrame) -> dict[str, int]:
    counts = rows.group_by(EVENT_TYPE).agg(pl.col("rows").sum())
    return dict(counts.sort("rows", EVENT_TYPE, descending=[True, False]).iter_rows())
