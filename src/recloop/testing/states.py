"""States of users from acts added one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from recloop.features.id_index import ItemCodes, UserIndex
from recloop.features.moments import moment_stamps
from recloop.features.state import StateBatch, StateRows, no_rows, states_of_rows
from recloop.features.state_delta import StateDelta, UserRows, stored_rows, with_delta
from recloop.features.state_history import StateHistory, Versions, open_groups
from recloop.features.state_store import StoredStates
from recloop.features.undo import Kinds


class UserActs:
    """Acts and attributes of one user."""

    def __init__(self, attributes: Mapping[str, Any] | None = None) -> None:
        self.attributes = attributes
        self.acts: list[tuple[Any, ...]] = []

    def add(self, item_id: str, timestamp: int, group_id: str | None, use: int, *kind: Any) -> None:
        """Add one valid event; ``kind`` is its weight, pair and units."""
        self.acts.append((item_id, timestamp, group_id, use, *kind))

    def state(self, user: str = "u") -> StateBatch:
        """State as a batch of one."""
        return states_of([user], [self])


def states_of(users: Sequence[str], acts: Sequence[UserActs]) -> StateBatch:
    """States of users, as a service that received their acts in this order."""
    delta = StateDelta(no_history())
    rows: list[UserRows] = []
    for b, own in enumerate(acts):
        for act in own.acts:
            delta.add(str(b), *act)
        user = stored_rows(delta.history, str(b))
        added = delta.get(str(b))
        rows.append(user if added is None else with_delta(user, added, delta.codes, delta.kinds))
    columns = [StateRows(np.full(len(user.seq), b, dtype=np.int64), *user.rows[1:]) for b, user in enumerate(rows)]
    joined = StateRows(*(np.concatenate(parts) for parts in zip(no_rows(), *columns, strict=True)))
    positives = np.array([user.positives for user in rows], dtype=np.int64)
    return states_of_rows(users, delta.codes, delta.kinds, joined, positives, [own.attributes for own in acts])


def no_history() -> StateHistory:
    """History without rows."""
    empty = np.zeros(0, dtype=np.int64)
    return StateHistory.from_columns(
        users=UserIndex.from_ids([])[0],
        codes=ItemCodes(),
        kinds=Kinds(),
        row_offsets=np.zeros(1, dtype=np.int64),
        stamp=empty,
        seq=empty,
        item=empty.astype(np.int32),
        kind=empty.astype(np.int32),
        positives=empty,
        versions=Versions.from_texts(empty, empty, [], 0),
        last_seq=0,
    )


def digests(stored: StoredStates) -> dict[str, str]:
    """Digest of the newest state of every user."""
    users = stored.history.users.ids()
    states = stored.history.states(users, [np.iinfo(np.int64).max] * len(users))
    return {user: states.digest(b) for b, user in enumerate(users)}


def digests_of_frame(labelled: pl.DataFrame, users: pl.DataFrame | None) -> dict[str, str]:
    """`digests` of valid events, labelled but without moments."""
    frame = moment_stamps(labelled)
    history = StateHistory(frame, users)
    return digests(StoredStates(history, open_groups(frame, history), 0, ""))
