"""Anomalies of a log: crawlers, outlying stamps, and the order of tied rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import polars as pl

from recloop.records import DAY, LABEL, SECOND, SEQ, TIMESTAMP, USER_ID, WEIGHT, iso

MAX_USER_SHARE: Final = 0.05  # of all rows; above it a checkout or a crawler is likely
MIN_HEAVY_RATIO: Final = 3  # rows of a heavy user, divided by those of the next user below the share
MIN_STEADY_ROWS: Final = 100
STEADY_SHARE: Final = 0.8  # of a user's gaps are within `STEADY_TOLERANCE` of their median
STEADY_TOLERANCE: Final = 0.1
MAX_STEADY_GAP: Final = 600 * SECOND
FAST_ROWS: Final = 1_000  # distinct stamps of one user within `FAST_WINDOW`
FAST_WINDOW: Final = 7_200 * SECOND
N_CRAWLERS: Final = 20
TAIL_SHARE: Final = 0.01  # of rows on each side that may be outliers
MIN_MARGIN: Final = 7 * DAY
MIN_ORDERED_PAIRS: Final = 50
MIN_PAIR_SHARE: Final = 0.01  # of the tied rows
ORDERED_SHARE: Final = 0.95


@dataclass(frozen=True)
class Crawler:
    """User whose rows a person does not produce.

    Attributes:
        share: Share of all rows.
        gap_seconds: Median gap between two stamps.
        reasons: Facts, such as a steady rhythm.
    """

    user_id: str
    rows: int
    share: float
    gap_seconds: float
    reasons: tuple[str, ...]


def crawlers(valid_rows: pl.DataFrame) -> tuple[Crawler, ...]:
    """Find crawlers, scanners and shared accounts, most rows first.

    Args:
        valid_rows: Rows with user_id and timestamp; rows of one user with one stamp count once for the rhythm.
    """
    sizes = valid_rows.group_by(USER_ID).len("rows")
    total = len(valid_rows)
    heavy_rows = min_heavy_rows(sizes["rows"])
    suspects = sizes.filter((pl.col("rows") >= MIN_STEADY_ROWS) | (pl.col("rows") > MAX_USER_SHARE * total))
    if not len(suspects):
        return ()
    stamps = (
        valid_rows.join(suspects, on=USER_ID, how="semi").select(USER_ID, TIMESTAMP).unique().sort(USER_ID, TIMESTAMP)
    )
    is_fine = bool((valid_rows[TIMESTAMP] % (60 * SECOND) != 0).any())
    resolution = SECOND if bool((valid_rows[TIMESTAMP] % SECOND == 0).all()) else 0
    gap = pl.col(TIMESTAMP).diff().over(USER_ID).alias("gap")
    ahead = (pl.col(TIMESTAMP).shift(1 - FAST_ROWS).over(USER_ID) - pl.col(TIMESTAMP)).alias("ahead")
    rhythm = (
        stamps.with_columns(gap, ahead)
        .with_columns(pl.col("gap").median().over(USER_ID).alias("median"))
        .with_columns(
            ((pl.col("gap") - pl.col("median")).abs() <= pl.max_horizontal(pl.col("median") * STEADY_TOLERANCE, resolution)).alias("near")
        )
        .group_by(USER_ID)
        .agg(pl.len().alias("stamps"), pl.col("median").first(), pl.col("near").mean(), pl.col("ahead").min())
    )  # fmt: skip
    facts = suspects.join(rhythm, on=USER_ID).sort(["rows", USER_ID], descending=[True, False])
    found = []
    for row in facts.iter_rows(named=True):
        reasons = []
        gap_seconds = (row["median"] or 0.0) / SECOND
        steady = (
            is_fine and row["stamps"] >= MIN_STEADY_ROWS and row["near"] is not None and row["near"] >= STEADY_SHARE
        )
        if steady and row["median"] <= MAX_STEADY_GAP:
            reasons.append(f"a steady rhythm of one row each {gap_seconds:.1f} s")
        if is_fine and row["ahead"] is not None and row["ahead"] <= FAST_WINDOW:
            reasons.append(f"{FAST_ROWS:,} rows within {max(1, row['ahead'] // (60 * SECOND)):,} minutes")
        if row["rows"] >= heavy_rows:
            reasons.append(f"{100 * row['rows'] / total:.1f} % of all rows")
        if reasons:
            share = round(row["rows"] / total, 4)
            found.append(Crawler(row[USER_ID], row["rows"], share, round(gap_seconds, 2), tuple(reasons)))
    return tuple(found[:N_CRAWLERS])


def min_heavy_rows(sizes: pl.Series) -> float:
    """Rows from which a user is heavy.

    That is above 5 % of all rows, and three times the next user below that share.

    Args:
        sizes: Rows of each user; with fewer than 40 users the limit is infinite.
    """
    if len(sizes) < 2 / MAX_USER_SHARE:
        return float("inf")
    limit = MAX_USER_SHARE * float(sizes.sum())
    usual = sizes.filter(sizes <= limit).max()
    return max(limit + 1e-9, MIN_HEAVY_RATIO * (usual if isinstance(usual, int) else 0))


@dataclass(frozen=True)
class StampOutliers:
    """Rows whose stamps lie far from all others.

    Attributes:
        rows: Outlying rows. share: Share of the other rows.
        first, last: Ends of the other rows, ISO 8601.
        earliest, latest: Ends of all rows.
    """

    rows: int
    share: float
    first: str
    last: str
    earliest: str
    latest: str


def stamp_outliers(stamps: pl.Series) -> StampOutliers | None:
    """Find stamps far from all others; None without them.

    Far is more than the length of the central 98 % of rows, at least 7 days, before or after it.
    """
    if len(stamps) < 2 / TAIL_SHARE:
        return None
    low, high = (int(stamps.quantile(share, "nearest") or 0) for share in (TAIL_SHARE, 1 - TAIL_SHARE))
    margin = max(high - low, MIN_MARGIN)
    inner = stamps.filter((stamps >= low - margin) & (stamps <= high + margin))
    if len(inner) == len(stamps):
        return None
    ends = [iso(int(str(end))) for end in (inner.min(), inner.max(), stamps.min(), stamps.max())]
    return StampOutliers(len(stamps) - len(inner), round(len(inner) / len(stamps), 6), *ends)


@dataclass(frozen=True)
class TiedRows:
    """Rows of one user with one stamp, whose order only the file gives.

    Attributes:
        rows: Rows that share user and stamp with another row. share: Their share of all rows.
        pairs: Neighbours among them with different labels or weights.
        heavier_first: Share of these pairs with the heavier row first; about 0.5 in any order.
    """

    rows: int
    share: float
    pairs: int
    heavier_first: float

    @property
    def reveals_label(self) -> bool:
        """True if the order of the file tells the label."""
        is_ordered = not 1 - ORDERED_SHARE < self.heavier_first < ORDERED_SHARE
        return self.pairs >= max(MIN_ORDERED_PAIRS, MIN_PAIR_SHARE * self.rows) and is_ordered


def tied_rows(valid_rows: pl.DataFrame) -> TiedRows:
    """Count rows with one user and stamp, and compare neighbours among them.

    Args:
        valid_rows: Labelled rows; seq numbers rows with one stamp in the order of the file.
    """
    rows = valid_rows.select(SEQ, USER_ID, TIMESTAMP, (pl.col(LABEL) * pl.col(WEIGHT).abs()).alias("signal"))
    tied = rows.filter(pl.struct(USER_ID, TIMESTAMP).is_duplicated()).sort(USER_ID, TIMESTAMP, SEQ)
    step = tied.select(pl.col("signal").diff().over(USER_ID, TIMESTAMP))["signal"].drop_nulls()
    differing = step.filter(step != 0)
    first = float((differing < 0).sum() / len(differing)) if len(differing) else 0.5
    share = len(tied) / len(rows) if len(rows) else 0.0
    return TiedRows(len(tied), round(share, 4), len(differing), round(first, 4))
