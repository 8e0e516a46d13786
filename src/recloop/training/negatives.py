"""Negative training rows: dislikes, skips, and items skipped above a click.

A negative has a separate loss term (`recloop.training.losses`) at the user's vector just before it. The term is added
to the softmax loss and does not replace the other items of the softmax.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import polars as pl

from recloop.features.state import offsets_of
from recloop.features.vocabulary import Vocabulary
from recloop.models.base import Negatives, TrainData
from recloop.records import EVENT_TYPE, ITEM_ID, LABEL, SEQ, STAMP, TIMESTAMP, USE, USER_ID, WEIGHT, Decision, Use

REQUEST_ID: Final = "request_id"
IMPRESSION: Final = "impression"
CLICK: Final = "click"
SLOT: Final = "slot"
SKIPPED_WEIGHT: Final = 0.1
"""Weight of a skipped item (docs/definitions/feedback.md)."""


def negatives(
    items: Vocabulary, users: Vocabulary, train: pl.DataFrame, served_slots: pl.DataFrame | None = None
) -> Negatives | None:
    """Return a split's negative rows, one per (user, moment, item).

    Each row has the largest weight of its group. A negative is ignored if a later positive retracts it. None without
    negatives.

    Args:
        items, users: Vocabularies of the tables; rows of other ids are dropped.
        train: Labelled rows.
        served_slots: As in `skipped_above_click`.
    """
    key = [USER_ID, ITEM_ID, STAMP]
    rows = train.filter(pl.col(LABEL) < 0).select(*key, SEQ, WEIGHT)
    if REQUEST_ID in train.columns:
        rows = pl.concat([rows, skipped_above_click(train, served_slots)])
    if not len(rows):
        return None
    rows = rows.group_by(key).agg(pl.col(SEQ).min(), pl.col(WEIGHT).max())
    later = train.filter(pl.col(LABEL) > 0).group_by(USER_ID, ITEM_ID).agg(pl.col(STAMP).max().alias("later"))
    rows = rows.join(later, on=[USER_ID, ITEM_ID], how="left")
    rows = rows.filter(pl.col("later").is_null() | (pl.col("later") <= pl.col(STAMP))).sort(USER_ID, STAMP, ITEM_ID)
    user_ix, item_ix = users.lookup(rows[USER_ID], len(rows)) - 1, items.lookup(rows[ITEM_ID], len(rows))
    in_tables = (user_ix >= 0) & (item_ix > 0)
    if not in_tables.any():
        return None
    return Negatives(
        user_ix=user_ix[in_tables],
        items=item_ix[in_tables],
        stamps=rows[STAMP].to_numpy()[in_tables],
        seqs=rows[SEQ].to_numpy()[in_tables],
        weights=rows[WEIGHT].to_numpy()[in_tables],
    )


def skipped_above_click(rows: pl.DataFrame, served_slots: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return weak negatives: items shown above a request's last click but not taken.

    Source: Joachims et al., SIGIR 2005. Items below the last click and requests without a click are ignored.

    Args:
        rows: Labelled rows; only those with a request_id are used.
        served_slots: request_id, user_id, item_id, slot (from 0) of answered lists (`slots_of`). A request without such
            rows uses its impressions in their order.

    Returns:
        user_id, item_id, stamp, seq, weight: the stamp and the seq of the request's newest click.
    """
    request_key, item_key = [REQUEST_ID, USER_ID], [REQUEST_ID, USER_ID, ITEM_ID]
    rows = rows.filter(pl.col(REQUEST_ID).is_not_null())
    impressions = rows.filter(pl.col(EVENT_TYPE) == IMPRESSION).sort(REQUEST_ID, TIMESTAMP, SEQ)
    impressions = impressions.unique(item_key, keep="first", maintain_order=True)
    slots = impressions.select(*item_key, pl.int_range(pl.len()).over(request_key).alias(SLOT))
    if served_slots is not None:
        slots = pl.concat([served_slots.select(slots.columns), slots.join(served_slots, on=REQUEST_ID, how="anti")])
    is_input = pl.col(USE) == Use.INPUT if USE in rows.columns else pl.lit(False)
    acts = rows.filter((pl.col(LABEL) > 0) | is_input | (pl.col(EVENT_TYPE) == CLICK)).select(*item_key, SEQ, STAMP)
    clicks = acts.join(slots, on=item_key).group_by(request_key)
    last_clicks = clicks.agg(pl.col(SLOT).max().alias("last"), pl.col(SEQ).max(), pl.col(STAMP).max())
    skipped = slots.join(last_clicks, on=request_key).filter(pl.col(SLOT) < pl.col("last"))
    rejected = rows.filter(pl.col(LABEL) < 0).select(item_key)  # already stronger negatives
    skipped = skipped.join(pl.concat([acts.select(item_key), rejected]), on=item_key, how="anti")
    weight = pl.lit(SKIPPED_WEIGHT, dtype=pl.Float32).alias(WEIGHT)
    return skipped.select(USER_ID, ITEM_ID, STAMP, SEQ, weight).sort(SEQ, ITEM_ID)


def slots_of(decisions: Iterable[Decision]) -> pl.DataFrame:
    """Return the slots of answered lists: request_id, user_id, item_id, slot from 0."""
    rows = [
        (decision.request_id, decision.user_id, item, slot)
        for decision in decisions
        if decision.role == "answer"
        for slot, item in enumerate(decision.items)
    ]
    schema = {REQUEST_ID: pl.String, USER_ID: pl.String, ITEM_ID: pl.String, SLOT: pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


class NegativesByMoment:
    """Negatives by the moment that scores them, the user's last earlier input moment.

    Moment m owns ``offsets[m]:offsets[m+1]`` of ``items`` and ``weights``.
    """

    def __init__(self, data: TrainData) -> None:
        rejected = data.negatives
        assert rejected is not None
        moments = len(data.stamps)
        # Sort by user, stamp, negatives first, so that only earlier moments count.
        user = np.concatenate([data.moment_user, rejected.user_ix])
        stamp = np.concatenate([data.stamps, rejected.stamps])
        is_moment = np.arange(len(user)) < moments
        order = np.lexsort((is_moment, stamp, user))
        moments_before = np.empty(len(user), dtype=np.int64)
        moments_before[order] = np.cumsum(is_moment[order])
        anchor = moments_before[moments:] - 1
        # A user's newest moment is only a target; later negatives use the moment before it.
        anchor = np.minimum(anchor, data.user_offsets[rejected.user_ix + 1] - 2)
        has_anchor = anchor >= data.user_offsets[rejected.user_ix]
        newest_seq = np.maximum.reduceat(data.seqs, data.moment_offsets[:-1])
        # the vector contains only rows that had arrived by then
        has_anchor &= newest_seq[np.maximum(anchor, 0)] < rejected.seqs
        anchor = anchor[has_anchor]
        order = np.argsort(anchor, kind="stable")
        self.moment = anchor[order]
        self.items = rejected.items[has_anchor][order].astype(np.int64)
        self.weights = rejected.weights[has_anchor][order].astype(np.float32)
        self.offsets = offsets_of(np.bincount(anchor, minlength=moments))

    def for_windows(self, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the negatives of each window: (K,) window number, (K,) row of ``items``."""
        low, high = self.offsets[starts], self.offsets[stops]
        window = np.repeat(np.arange(len(starts)), high - low)
        ends = np.cumsum(high - low)
        return window, low[window] + np.arange(len(window)) - (ends - (high - low))[window]
