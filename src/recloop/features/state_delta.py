"""Rows that arrived after a history of states.

They are added one by one, read as states, and merged into the next history.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from recloop.features.id_index import ItemCodes, id_hash
from recloop.features.labels import with_uses
from recloop.features.moments import is_closed, moment_of_row
from recloop.features.state import StateBatch, StateRows, newest_rows, no_rows, states_of_rows
from recloop.features.state_history import OpenGroups, StateHistory
from recloop.features.undo import INPUTS, Kind, Kinds
from recloop.records import GROUP_ID, ITEM_ID, PAIR, SEQ, TIMESTAMP, UNITS, USE, USER_ID, WEIGHT, Use, guest_rows

EVENT_COLUMNS = (USER_ID, ITEM_ID, TIMESTAMP, GROUP_ID, USE, WEIGHT, PAIR, UNITS, SEQ)
"""Arguments of `StateDelta.add`, in order."""


class Act(NamedTuple):
    """Row of a state: moment stamp, item code, number of the kind, seq."""

    stamp: int
    item: int
    kind: int
    seq: int


class UserDelta:
    """Later rows and attributes of one user.

    Attributes:
        acts: Rows with a use, by ascending seq.
        versions: (seq, attributes), oldest first.
        newest: Newest timestamp of a valid row; None without rows. Of the later rows only, until `open_groups`.
        groups: Newest moment stamp of each open group, by the hash of its id; None until `open_groups`.
    """

    __slots__ = ("acts", "groups", "newest", "versions")

    def __init__(self) -> None:
        self.acts: list[Act] = []
        self.versions: list[tuple[int, Mapping[str, Any]]] = []
        self.newest: int | None = None
        self.groups: dict[int, int] | None = None

    def open_groups(self, newest: int | None, groups: dict[int, int]) -> dict[int, int]:
        """Add the newest timestamp and the groups of the rows before; return the groups."""
        if newest is not None:
            self.newest = newest if self.newest is None else max(self.newest, newest)
        self.groups = groups
        return groups

    def moment_stamp(self, timestamp: int, group_id: str | None) -> int:
        """Stamp of a new row's moment; the row is recorded as the newest of its group.

        A row with a group needs `open_groups`.
        """
        stamp = timestamp
        if group_id is not None:
            assert self.groups is not None
            group = id_hash(group_id)
            stamp = moment_of_row(self.groups.get(group), timestamp, self.newest)
            if group not in self.groups and len(self.groups) >= MAX_GROUPS:
                self.groups = {key: moment for key, moment in self.groups.items() if not is_closed(moment, self.newest)}
            self.groups[group] = stamp
        self.newest = timestamp if self.newest is None else max(self.newest, timestamp)
        return stamp


MAX_GROUPS = 64
"""Number of groups of a user above which ended groups are removed."""


class StateDelta:
    """Rows after ``history``, by user; guest baskets must not be added.

    ``codes`` and ``kinds`` are those of the history and grow with the rows.
    """

    def __init__(self, history: StateHistory, groups: OpenGroups | None = None) -> None:
        self.history = history
        self.codes: ItemCodes = history.codes
        self.kinds: Kinds = history.kinds
        self._groups = groups
        self._users: dict[str, UserDelta] = {}

    def __len__(self) -> int:
        return len(self._users)

    def __iter__(self) -> Iterator[tuple[str, UserDelta]]:
        return iter(self._users.items())

    def get(self, user_id: str) -> UserDelta | None:
        return self._users.get(user_id)

    def add(
        self,
        user_id: str,
        item_id: str,
        timestamp: int,
        group_id: str | None,
        use: int,
        weight: float = 1.0,
        pair: str = "",
        units: float = 1.0,
        seq: int = 0,
    ) -> None:
        """Add one valid event; events must be added in seq order."""
        user = self._users.get(user_id) or self._user(user_id)
        if group_id is not None and user.groups is None:
            user.open_groups(*self._open_groups(user_id))
        stamp = user.moment_stamp(timestamp, group_id)
        if use != Use.NONE:
            kind = self.kinds.number(Kind(use, pair, weight, units))
            user.acts.append(Act(stamp, self.codes.add(item_id), kind, seq))

    def add_rows(self, rows: Iterable[Sequence[Any]]) -> None:
        """Add rows of `rows_of`, in seq order."""
        for row in rows:
            self.add(*row)

    def describe(self, user_id: str, seq: int, attributes: Mapping[str, Any]) -> None:
        """Add a version of a user's attributes; versions must be added in seq order."""
        (self._users.get(user_id) or self._user(user_id)).versions.append((seq, attributes))

    def _user(self, user_id: str) -> UserDelta:
        user = self._users[user_id] = UserDelta()
        return user

    def groups_of(self, user_id: str) -> tuple[int | None, dict[int, int]]:
        """Newest timestamp and groups of a user, earlier rows included."""
        user = self._users.get(user_id)
        if user is None:
            return None, {}
        groups = user.open_groups(*self._open_groups(user_id)) if user.groups is None else user.groups
        return user.newest, groups

    def _open_groups(self, user_id: str) -> tuple[int | None, dict[int, int]]:
        """Newest timestamp and open groups of a user in the history."""
        position = self.history.users.find(user_id)
        if position < 0 or self._groups is None:
            return None, {}
        return self._groups.of_user(position)


class UserRows(NamedTuple):
    """Newest rows of one user, sorted as in a history, and its number of inputs.

    ``n_acts`` and ``n_versions`` count the acts and versions of the delta that are included.
    """

    rows: StateRows
    seq: np.ndarray  # (n,) int64
    positives: int
    attributes: Mapping[str, Any] | None
    n_acts: int = 0
    n_versions: int = 0

    @property
    def nbytes(self) -> int:
        return self.seq.nbytes * 4


def stored_rows(history: StateHistory, user_id: str) -> UserRows:
    """Rows of a user in a history that its newest state needs."""
    position = history.users.find(user_id)
    if position < 0:
        return UserRows(no_rows(), np.zeros(0, dtype=np.int64), 0, None)
    own = history.newest_rows(position)
    stamp = history.stamp[own]
    rows = StateRows(np.zeros(len(stamp), dtype=np.int64), stamp, history.item[own], history.kind[own])
    attributes = history.versions.as_of(position, np.iinfo(np.int64).max)
    return UserRows(rows, history.seq[own], int(history.positives[position]), attributes)


def with_delta(
    user: UserRows, delta: UserDelta, codes: ItemCodes, kinds: Kinds, max_seq: int | None = None
) -> UserRows:
    """Add the acts and versions of a delta that ``user`` does not include yet.

    Args:
        max_seq: The newest seq to include; None for all.
    """
    acts, versions = delta.acts[user.n_acts :], delta.versions[user.n_versions :]
    if max_seq is not None:
        acts = [act for act in acts if act.seq <= max_seq]
        versions = [version for version in versions if version[0] <= max_seq]
    attributes = versions[-1][1] if versions else user.attributes
    n_acts, n_versions = user.n_acts + len(acts), user.n_versions + len(versions)
    if not acts:
        return user._replace(attributes=attributes, n_versions=n_versions)
    positives = user.positives + sum(kinds.use[act.kind] in INPUTS for act in acts)
    rows, seq = _merged(user.rows, user.seq, acts, codes)
    kept = newest_rows(rows)
    if kept is not None:
        rows, seq = rows.take(kept), seq[kept]
    return UserRows(rows, seq, positives, attributes, n_acts, n_versions)


def state_of_user(user_id: str, user: UserRows, codes: ItemCodes, kinds: Kinds) -> StateBatch:
    """State of a user's rows as a batch of one."""
    return states_of_rows([user_id], codes, kinds, user.rows, np.array([user.positives]), [user.attributes])


def _merged(rows: StateRows, seq: np.ndarray, acts: Sequence[Act], codes: ItemCodes) -> tuple[StateRows, np.ndarray]:
    """Merge acts into sorted rows.

    Rows before the oldest moment of an act stay as they are.
    """
    start = int(np.searchsorted(rows.stamp, min(act.stamp for act in acts)))
    columns = (rows.stamp[start:], rows.item[start:], rows.kind[start:], seq[start:])
    later = [*map(Act._make, zip(*(column.tolist() for column in columns), strict=True)), *acts]
    later.sort(key=lambda act: (act.stamp, codes.ids[act.item], act.seq))
    stamps, items, numbers, seqs = zip(*later, strict=True)
    merged = StateRows(
        np.zeros(start + len(later), dtype=np.int64),
        np.concatenate([rows.stamp[:start], np.array(stamps, dtype=np.int64)]),
        np.concatenate([rows.item[:start], np.array(items, dtype=np.int32)]),
        np.concatenate([rows.kind[:start], np.array(numbers, dtype=np.int32)]),
    )
    return merged, np.concatenate([seq[:start], np.array(seqs, dtype=np.int64)])


def rows_of(labelled: pl.DataFrame) -> list[tuple[Any, ...]]:
    """Rows of labelled valid events as arguments of `StateDelta.add`, by seq.

    Guest baskets are left out.
    """
    return with_uses(labelled).filter(~guest_rows()).sort(SEQ).select(EVENT_COLUMNS).rows()
