"""Guests: rows with a group_id and without a user, as baskets of their own."""

from __future__ import annotations

from typing import Any, Final, Literal

import polars as pl

from recloop.records import GUEST_PREFIX

GUEST_REFUSED: Final = "guest without user_id"
"""Reject reason of a guest's row under ``data.guests = "reject"``."""

Guests = Literal["baskets", "reject"]


def fill_guests(user_ids: pl.Series, group_ids: pl.Series | None, guests: Guests) -> tuple[pl.Series, pl.Series]:
    """Give the rows without a user the user_id of their guest basket.

    Args:
        user_ids, group_ids: (n,) String; null where missing. None: the log has no groups.
        guests: The value of ``data.guests``.

    Returns:
        (n,) user ids, and a (n,) Boolean mask of the rows that ``"reject"`` refuses.
    """
    if group_ids is None or not user_ids.null_count():
        return user_ids, pl.Series([False], dtype=pl.Boolean).new_from_index(0, len(user_ids))
    is_guest = user_ids.is_null() & group_ids.is_not_null()
    if guests == "reject":
        return user_ids, is_guest
    filled = pl.select(pl.coalesce(user_ids, pl.lit(GUEST_PREFIX) + group_ids)).to_series()
    return filled.alias(user_ids.name), pl.Series([False], dtype=pl.Boolean).new_from_index(0, len(user_ids))


def is_present(raw: Any) -> bool:
    """True for an id that is not null and not blank."""
    return raw is not None and (not isinstance(raw, str) or bool(raw.strip()))
