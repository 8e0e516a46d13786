"""A user's state as of a seq, from the snapshot and the rows that came later; the cache of the service.

A lost cache is a rebuild, never a new user: everything here is a function of the log up to a number.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
import polars as pl

from recloop.backends.log import Log
from recloop.backends.snapshots import Snapshot
from recloop.features.signal import STANDING, Signal
from recloop.features.state import UserState, attribute_versions
from recloop.records import GROUP_ID, ITEM_ID, RULE, SEQ, TIMESTAMP, USER_ID

CACHED = 100_000
"""States kept in memory; beyond it the oldest entries go."""


class StateReader:
    """States by user, as of any seq at or after the snapshot's.

    An entry of the cache is good while no row of its user was committed after it was read: the writer calls `drop`
    with the commit's seq before it acknowledges.
    """

    def __init__(self, log: Log, snapshot: Snapshot | None, signal: Signal) -> None:
        self._log, self._snapshot, self._signal = log, snapshot, signal
        self._cache: dict[str, tuple[int, UserState]] = {}
        self._newest: dict[str, int] = {}

    def read(self, user_id: str, seq: int) -> UserState:
        """The state of a user at ``seq``; an unknown user's is empty. Callers do not change it."""
        newest = self._newest.get(user_id, 0)
        cached = self._cache.get(user_id)
        if cached is not None and newest <= cached[0] and (cached[0] <= seq or newest <= seq):
            return cached[1]
        state = self._rebuild(user_id, seq)
        if len(self._cache) >= CACHED:
            self._cache.pop(next(iter(self._cache)))
        self._cache[user_id] = (seq, state)
        return state

    def drop(self, user_ids: Iterable[str], seq: int) -> None:
        """Rows of these users were committed with numbers up to ``seq``."""
        for user_id in user_ids:
            self._newest[user_id] = seq
            self._cache.pop(user_id, None)

    def _rebuild(self, user_id: str, seq: int) -> UserState:
        stored = None if self._snapshot is None else self._snapshot.get(user_id)
        state = UserState() if stored is None else msgspec.msgpack.decode(stored, type=UserState)
        after = 0 if self._snapshot is None else self._snapshot.seq
        fold(state, self._signal.label(self._log.events(user_id, after, seq).filter(pl.col(RULE).is_null())))
        versions = attribute_versions(self._log.users(after, seq, user_id)).get(user_id)
        if versions:
            state.attributes = versions[-1][1]
        return state


def fold(state: UserState, labelled: pl.DataFrame) -> None:
    """Fold believed events of one user into a state, in the order of their seq."""
    for row in labelled.sort(SEQ).select(ITEM_ID, TIMESTAMP, GROUP_ID, STANDING).iter_rows():
        state.add(*row)


def fold_all(labelled: pl.DataFrame, users: pl.DataFrame | None) -> Iterator[tuple[str, bytes]]:
    """Every user's state as a snapshot holds it, by user id."""
    states: dict[str, UserState] = {}
    for user_id, versions in attribute_versions(users).items():
        states[user_id] = UserState(attributes=versions[-1][1])
    for user_id, *row in labelled.sort(SEQ).select(USER_ID, ITEM_ID, TIMESTAMP, GROUP_ID, STANDING).iter_rows():
        states.setdefault(user_id, UserState()).add(*row)
    for user_id in sorted(states):
        yield user_id, msgspec.msgpack.encode(states[user_id])


def fold_on(snapshot: Snapshot, labelled: pl.DataFrame, users: pl.DataFrame | None) -> Iterator[tuple[str, bytes]]:
    """The states of a snapshot moved on by later believed rows and later versions of users."""
    own = labelled.partition_by(USER_ID, as_dict=True)
    versions = attribute_versions(users)
    moved = {str(user_id) for (user_id,) in own} | set(versions)
    for user_id, stored in snapshot:
        if user_id not in moved:
            yield user_id, stored
    for user_id in sorted(moved):
        before = snapshot.get(user_id)
        state = UserState() if before is None else msgspec.msgpack.decode(before, type=UserState)
        if (user_id,) in own:
            fold(state, own[user_id,])
        if user_id in versions:
            state.attributes = versions[user_id][-1][1]
        yield user_id, msgspec.msgpack.encode(state)


def state_tree(state: UserState) -> dict[str, Any]:
    """A state as plain JSON, for golden.json."""
    tree: dict[str, Any] = json.loads(msgspec.json.encode(state))
    return tree


def state_of_tree(tree: dict[str, Any]) -> UserState:
    """The state of `state_tree`."""
    return msgspec.convert(tree, UserState)
