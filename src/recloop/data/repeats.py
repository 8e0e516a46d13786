"""Share of repeats: how often a user acts on an item again."""

from __future__ import annotations

import polars as pl

from recloop.data.codes import codes, pair_codes
from recloop.records import EVENT_TYPE, ITEM_ID, LABEL, STAMP, USER_ID, guest_rows

NEWEST_SHARE = 0.1
"""Share of the positive rows that `new_item_share` reads, the newest ones."""


def repeat_share(labelled: pl.DataFrame) -> float:
    """Share of the users' positive acts that repeat an earlier one of the same item.

    Rows of different types are one act, such as a cart and the purchase after it. Thus a pair of user and item has as many
    acts as rows of its most frequent type. Guest baskets have no earlier act.
    """
    acts = positive_acts(labelled)
    return 1.0 - len(acts) / int(acts.sum()) if len(acts) else 0.0


def positive_acts(labelled: pl.DataFrame) -> pl.Series:
    """(pairs,) acts of each user and item with a positive row, without guests."""
    positive = (
        labelled.lazy().filter((pl.col(LABEL) > 0) & ~guest_rows()).select(USER_ID, ITEM_ID, EVENT_TYPE).collect()
    )
    pairs = pl.DataFrame(
        {"pair": pair_codes(positive[USER_ID], positive[ITEM_ID]), EVENT_TYPE: codes(positive[EVENT_TYPE])}
    )
    return pairs.group_by("pair", EVENT_TYPE).len().group_by("pair").agg(pl.col("len").max())["len"]


def new_item_share(labelled: pl.DataFrame) -> float:
    """Share of new items among the newest items of users with a history.

    0 without such items.

    A pair of user and item is new if its first positive row is among the newest tenth of the rows. It counts if the user has an
    earlier row.
    """
    positive = labelled.filter((pl.col(LABEL) > 0) & ~guest_rows())
    if not len(positive):
        return 0.0
    start = positive[STAMP].quantile(1 - NEWEST_SHARE, "lower")
    pairs = pl.DataFrame(
        {
            "user": codes(positive[USER_ID]),
            "pair": pair_codes(positive[USER_ID], positive[ITEM_ID]),
            "earlier": positive[STAMP] < start,
        }
    )
    known = pairs.filter("earlier")
    newest = pairs.filter(~pl.col("earlier")).unique("pair").join(known, on="user", how="semi")
    n_new = len(newest.join(known, on="pair", how="anti"))
    return n_new / len(newest) if len(newest) else 0.0
