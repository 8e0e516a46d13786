"""Share of repeats: how often a user acts on an item again."""

from __future__ import annotations

import polars as pl

from recloop.records import EVENT_TYPE, ITEM_ID, LABEL, USER_ID, guest_rows


def repeat_share(labelled: pl.DataFrame) -> float:
    """Share of the users' positive acts that repeat an earlier one of the same item.

    Rows of different types are one act, such as a cart and the purchase after it. Thus a pair of user and item has as many
    acts as rows of its most frequent type. Guest baskets have no earlier act.
    """
    positive = labelled.filter((pl.col(LABEL) > 0) & ~guest_rows())
    rows_of_type = positive.group_by(USER_ID, ITEM_ID, EVENT_TYPE).len()
    acts = rows_of_type.group_by(USER_ID, ITEM_ID).agg(pl.col("len").max())["len"]
    return 1.0 - len(acts) / int(acts.sum()) if len(acts) else 0.0
