"""Split the valid log into train, validation and test.

Definitions: docs/definitions/validation.md.

The cut is the stamp of event floor(quantile * n), counted from 0 in (timestamp, seq) order. Rows with an earlier
*moment* stamp are before the cut, so moments stay whole. The order of rows inside a moment does not affect queries.
Leave-one-out is for comparison with the tables of papers: each user's last row is the test and the row before it is
validation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import polars as pl

from recloop.config import Split
from recloop.errors import UserError
from recloop.features.log_end import end_of
from recloop.features.undo import without_undone
from recloop.records import (
    LABEL,
    SEQ,
    STAMP,
    TIMESTAMP,
    USE,
    USER_ID,
    Use,
    guest_rows,
    hash_unit_interval,
    is_holdout_user,
)


class SplitFrames(NamedTuple):
    """Three labelled frames in seq order, and the cut before the test."""

    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame
    cut: int


LEAVE_ONE_OUT = "leave-one-out"
VALIDATION_SHARE = 0.1
"""Share of the moments before the cut that belong to the validation period."""
MIN_POSITIVES = 3
"""Minimum of positives per user under leave-one-out: one each for train, validation and test."""


def split(labelled: pl.DataFrame, config: Split) -> SplitFrames:
    """Split a labelled log by ``split.protocol``.

    Raises:
        UserError: the protocol conflicts with other settings of ``[split]``, or the log cannot be split by it.
    """
    labelled = labelled.sort(SEQ)
    if not len(labelled):
        raise UserError("data.events", "0 valid rows", "rows that pass the rules of [clean]", "recloop doctor")
    return leave_one_out(labelled, config) if config.protocol == LEAVE_ONE_OUT else temporal(labelled, config)


def leave_one_out(labelled: pl.DataFrame, config: Split) -> SplitFrames:
    """Split each user's rows: last positive test, the one before it validation.

    The other rows are training. Row order is time order. As in the papers' code, users with fewer than three positives are
    only in training, as are guest baskets. The split has no common instant, so the cut is after the last row, and a bundle of this split is only
    evaluated on it.

    Raises:
        UserError: moments of several rows, repeats in the lists, or no user has three positives.
    """
    if config.ties != "row" or not config.filter_seen:
        settings = f"{config.protocol} with ties={config.ties} and filter_seen={str(config.filter_seen).lower()}"
        expected = 'ties="row" and filter_seen=true, as in the published tables'
        raise UserError("split.protocol", settings, expected, "--set split.ties=row --set split.filter_seen=true")
    positive = labelled.filter((pl.col(LABEL) > 0) & ~guest_rows()).select(SEQ, USER_ID)
    rank = pl.int_range(pl.len(), dtype=pl.Int64).over(USER_ID)
    ranked = positive.with_columns((pl.len().over(USER_ID) - 1 - rank).alias("behind"), n=pl.len().over(USER_ID))
    eligible = ranked.filter(pl.col("n") >= MIN_POSITIVES)
    if not len(eligible):
        raise UserError("split.protocol", config.protocol, "a user with three positive rows", "recloop doctor")
    test, valid = (
        labelled.filter(pl.col(SEQ).is_in(eligible.filter(pl.col("behind") == n)[SEQ].implode())) for n in (0, 1)
    )
    held_out = pl.concat([test[SEQ], valid[SEQ]])
    train = labelled.filter(~pl.col(SEQ).is_in(held_out.implode()))
    return SplitFrames(train, valid, test, end_of(labelled, STAMP) + 1)


def temporal(labelled: pl.DataFrame, config: Split) -> SplitFrames:
    """Split all users at one instant.

    Validation is later than the training before it, as the test is. It holds the last moment, at or after
    `validation_start`, of the users with the smallest hash("valid") and at least two moments before the cut. At most
    ``validation_users`` and half of all users are chosen, none with hash("old") < 2 % and no guest. Only moments with a positive
    row count here.

    Raises:
        UserError: all rows have one instant, or no positive row is before the cut.
    """
    cut = cut_of(labelled, config.quantile)
    is_before = pl.col(STAMP) < cut
    test = labelled.filter(~is_before)
    past = labelled.filter(is_before)
    if not len(past):
        first_stamp = labelled[TIMESTAMP].min()
        raise UserError(
            "split.quantile", config.quantile,
            f"rows before the cut; all {len(labelled):,} rows are at or after it"
            + (" (all have one instant)" if first_stamp == labelled[TIMESTAMP].max() else "")
            + ", and a temporal split needs at least two instants",
            "use a longer log, or check data.columns.timestamp",
        )  # fmt: skip
    if not (past[LABEL] > 0).any():
        raise UserError(
            "events",
            "no row is positive: see [events]" if not (labelled[LABEL] > 0).any() else "no positive row before the cut",
            f"a target among the {len(past):,} rows before the cut",
            "recloop doctor --signals, then name a type under events.positive",
        )
    holdout = holdout_rows(past, config.validation_users, n_users(labelled) // 2)
    keys = [USER_ID, STAMP]
    valid = past.join(holdout, on=keys, how="semi", maintain_order="left")
    train = past.join(holdout, on=keys, how="anti", maintain_order="left")
    return SplitFrames(train, valid, test, cut)


def cut_of(labelled: pl.DataFrame, quantile: float) -> int:
    """Stamp of event floor(quantile * n) in (timestamp, seq) order."""
    index = math.floor(quantile * len(labelled))
    return int(labelled.sort(TIMESTAMP, SEQ)[TIMESTAMP][min(index, len(labelled) - 1)])


def validation_start(stamps: pl.Series) -> int:
    """Stamp at which the validation period starts; never the first stamp.

    The last `VALIDATION_SHARE` of these moments are at or after it.
    """
    distinct = stamps.unique().sort()
    if len(distinct) < 2:
        return int(distinct[0]) + 1 if len(distinct) else 0
    index = math.floor((1 - VALIDATION_SHARE) * len(stamps))
    return max(int(stamps.sort()[index]), int(distinct[1]))


def holdout_rows(past: pl.DataFrame, max_users: int, half_of_users: int) -> pl.DataFrame:
    """Return user_id and stamp of the moments held out for validation."""
    rows = without_undone(past.filter(~guest_rows()))
    moments = rows.filter(pl.col(LABEL) > 0).select(USER_ID, STAMP).unique()
    last_moments = moments.group_by(USER_ID).agg(pl.col(STAMP).max())
    inputs = rows.filter(pl.col(USE).is_in([int(Use.TARGET), int(Use.INPUT)])).select(
        USER_ID, pl.col(STAMP).alias("seen")
    )
    earlier_inputs = last_moments.join(inputs.unique(), on=USER_ID).filter(pl.col("seen") <= pl.col(STAMP))
    last_moments = last_moments.join(earlier_inputs.group_by(USER_ID).agg(pl.len().alias("moments")), on=USER_ID)
    is_late = pl.col(STAMP) >= validation_start(moments[STAMP])
    eligible = last_moments.filter((pl.col("moments") >= 2) & is_late)[USER_ID].sort().to_list()
    ordered = sorted(
        (hash_unit_interval("valid", user_id), user_id) for user_id in eligible if not is_holdout_user(user_id)
    )
    users = [user_id for _, user_id in ordered[: min(max_users, half_of_users)]]
    return last_moments.filter(pl.col(USER_ID).is_in(users)).select(USER_ID, STAMP)


def n_users(rows: pl.DataFrame) -> int:
    """Number of users of a log, without guest baskets."""
    return rows.filter(~guest_rows())[USER_ID].n_unique()
