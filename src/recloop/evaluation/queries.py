"""The queries of a test: which moments are asked about, what is in sight, what was then taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recloop.errors import UserError
from recloop.features.state import offsets_of
from recloop.features.undo import without_undone
from recloop.records import ITEM_ID, LABEL, SEQ, STAMP, USER_ID

Targets = Literal["next", "successive", "last"]


@dataclass(frozen=True)
class Queries:
    """Q queries: user, the newest seq in sight, ``now`` (int64 microseconds), and flat target ids with offsets."""

    users: list[str]
    as_of: NDArray[np.int64]
    now: NDArray[np.int64]
    offsets: NDArray[np.int64]
    targets: list[str]

    def __len__(self) -> int:
        return len(self.users)


def make_queries(test: pl.DataFrame, which: Targets) -> Queries:
    """The queries of a test: NEXT (a user's first moment), SUCCESSIVE (every one), LAST (the last one).

    A moment without a target is not a query, and what an undo of the test took back is not a target. Neither a row of the moment nor a later seq is in sight.

    Raises:
        UserError: LAST where moments hold several items: "the last item" is then the largest id of a basket.
    """
    rows = (
        without_undone(test)
        .group_by(USER_ID, STAMP)
        .agg(pl.col(SEQ).min() - 1, pl.col(ITEM_ID).filter(pl.col(LABEL) > 0).unique().sort())
        .filter(pl.col(ITEM_ID).list.len() > 0)
        .sort(USER_ID, STAMP)
    )
    if which == "last":
        several = int((rows[ITEM_ID].list.len() > 1).sum())
        if several:
            expected = f"moments of one item ({several} of {len(rows)} test moments hold several)"
            raise UserError("split.targets", which, expected, '--set split.targets="successive"')
        rows = rows.unique(USER_ID, keep="last", maintain_order=True)
    elif which == "next":
        rows = rows.unique(USER_ID, keep="first", maintain_order=True)
    return Queries(
        users=rows[USER_ID].to_list(),
        as_of=rows[SEQ].to_numpy(),
        now=rows[STAMP].to_numpy(),
        offsets=offsets_of(rows[ITEM_ID].list.len().to_numpy()),
        targets=rows[ITEM_ID].explode().to_list() if len(rows) else [],
    )
