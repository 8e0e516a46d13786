"""Split the valid log into train, validation and test.

Definitions: docs/definitions/validation.md.

The cut is the stamp of event floor(quantile * n), counted from 0 in (timestamp, seq) order. Rows with an earlier
*moment* stamp are before the cut, so moments stay whole. The order of rows inside a moment does not affect queries.
Leave-one-out is for comparison with the tables of papers: each user's last row is the test and the row before it is
validation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from recloop.config import LEAVE_ONE_OUT, Split
from recloop.errors import UserError
from recloop.features.log_end import end_of
from recloop.features.undo import without_undone
from recloop.records import (
    GUEST_PREFIX,
    ITEM_ID,
    LABEL,
    PAIR,
    SEQ,
    STAMP,
    TIMESTAMP,
    UNITS,
    USE,
    USER_ID,
    WEIGHT,
    Use,
    guest_rows,
    hash_unit_intervals,
    is_holdout_user,
)


class SplitFrames(NamedTuple):
    """Three labelled frames in seq order, and the cut before the test."""

    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame
    cut: int


VALIDATION_SHARE = 0.1
"""Share of the moments before the cut that belong to the validation period."""
MIN_POSITIVES = 3
"""Minimum of positives per user under leave-one-out: one each for train, validation and test."""


def split(labelled: pl.DataFrame, config: Split) -> SplitFrames:
    """Split a labelled log by ``split.protocol``.

    Raises:
        UserError: the protocol conflicts with other settings of ``[split]``, or the log cannot be split by it.
    """
    if not labelled[SEQ].is_sorted():
        labelled = labelled.sort(SEQ)
    if not len(labelled):
        raise UserError("data.events", "0 valid rows", "rows that pass the rules of [clean]", "recloop doctor")
    return leave_one_out(labelled, config) if config.protocol == LEAVE_ONE_OUT else temporal(labelled, config)


def leave_one_out(labelled: pl.DataFrame, config: Split) -> SplitFrames:
    """Split each user's rows: last positive test, the one before it validation.

    The other rows are training. With ``validation_rows = "sampled"`` only the ``validation_users`` users with the smallest hash("valid")
    have a validation row, and with ``validation_users = 0`` none has. Row order is time order. As in the papers' code, users with fewer
    than three positives are only in training, as are guest baskets. The split has no common instant, so the cut is after the last row,
    and a bundle of this split is only evaluated on it.

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
    last, before_last = (eligible.filter(pl.col("behind") == n) for n in (0, 1))
    if config.validation_users == 0:
        before_last = before_last.clear()
    elif config.validation_rows == "sampled":
        user_ids = before_last[USER_ID]
        order = np.argsort(hash_unit_intervals("valid", user_ids.to_list()), kind="stable")
        before_last = before_last[order[: config.validation_users]]
    test, valid = (labelled.filter(pl.col(SEQ).is_in(rows[SEQ].implode())) for rows in (last, before_last))
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
    is_positive = labelled[LABEL] > 0
    stamps = labelled[TIMESTAMP]
    facts = SplitFacts(len(labelled), bool(is_positive.any()), stamps.min() == stamps.max())
    check_past(facts, len(past), int((past[LABEL] > 0).sum()), config)
    holdout = holdout_rows(past, config.validation_users, n_users(labelled) // 2)
    keys = [USER_ID, STAMP]
    valid = past.join(holdout, on=keys, how="semi", maintain_order="left")
    train = past.join(holdout, on=keys, how="anti", maintain_order="left")
    return SplitFrames(train, valid, test, cut)


class SplitFacts(NamedTuple):
    """Facts of a labelled log that explain why it cannot be split."""

    rows: int
    has_positive: bool
    is_one_instant: bool


def check_past(log: SplitFacts, n_past: int, n_positive: int, config: Split) -> None:
    """Reject a log without rows, or without positive rows, before the cut.

    Args:
        n_past: Rows before the cut.
        n_positive: Positive rows among them.
    """
    if not n_past:
        raise UserError(
            "split.quantile", config.quantile,
            f"rows before the cut; all {log.rows:,} rows are at or after it"
            + (" (all have one instant)" if log.is_one_instant else "")
            + ", and a temporal split needs at least two instants",
            "use a longer log, or check data.columns.timestamp",
        )  # fmt: skip
    if not n_positive:
        raise UserError(
            "events",
            "no positive row before the cut" if log.has_positive else "no row is positive: see [events]",
            f"a target among the {n_past:,} rows before the cut",
            "recloop doctor --signals, then name a type under events.positive",
        )


def cut_index(n_rows: int, quantile: float) -> int:
    """Position of the event at the cut among ``n_rows`` events by time."""
    return min(math.floor(quantile * n_rows), n_rows - 1)


def cut_of(labelled: pl.DataFrame, quantile: float) -> int:
    """Stamp of event floor(quantile * n) in (timestamp, seq) order."""
    return int(labelled[TIMESTAMP].sort()[cut_index(len(labelled), quantile)])


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
    candidates = HoldoutCandidates.of(past)
    return candidates.chosen(min(max_users, half_of_users))


class HoldoutCandidates(NamedTuple):
    """Last moments of the users of a log before the cut.

    ``last_moments`` has user_id, stamp and ``moments``, the number of input moments until then. ``stamps`` (m,) are those
    of all moments with a positive row.
    """

    last_moments: pl.DataFrame
    stamps: pl.Series

    @classmethod
    def of(cls, past: pl.DataFrame) -> HoldoutCandidates:
        """Last moments of rows (LABELLED) before the cut; guests have none."""
        columns = [USER_ID, ITEM_ID, STAMP, LABEL, WEIGHT, USE, PAIR, UNITS]
        rows = without_undone(past.lazy().filter(~guest_rows()).select(columns).collect())
        moments = rows.lazy().filter(pl.col(LABEL) > 0).select(USER_ID, STAMP).unique().collect()
        last_moments = moments.group_by(USER_ID).agg(pl.col(STAMP).max())
        is_input = pl.col(USE).is_in([int(Use.TARGET), int(Use.INPUT)])
        inputs = rows.lazy().filter(is_input).select(USER_ID, pl.col(STAMP).alias("seen")).unique().collect()
        earlier_inputs = last_moments.join(inputs, on=USER_ID).filter(pl.col("seen") <= pl.col(STAMP))
        n_earlier = earlier_inputs.group_by(USER_ID).agg(pl.len().alias("moments"))
        return cls(last_moments.join(n_earlier, on=USER_ID), moments[STAMP])

    @classmethod
    def total(cls, parts: Sequence[HoldoutCandidates]) -> HoldoutCandidates:
        """Candidates of disjoint sets of users."""
        return cls(pl.concat([part.last_moments for part in parts]), pl.concat([part.stamps for part in parts]))

    def chosen(self, n: int) -> pl.DataFrame:
        """user_id and stamp of the moments of the ``n`` users with the smallest hash."""
        is_late = pl.col(STAMP) >= validation_start(self.stamps)
        eligible = self.last_moments.filter((pl.col("moments") >= 2) & is_late)[USER_ID].sort()
        order = np.argsort(hash_unit_intervals("valid", eligible.to_list()), kind="stable")
        ascending = (eligible[int(row)] for row in order)
        users = list(itertools.islice((user_id for user_id in ascending if not is_holdout_user(user_id)), n))
        return self.last_moments.filter(pl.col(USER_ID).is_in(users)).select(USER_ID, STAMP)


def n_users(rows: pl.DataFrame) -> int:
    """Number of users of a log, without guest baskets."""
    user_ids = rows[USER_ID].unique()
    return len(user_ids) - int(user_ids.str.starts_with(GUEST_PREFIX).sum())
