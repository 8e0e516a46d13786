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
SHOWN_WEIGHT: Final = 0.1
"""Weight of a skipped item (docs/definitions/feedback.md)."""


def negatives(
    items: Vocabulary, users: Vocabulary, train: pl.DataFrame, shown: pl.DataFrame | None = None
) -> Negatives | None:
    """Return a split's negative rows, one per (user, moment, item).

    Each row has the largest weight of its group. A negative is ignored if a later positive retracts it. None without
    negatives.

    Args:
        items, users: Vocabularies of the tables; rows of other ids are dropped.
        train: Labelled rows.
        shown: As in `skipped_above_click`.
    """
    key = [USER_ID, ITEM_ID, STAMP]
    rows = train.filter(pl.col(LABEL) < 0).select(*key, SEQ, WEIGHT)
    if REQUEST_ID in train.columns:
        rows = pl.concat([rows, skipped_above_click(train, shown)])
    if not len(rows):
        return None
    rows = rows.group_by(key).agg(pl.col(SEQ).min(), pl.col(WEIGHT).max())
    later = train.filter(pl.col(LABEL) > 0).group_by(USER_ID, ITEM_ID).agg(pl.col(STAMP).max().alias("later"))
    rows = rows.join(later, on=[USER_ID, ITEM_ID], how="left")
    rows = rows.filter(pl.col("later").is_null() | (pl.col("later") <= pl.col(STAMP))).sort(USER_ID, STAMP, ITEM_ID)
    user_ix, item_ix = users.lookup(rows[USER_ID], len(rows)) - 1, items.lookup(rows[ITEM_ID], len(rows))
    known = (user_ix >= 0) & (item_ix > 0)
    if not known.any():
        return None
    return Negatives(
        user_ix=user_ix[known],
        items=item_ix[known],
        stamps=rows[STAMP].to_numpy()[known],
        seqs=rows[SEQ].to_numpy()[known],
        weights=rows[WEIGHT].to_numpy()[known],
    )


def skipped_above_click(rows: pl.DataFrame, shown: pl.DataFrame | None = None) -> pl.DataFrame:
    """Return weak negatives: items shown above a request's last click but not taken.

    Source: Joachims et al., SIGIR 2005. Items below the last click and requests without a click are ignored.

    Args:
        rows: Labelled rows; only those with a request_id are used.
        shown: request_id, user_id, item_id, slot (from 0) of answered lists (`slots_of`). A request without such rows
            uses its impressions in their order.

    Returns:
        user_id, item_id, stamp, seq, weight: the stamp and the seq of the request's newest click.
    """
    request, one = [REQUEST_ID, USER_ID], [REQUEST_ID, USER_ID, ITEM_ID]
    rows = rows.filter(pl.col(REQUEST_ID).is_not_null())
    seen = rows.filter(pl.col(EVENT_TYPE) == IMPRESSION).sort(REQUEST_ID, TIMESTAMP, SEQ)
    seen = seen.unique(one, keep="first", maintain_order=True)
    slots = seen.select(*one, pl.int_range(pl.len()).over(request).alias(SLOT))
    if shown is not None:
        slots = pl.concat([shown.select(slots.columns), slots.join(shown, on=REQUEST_ID, how="anti")])
    looked = pl.col(USE) == Use.INPUT if USE in rows.columns else pl.lit(False)
    taken = rows.filter((pl.col(LABEL) > 0) | looked | (pl.col(EVENT_TYPE) == CLICK)).select(*one, SEQ, STAMP)
    clicks = taken.join(slots, on=one).group_by(request)
    last = clicks.agg(pl.col(SLOT).max().alias("last"), pl.col(SEQ).max(), pl.col(STAMP).max())
    above = slots.join(last, on=request).filter(pl.col(SLOT) < pl.col("last"))
    refused = rows.filter(pl.col(LABEL) < 0).select(one)  # already stronger negatives
    above = above.join(pl.concat([taken.select(one), refused]), on=one, how="anti")
    weight = pl.lit(SHOWN_WEIGHT, dtype=pl.Float32).alias(WEIGHT)
    return above.select(USER_ID, ITEM_ID, STAMP, SEQ, weight).sort(SEQ, ITEM_ID)


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
        found = data.negatives
        assert found is not None
        moments = len(data.stamps)
        # Sort by user, stamp, negatives first, so that only earlier moments count.
        user = np.concatenate([data.moment_user, found.user_ix])
        stamp = np.concatenate([data.stamps, found.stamps])
        is_moment = np.arange(len(user)) < moments
        order = np.lexsort((is_moment, stamp, user))
        before = np.empty(len(user), dtype=np.int64)
        before[order] = np.cumsum(is_moment[order])
        anchor = before[moments:] - 1
        # A user's newest moment is only a target; later negatives use the moment before it.
        anchor = np.minimum(anchor, data.user_offsets[found.user_ix + 1] - 2)
        kept = anchor >= data.user_offsets[found.user_ix]
        known = np.maximum.reduceat(data.seqs, data.moment_offsets[:-1])
        kept &= known[np.maximum(anchor, 0)] < found.seqs  # the vector contains only rows that had arrived by then
        anchor = anchor[kept]
        order = np.argsort(anchor, kind="stable")
        self.moment = anchor[order]
        self.items = found.items[kept][order].astype(np.int64)
        self.weights = found.weights[kept][order].astype(np.float32)
        self.offsets = offsets_of(np.bincount(anchor, minlength=moments))

    def for_windows(self, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the negatives of each window: (K,) window number, (K,) row of ``items``."""
        low, high = self.offsets[starts], self.offsets[stops]
        window = np.repeat(np.arange(len(starts)), high - low)
        ends = np.cumsum(high - low)
        return window, low[window] + np.arange(len(window)) - (ends - (high - low))[window]
