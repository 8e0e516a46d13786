"""Rows of forgotten users in the files of an import, which keep naming them."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import polars as pl

from recloop.data.entities import EntityTable
from recloop.records import RULE, SEQ, USER_ID
from recloop.storage.forgotten import ForgottenUsers

FORGOTTEN: Final = "forgotten"
"""Name under which the left-out rows are counted as removed."""


def leave_out(
    forgotten: ForgottenUsers,
    valid: pl.DataFrame,
    quarantine: pl.DataFrame,
    removed: dict[str, int],
    last_seq: int,
) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, int]]:
    """Leave out numbered rows of forgotten users, and count them under `FORGOTTEN`.

    The other rows keep their seqs.

    Args:
        removed: Rows by rule.
        last_seq: Last seq of the import; later rows were posted.
    """
    if not len(forgotten):
        return valid, quarantine, removed
    kept_valid, kept_quarantine = (
        frame.filter(~(forgotten.imported_rows(frame) & (frame[SEQ] <= last_seq))) for frame in (valid, quarantine)
    )
    n_rows = len(valid) + len(quarantine) - len(kept_valid) - len(kept_quarantine)
    if not n_rows:
        return valid, quarantine, removed
    counts = dict(kept_quarantine.group_by(RULE).len().iter_rows())
    rules = {rule: counts[rule] for rule in removed if rule in counts}
    return kept_valid, kept_quarantine, {**rules, FORGOTTEN: n_rows}


def leave_out_users(forgotten: ForgottenUsers, users: EntityTable | None) -> EntityTable | None:
    """Leave out the attributes of forgotten users."""
    if users is None or not len(forgotten):
        return users
    is_forgotten = pl.Series([forgotten.get(user) is not None for user in users.frame[USER_ID]], dtype=pl.Boolean)
    return replace(users, frame=users.frame.filter(~is_forgotten))
