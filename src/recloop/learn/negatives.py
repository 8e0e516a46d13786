"""What people turned down, as training rows: dislikes, skips, and what they passed over in a list they clicked in.

A negative teaches by a loss term of its own (`recloop.learn.losses.turned_down`), at the vector that the user had just
before: it is added to the other items of the softmax, never in their place.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl

from recloop.features.state import offsets_of
from recloop.features.vocab import Vocabulary
from recloop.models.base import Negatives, TrainData
from recloop.records import EVENT_TYPE, ITEM_ID, LABEL, SEQ, STAMP, TIMESTAMP, USER_ID, WEIGHT

REQUEST_ID: Final = "request_id"
IMPRESSION: Final = "impression"
SLOT: Final = "slot"
SHOWN_WEIGHT: Final = 0.1
"""Weight of a shown item that was passed over: weak, and small for recall (definitions, section 5)."""


def negatives(items: Vocabulary, users: Vocabulary, train: pl.DataFrame) -> Negatives | None:
    """The negative rows of a split: one a (user, moment, item), with its largest weight; None where there is none.

    A negative that a later positive took back teaches nothing, as it hides nothing.

    Args:
        items, users: Of the tables; rows of others are left out.
        train: Labelled rows.
    """
    key = [USER_ID, ITEM_ID, STAMP]
    rows = train.filter(pl.col(LABEL) < 0).select(*key, SEQ, WEIGHT)
    if REQUEST_ID in train.columns:
        rows = pl.concat([rows, passed_over(train)])
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


def passed_over(rows: pl.DataFrame, slots: pl.DataFrame | None = None) -> pl.DataFrame:
    """Shown above the last click of the same request and not taken (Joachims et al., SIGIR 2005): weak negatives.

    Below the last click, and in requests without one, nothing is learned.

    Args:
        rows: Labelled rows; those with a request_id count, impressions as what was on screen.
        slots: request_id, item_id, slot (from 0) of answered decisions; without, the order of a request's impressions.

    Returns:
        user_id, item_id, stamp, seq, weight.
    """
    rows = rows.filter(pl.col(REQUEST_ID).is_not_null())
    seen = rows.filter(pl.col(EVENT_TYPE) == IMPRESSION).sort(REQUEST_ID, TIMESTAMP, SEQ)
    if slots is None:
        first = seen.unique([REQUEST_ID, ITEM_ID], keep="first", maintain_order=True)
        slots = first.select(REQUEST_ID, ITEM_ID, pl.int_range(pl.len()).over(REQUEST_ID).alias(SLOT))
    taken = rows.filter((pl.col(LABEL) > 0) | (pl.col(EVENT_TYPE) == "click")).select(REQUEST_ID, ITEM_ID, USER_ID, SEQ)
    clicks = taken.join(slots, on=[REQUEST_ID, ITEM_ID]).group_by(REQUEST_ID)
    last = clicks.agg(pl.col(SLOT).max().alias("last"), pl.col(SEQ).max(), pl.col(USER_ID).first())
    stamps = rows.select(SEQ, STAMP)
    above = slots.join(last.join(stamps, on=SEQ), on=REQUEST_ID).filter(pl.col(SLOT) < pl.col("last"))
    above = above.join(taken, on=[REQUEST_ID, ITEM_ID], how="anti")
    refused = rows.filter(pl.col(LABEL) < 0).select(REQUEST_ID, ITEM_ID)  # said already, and louder
    above = above.join(refused, on=[REQUEST_ID, ITEM_ID], how="anti")
    weight = pl.lit(SHOWN_WEIGHT, dtype=pl.Float32).alias(WEIGHT)
    return above.select(USER_ID, ITEM_ID, STAMP, SEQ, weight).sort(SEQ, ITEM_ID)


class Anchored:
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
