"""Share of repeats: how often a user acts on an item again."""

from __future__ import annotations

import polars as pl

from recloop.data.codes import codes, pair_codes
from recloop.records import EVENT_TYPE, ITEM_ID, LABEL, USER_ID, guest_rows


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
