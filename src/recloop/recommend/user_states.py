"""A user's state as of a seq, from the snapshot and the rows that came later; the cache of the service.

A lost cache is a rebuild, never a new user: everything here is a function of the log up to a number.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import msgspec
import polars as pl

from recloop.features.labels import EventLabeler, with_uses
from recloop.features.state import UserState, attribute_versions
from recloop.recommend.cache import ByteCache, state_bytes
from recloop.records import EVENT_SCHEMA, GROUP_ID, ITEM_ID, PAIR, RULE, SEQ, TIMESTAMP, UNITS, USE, USER_ID, WEIGHT
from recloop.storage.archive import Archive
from recloop.storage.event_log import EventLog, Retraction, out_at
from recloop.storage.snapshots import Snapshot

ACT_COLUMNS = (ITEM_ID, TIMESTAMP, GROUP_ID, USE, WEIGHT, PAIR, UNITS)
"""What `UserState.add` is given, in its order."""

STATE_CACHE_BYTES = 256 * 2**20
"""Memory of the states kept for one meaning of events; beyond it the least recently used go."""
MAX_NEWEST_USERS = 100_000
"""Users whose newest seq is remembered each; of the others the newest seq that was forgotten is assumed."""


class RetractionIndex:
    """Which rows of whom were taken back, and from which seq on; what a reader of states asks before it folds.

    Held in memory, with the archived rows of those users: few rows are ever taken back, and the event loop that answers
    reads no archive. `prepare` may run on any thread; `put` and what is asked belong to the reader's.
    """

    def __init__(self, archive: Archive, log: EventLog) -> None:
        self._archive, self._log = archive, log
        self._owners: dict[int, str] = {}
        self._of: dict[str, list[Retraction]] = {}
        self._rows: dict[str, pl.DataFrame] = {}
        earlier = log.retractions()
        self.prepare(earlier)
        self.put(earlier)

    def prepare(self, rows: Sequence[Retraction]) -> None:
        """Read whose these are, and their archived rows, before they are in force."""
        seqs = [row.of_seq for row in rows if row.of_seq not in self._owners]
        if seqs:
            self._owners |= {**self._archive.owners(seqs), **self._log.owners(seqs)}
        later = {row.of_seq for row in rows if row.seq == 0 or row.seq > self._archive.watermark}
        users = sorted({self._owners[seq] for seq in later if seq in self._owners} - set(self._rows))
        if users:
            held = self._archive.of(users).partition_by(USER_ID, as_dict=True)
            self._rows |= {user: held.get((user,), pl.DataFrame(schema=EVENT_SCHEMA)) for user in users}

    def put(self, rows: Sequence[Retraction]) -> set[str]:
        """In force from their seq on; whose they are. A row that nobody has is nobody's."""
        touched = set()
        for row in rows:
            if row.of_seq in self._owners:
                touched.add(self._owners[row.of_seq])
                self._of.setdefault(self._owners[row.of_seq], []).append(row)
        return touched

    def out(self, user_id: str, seq: int) -> set[int]:
        """The events of a user that are taken back at ``seq``."""
        return out_at(self._of.get(user_id, ()), seq)

    def changed(self, user_id: str, seq: int, after: int) -> bool:
        """Whether rows up to ``after`` that are taken back at ``seq`` are others than at ``after``."""
        if not any(after < row.seq <= seq and row.of_seq <= after for row in self._of.get(user_id, ())):
            return False
        then, now = ({of for of in self.out(user_id, at) if of <= after} for at in (after, seq))
        return then != now

    def archived(self, user_id: str, seq: int, until: int) -> pl.DataFrame:
        """The archived rows of a user up to ``until`` without those taken back at ``seq``."""
        rows = self._rows[user_id].filter(pl.col(SEQ) <= until)
        return _without(rows, self.out(user_id, seq))


class StateCache:
    """States by user, as of any seq at or after the snapshot's.

    An entry of the cache is good while no row of its user was committed after it was read: the writer calls `drop`
    with the commit's seq before it acknowledges. Both the cache and what is remembered of commits are bounded.

    Args:
        retracted: What was taken back; the snapshot knows what was up to its seq.
    """

    def __init__(
        self, log: EventLog, snapshot: Snapshot | None, signal: EventLabeler, retracted: RetractionIndex | None = None
    ) -> None:
        self._log, self._snapshot, self._signal, self._retracted = log, snapshot, signal, retracted
        self._cache: ByteCache[str, tuple[int, UserState]] = ByteCache(STATE_CACHE_BYTES)
        self._newest: OrderedDict[str, int] = OrderedDict()  # in the order of the seq
        self._forgotten = 0  # the newest seq of a user that is no longer in it

    def read(self, user_id: str, seq: int) -> UserState:
        """The state of a user at ``seq``; an unknown user's is empty. Callers do not change it."""
        newest = self._newest.get(user_id, self._forgotten)
        cached = self._cache.get(user_id)
        if cached is not None and newest <= cached[0] and (cached[0] <= seq or newest <= seq):
            return cached[1]
        state = self._rebuild(user_id, seq)
        self._cache.put(user_id, (seq, state), sys.getsizeof(user_id) + state_bytes(state))
        return state

    def drop(self, user_ids: Iterable[str], seq: int) -> None:
        """Rows of these users were committed with numbers up to ``seq``."""
        for user_id in user_ids:
            self._newest[user_id] = seq
            self._newest.move_to_end(user_id)
            self._cache.pop(user_id)
        while len(self._newest) > MAX_NEWEST_USERS:
            self._forgotten = max(self._forgotten, self._newest.popitem(last=False)[1])

    def forget(self) -> None:
        """Drop every cached state: the next read of each user comes from snapshot and log."""
        self._cache = ByteCache(STATE_CACHE_BYTES)

    def _rebuild(self, user_id: str, seq: int) -> UserState:
        stored = None if self._snapshot is None else self._snapshot.get(user_id)
        state = UserState() if stored is None else msgspec.msgpack.decode(stored, type=UserState)
        after = 0 if self._snapshot is None else self._snapshot.seq
        rows = self._log.events(user_id, after, seq).filter(pl.col(RULE).is_null())
        if self._retracted is not None:
            rows = _without(rows, self._retracted.out(user_id, seq))
            if self._retracted.changed(user_id, seq, after):  # what the snapshot holds of this user is no longer so
                state = UserState(attributes=state.attributes)
                rows = pl.concat([self._retracted.archived(user_id, seq, after), rows.select(*EVENT_SCHEMA)])
        if len(rows):
            fold(state, self._signal.label(rows))
        users = self._log.users(after, seq, user_id)
        if len(users):
            state.attributes = attribute_versions(users)[user_id][-1][1]
        return state


def fold(state: UserState, labelled: pl.DataFrame) -> None:
    """Fold believed events of one user into a state, in the order of their seq."""
    for row in with_uses(labelled).sort(SEQ).select(ACT_COLUMNS).iter_rows():
        state.add(*row)


def full_snapshot(labelled: pl.DataFrame, users: pl.DataFrame | None) -> Iterator[tuple[str, bytes]]:
    """Every user's state as a snapshot holds it, by user id."""
    states: dict[str, UserState] = {}
    for user_id, versions in attribute_versions(users).items():
        states[user_id] = UserState(attributes=versions[-1][1])
    for user_id, *row in with_uses(labelled).sort(SEQ).select(USER_ID, *ACT_COLUMNS).iter_rows():
        states.setdefault(user_id, UserState()).add(*row)
    for user_id in sorted(states):
        yield user_id, msgspec.msgpack.encode(states[user_id])


def snapshot_at(
    seq: int, archive: Archive, log: EventLog, signal: EventLabeler, before: Snapshot | None = None
) -> Iterator[tuple[str, bytes]]:
    """Every user's state as of ``seq`` as a snapshot holds it: moved on from an earlier one, else from archive and log."""
    back = log.retractions(until=seq)
    out = out_at(back)
    since = archive.watermark if before is None else before.seq
    fresh = _without(log.events(after=since, until=seq).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA), out)
    users = log.users(since, seq)
    if before is None:
        rows = pl.concat([_without(archive.events(), out), fresh])
        known = archive.users()
        yield from full_snapshot(signal.label(rows), users if known is None else pl.concat([known, users]))
        return
    inside = [row.of_seq for row in back if row.seq > since and row.of_seq <= since]
    again = sorted({*archive.owners(inside).values(), *log.owners(inside).values()}) if inside else []
    between = log.events(after=archive.watermark, until=since).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
    named = pl.col(USER_ID).is_in(pl.Series(again, dtype=pl.String).implode())
    anew = _by_user(
        signal.label(_without(pl.concat([archive.of(again), between.filter(named), fresh.filter(named)]), out))
    )
    yield from advanced_snapshot(
        before, signal.label(fresh.filter(~named)), users, {user: anew.get(user) for user in again}
    )


def advanced_snapshot(
    snapshot: Snapshot,
    labelled: pl.DataFrame,
    users: pl.DataFrame | None,
    anew: Mapping[str, pl.DataFrame | None] | None = None,
) -> Iterator[tuple[str, bytes]]:
    """The states of a snapshot moved on by later believed rows and later versions of users.

    Args:
        anew: All rows that are left of users of whom one inside the snapshot was taken back; None: no row is.
    """
    own, whole = _by_user(labelled), anew or {}
    versions = attribute_versions(users)
    moved = {*own, *whole, *versions}
    for user_id, stored in snapshot:
        if user_id not in moved:
            yield user_id, stored
    for user_id in sorted(moved):
        before = snapshot.get(user_id)
        state = UserState() if before is None else msgspec.msgpack.decode(before, type=UserState)
        if user_id in whole:
            state = UserState(attributes=state.attributes)
        for rows in (whole.get(user_id), own.get(user_id)):
            if rows is not None:
                fold(state, rows)
        if user_id in versions:
            state.attributes = versions[user_id][-1][1]
        yield user_id, msgspec.msgpack.encode(state)


def _by_user(labelled: pl.DataFrame) -> Mapping[str, pl.DataFrame]:
    return {str(user_id): rows for (user_id,), rows in labelled.partition_by(USER_ID, as_dict=True).items()}


def _without(rows: pl.DataFrame, seqs: Collection[int]) -> pl.DataFrame:
    return rows.filter(~pl.col(SEQ).is_in(pl.Series(sorted(seqs), dtype=pl.Int64).implode())) if len(seqs) else rows
