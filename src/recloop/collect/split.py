"""Cut the believed log in time: what is learned from, what chooses (validation), what tests (definitions, section 2).

The cut is the stamp of event floor(quantile * n), counted from 0 in (timestamp, seq) order. Before it lies what has an
earlier *moment* stamp, so no moment is torn apart; shuffling the rows inside moments changes no query.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import polars as pl

from recloop.config import Split
from recloop.errors import UserError
from recloop.records import LABEL, SEQ, STAMP, TIMESTAMP, USER_ID, hash_share, is_old


class Parts(NamedTuple):
    """A split log: three labelled frames in the order of seq, and the cut between the first two and the last."""

    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame
    cut: int


def split(labelled: pl.DataFrame, config: Split) -> Parts:
    """Split a labelled log by ``protocol = "temporal"``.

    Validation = the last moment before the cut of the users of smallest hash("valid") with two moments or more before
    it, ``validation_users`` of them and half of all users at most, never one of hash("old") < 2 %. Moments here are
    those with a positive: nothing else is asked for.

    Raises:
        UserError: everything happened at one instant, or nothing positive happened before the cut.
    """
    labelled = labelled.sort(SEQ)
    if not len(labelled):
        raise UserError(
            "data.events", "0 believed rows", "rows that the rules of [clean] let through", "recloop doctor"
        )
    cut = cut_of(labelled, config.quantile)
    before = pl.col(STAMP) < cut
    test = labelled.filter(~before)
    past = labelled.filter(before)
    if not len(past):
        first = labelled[TIMESTAMP].min()
        raise UserError(
            "split.quantile", config.quantile,
            f"rows before the cut; all {len(labelled):,} rows lie at or after it"
            + (" (all happened at one instant)" if first == labelled[TIMESTAMP].max() else "")
            + ", and a split in time needs rows at two instants or more",
            "a longer log, or a look at data.columns.timestamp",
        )  # fmt: skip
    if not (past[LABEL] > 0).any():
        raise UserError(
            "events.positive",
            "no match",
            f"positive rows before the cut; none of {len(past):,} is one",
            "recloop doctor",
        )
    held = held_out(past, config.validation_users, labelled[USER_ID].n_unique() // 2)
    keys = [USER_ID, STAMP]
    valid = past.join(held, on=keys, how="semi", maintain_order="left")
    train = past.join(held, on=keys, how="anti", maintain_order="left")
    return Parts(train, valid, test, cut)


def cut_of(labelled: pl.DataFrame, quantile: float) -> int:
    """The stamp of event floor(quantile * n) in (timestamp, seq) order."""
    place = math.floor(quantile * len(labelled))
    return int(labelled.sort(TIMESTAMP, SEQ)[TIMESTAMP][min(place, len(labelled) - 1)])


def held_out(past: pl.DataFrame, most: int, half: int) -> pl.DataFrame:
    """user_id and stamp of the moments held out for validation."""
    moments = past.filter(pl.col(LABEL) > 0).select(USER_ID, STAMP).unique()
    last = moments.group_by(USER_ID).agg(pl.len().alias("moments"), pl.col(STAMP).max())
    able = last.filter(pl.col("moments") >= 2)[USER_ID].sort().to_list()
    chosen = sorted((hash_share("valid", user_id), user_id) for user_id in able if not is_old(user_id))
    users = [user_id for _, user_id in chosen[: min(most, half)]]
    return last.filter(pl.col(USER_ID).is_in(users)).select(USER_ID, STAMP)
