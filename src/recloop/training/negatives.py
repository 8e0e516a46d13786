"""What people turned down, as training rows: dislikes, skips, and what they passed over in a list they clicked in.

A negative teaches by a loss term of its own (`recloop.training.losses`), at the vector that the user had just before: it is
added to the other items of the softmax, never in their place.
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
"""Weight of a shown item that was passed over: weak, and small for recall (definitions, section 5)."""


def negatives(
    items: Vocabulary, users: Vocabulary, train: pl.DataFrame, shown: pl.DataFrame | None = None
) -> Negatives | None:
    """The negative rows of a split: one a (user, moment, item), with its largest weight; None where there is none.

    A negative that a later positive took back teaches nothing, as it hides nothing.

    Args:
        items, users: Of the tables; rows of others are left out.
        train: Labelled rows.
        shown: As for `skipped_above_click`.
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
    """Shown above the last click of the same request and not taken (Joachims et al., SIGIR 2005): weak negatives.

    Below the last click, and in requests without one, nothing is learned.

    Args:
        rows: Labelled rows; those with a request_id count.
        shown: request_id, user_id, item_id, slot (from 0) of answered lists (`slots_of`); where a request is not among
            them, its impressions in their order stand for it.

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
    refused = rows.filter(pl.col(LABEL) < 0).select(one)  # said already, and louder
    above = above.join(pl.concat([taken.select(one), refused]), on=one, how="anti")
    weight = pl.lit(SHOWN_WEIGHT, dtype=pl.Float32).alias(WEIGHT)
    return above.select(USER_ID, ITEM_ID, STAMP, SEQ, weight).sort(SEQ, ITEM_ID)


def slots_of(decisions: Iterable[Decision]) -> pl.DataFrame:
    """The slots of answered lists: request_id, user_id, item_id, slot from 0."""
    rows = [
        (one.request_id, one.user_id, item, slot)
        for one in decisions
        if one.role == "answer"
        for slot, item in enumerate(one.items)
    ]
    schema = {REQUEST_ID: pl.String, USER_ID: pl.String, ITEM_ID: pl.String, SLOT: pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


class NegativesByMoment:
    """Negatives by the moment whose end they are asked of: the user's last one strictly before, that an input is.

    Moment m owns ``offsets[m]:offsets[m+1]`` of ``items`` and ``weights``.
    """

    def __init__(self, data: TrainData) -> None:
        found = data.negatives
        assert found is not None
        moments = len(data.stamps)
        # One order over moments and negatives: by user, stamp, negatives first, so that only earlier moments count.
        user = np.concatenate([data.moment_user, found.user_ix])
        stamp = np.concatenate([data.stamps, found.stamps])
        is_moment = np.arange(len(user)) < moments
        order = np.lexsort((is_moment, stamp, user))
        before = np.empty(len(user), dtype=np.int64)
        before[order] = np.cumsum(is_moment[order])
        anchor = before[moments:] - 1
        # A user's newest moment is a target alone; what came after it is asked of the one before.
        anchor = np.minimum(anchor, data.user_offsets[found.user_ix + 1] - 2)
        kept = anchor >= data.user_offsets[found.user_ix]
        known = np.maximum.reduceat(data.seqs, data.moment_offsets[:-1])
        kept &= known[np.maximum(anchor, 0)] < found.seqs  # what had not arrived was no part of the vector
        anchor = anchor[kept]
        order = np.argsort(anchor, kind="stable")
        self.moment = anchor[order]
        self.items = found.items[kept][order].astype(np.int64)
        self.weights = found.weights[kept][order].astype(np.float32)
        self.offsets = offsets_of(np.bincount(anchor, minlength=moments))

    def of(self, starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Windows and rows of ``items`` that lie in them: (K,) number of the window, (K,) row."""
        low, high = self.offsets[starts], self.offsets[stops]
        window = np.repeat(np.arange(len(starts)), high - low)
        ends = np.cumsum(high - low)
        return window, low[window] + np.arange(len(window)) - (ends - (high - low))[window]
