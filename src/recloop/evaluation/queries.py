"""Test queries: evaluated moments, the visible history and the targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recloop.errors import UserError
from recloop.features.state import StateBatch, offsets_of
from recloop.features.state_history import StateHistory
from recloop.features.undo import without_undone
from recloop.records import ITEM_ID, LABEL, SEQ, STAMP, USER_ID, guest_rows

Targets = Literal["next", "successive", "last"]


@dataclass(frozen=True)
class Queries:
    """Q queries: user, newest visible seq, ``now`` in us, target ids with offsets."""

    users: list[str]
    as_of: NDArray[np.int64]
    now: NDArray[np.int64]
    offsets: NDArray[np.int64]
    targets: list[str]

    def __len__(self) -> int:
        return len(self.users)


def make_queries(test: pl.DataFrame, which: Targets) -> Queries:
    """Build the test queries: NEXT (first moment), SUCCESSIVE (every), LAST (last).

    A moment without a target is not a query, nor is a guest basket, and an undone row of the test is not a target. Rows of
    the moment and later seqs are not visible.

    Raises:
        UserError: LAST with moments of several items, where "the last item" would be the largest id of a basket.
    """
    rows = (
        without_undone(test.filter(~guest_rows()))
        .group_by(USER_ID, STAMP)
        .agg(pl.col(SEQ).min() - 1, pl.col(ITEM_ID).filter(pl.col(LABEL) > 0).unique().sort())
        .filter(pl.col(ITEM_ID).list.len() > 0)
        .sort(USER_ID, STAMP)
    )
    if which == "last":
        several = int((rows[ITEM_ID].list.len() > 1).sum())
        if several:
            expected = f"moments of one item ({several} of {len(rows)} test moments have several)"
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


def concatenate(parts: Sequence[Queries]) -> Queries:
    """Concatenate queries in order."""
    return Queries(
        users=[user for part in parts for user in part.users],
        as_of=np.concatenate([np.zeros(0, dtype=np.int64), *(part.as_of for part in parts)]),
        now=np.concatenate([np.zeros(0, dtype=np.int64), *(part.now for part in parts)]),
        offsets=offsets_of(np.concatenate([np.zeros(0, dtype=np.int64), *(np.diff(part.offsets) for part in parts)])),
        targets=[target for part in parts for target in part.targets],
    )


def states_of(timeline: StateHistory, queries: Queries, span: slice) -> StateBatch:
    """Return the states just before the queries of ``span``."""
    return timeline.states(queries.users[span], queries.as_of[span].tolist(), queries.now[span].tolist())


def codes_of_targets(timeline: StateHistory, queries: Queries) -> NDArray[np.int64]:
    """(T,) codes of the targets in the states of ``timeline``."""
    return np.array([timeline.codes.code(raw_id) for raw_id in queries.targets], dtype=np.int64)


def is_repeat(states: StateBatch, targets: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return a (T,) bool mask of targets that are already in their query's state."""
    row_offsets = states.item_offsets[states.moment_offsets]
    in_state = np.zeros(len(states.names), dtype=bool)
    repeats = np.zeros(len(targets), dtype=bool)
    for b in range(len(states)):
        rows = slice(row_offsets[b], row_offsets[b + 1])
        span = slice(offsets[b], offsets[b + 1])
        items = states.items[rows][states.targets[rows]]
        in_state[items] = True
        repeats[span] = in_state[targets[span]]
        in_state[items] = False
    return repeats
