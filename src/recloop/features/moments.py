"""Moments: stamps that join a user's simultaneous rows.

Definitions: docs/definitions/terms.md.

A moment's stamp is that of the first row (smallest seq) of its (user, group_id). A row without a group keeps its stamp.
A row more than `GROUP_SPAN` from the moment of its group starts a new moment, because receipt numbers are reused. A row
of a group that is older than `GROUP_LIFE` also starts one.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from recloop.records import DAY, GROUP_ID, MOMENT, SEQ, STAMP, TIMESTAMP, USER_ID

GROUP_SPAN: Final = DAY
"""Maximum distance of a row from the first row of its group; a more distant row starts a new moment."""
GROUP_LIFE: Final = 30 * DAY
"""A group ends when its user has a row this much later; states can then drop it."""
FIRST_OF_GROUP: Final = pl.col(TIMESTAMP).first().over(USER_ID, GROUP_ID)


def moment_stamps(frame: pl.DataFrame) -> pl.DataFrame:
    """Add ``stamp``, the stamp of each row's moment.

    Rows are returned in seq order.
    """
    if not frame[SEQ].is_sorted():
        frame = frame.sort(SEQ)
    if frame[GROUP_ID].null_count() == len(frame):
        return frame.with_columns(pl.col(TIMESTAMP).alias(STAMP))
    stamp = pl.when(pl.col(GROUP_ID).is_null()).then(pl.col(TIMESTAMP)).otherwise(FIRST_OF_GROUP)
    newest = pl.col(TIMESTAMP).cum_max().shift(1).over(USER_ID).alias("newest")
    frame = frame.with_columns(stamp.alias(STAMP), newest)
    is_not_first = pl.col(SEQ) != pl.col(SEQ).first().over(USER_ID, GROUP_ID)
    is_ended = pl.col(GROUP_ID).is_not_null() & is_not_first & (pl.col("newest") - FIRST_OF_GROUP > GROUP_LIFE)
    reused = pl.concat(
        [reused_groups(frame).select(USER_ID, GROUP_ID), frame.filter(is_ended).select(USER_ID, GROUP_ID)]
    ).unique()
    return (_regrouped(frame, reused) if len(reused) else frame).drop("newest")


def reused_groups(frame: pl.DataFrame) -> pl.DataFrame:
    """Find user_id, group_id and first distant seq of reused groups, in this order.

    A reused group has rows more than `GROUP_SPAN` from its first row. ``frame`` is in seq order.
    """
    is_far = pl.col(GROUP_ID).is_not_null() & ((pl.col(TIMESTAMP) - FIRST_OF_GROUP).abs() > GROUP_SPAN)
    far_rows = frame.lazy().filter(is_far).select(USER_ID, GROUP_ID, SEQ).collect()
    return far_rows.unique([USER_ID, GROUP_ID], keep="first", maintain_order=True)


def _regrouped(frame: pl.DataFrame, groups: pl.DataFrame) -> pl.DataFrame:
    """Stamps of groups with several moments, in seq order, as in `StateDelta.add`."""
    rows = frame.join(groups, on=[USER_ID, GROUP_ID], how="semi", maintain_order="left")
    state: dict[tuple[str, str], int] = {}
    seqs, stamps = [], []
    columns = SEQ, USER_ID, GROUP_ID, TIMESTAMP, "newest"
    for seq, user_id, group_id, timestamp, newest in rows.select(columns).iter_rows():
        state[user_id, group_id] = moment_of_row(state.get((user_id, group_id)), timestamp, newest)
        seqs.append(seq)
        stamps.append(state[user_id, group_id])
    new_stamps = pl.DataFrame({SEQ: seqs, "anew": stamps}, schema={SEQ: pl.Int64, "anew": pl.Int64})
    joined = frame.join(new_stamps, on=SEQ, how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("anew", STAMP).alias(STAMP)).drop("anew")


def moment_of_row(moment: int | None, timestamp: int, newest: int | None) -> int:
    """Moment stamp of a row that has a group.

    Args:
        moment: The newest moment stamp of the group; None if the group is new.
        newest: The newest timestamp of the user's earlier rows; None without earlier rows.
    """
    if moment is None or abs(timestamp - moment) > GROUP_SPAN or is_closed(moment, newest):
        return timestamp
    return moment


def is_closed(moment: int, newest: int | None) -> bool:
    """True if further rows cannot join a group of this moment stamp."""
    return newest is not None and newest - moment > GROUP_LIFE


def number_moments(frame: pl.DataFrame) -> pl.DataFrame:
    """Add ``moment``, the number of the user's moment, from 0, oldest first."""
    number = pl.col(STAMP).rank("dense").over(USER_ID) - 1
    return frame.with_columns(number.cast(pl.Int32).alias(MOMENT))
