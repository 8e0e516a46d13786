"""User states as of a seq, from the snapshot and later rows, with a cache.

A state is a function of the log up to a seq, so a lost cache can be rebuilt without a change.
"""

from __future__ import annotations

import sqlite3
import sys
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import polars as pl

from recloop.errors import UserError
from recloop.features.labels import EventLabeler, with_uses
from recloop.features.spec import FeatureSpec
from recloop.features.state import UserState, attribute_versions
from recloop.project import Project
from recloop.recommend.cache import ByteCache, state_bytes
from recloop.records import (
    EVENT_SCHEMA,
    GROUP_ID,
    ITEM_ID,
    PAIR,
    RULE,
    SEQ,
    TIMESTAMP,
    UNITS,
    USE,
    USER_ID,
    WEIGHT,
    guest_rows,
    is_guest,
)
from recloop.storage import snapshots
from recloop.storage.archive import Archive
from recloop.storage.event_log import EventLog
from recloop.storage.retractions import Retraction, retracted_at
from recloop.storage.snapshots import Snapshot

ACT_COLUMNS = (ITEM_ID, TIMESTAMP, GROUP_ID, USE, WEIGHT, PAIR, UNITS)
"""Arguments of `UserState.add`, in order."""

STATE_CACHE_BYTES = 256 * 2**20
"""Memory limit of cached states per event meaning; the least recently used are dropped first."""
MAX_NEWEST_USERS = 100_000
"""Number of users with a stored newest seq; for others the newest dropped seq is assumed."""


class RetractionIndex:
    """Retracted rows by user, with the seq from which each retraction applies.

    The archived rows of these users are kept in memory, because retractions are few and the serving event loop does not
    read the archive. `preload` may run on any thread; `register` and the queries run on the reader's thread.
    """

    def __init__(self, archive: Archive, log: EventLog) -> None:
        self._archive = archive
        self._log = log
        self._owners: dict[int, str] = {}
        self._of: dict[str, list[Retraction]] = {}
        self._rows: dict[str, pl.DataFrame] = {}
        earlier = log.retractions()
        self.preload(earlier)
        self.register(earlier)

    def preload(self, rows: Sequence[Retraction]) -> None:
        """Read the users of these retractions and their archived rows, before they apply."""
        seqs = [row.retracted_seq for row in rows if row.retracted_seq not in self._owners]
        if seqs:
            self._owners |= {**self._archive.owners(seqs), **self._log.owners(seqs)}
        later = {row.retracted_seq for row in rows if row.seq == 0 or row.seq > self._archive.watermark}
        users = sorted({self._owners[seq] for seq in later if seq in self._owners} - set(self._rows))
        if users:
            rows_by_user = self._archive.for_users(users).partition_by(USER_ID, as_dict=True)
            self._rows |= {user: rows_by_user.get((user,), pl.DataFrame(schema=EVENT_SCHEMA)) for user in users}

    def register(self, rows: Sequence[Retraction]) -> set[str]:
        """Register retractions and return the affected user ids; unknown rows are ignored."""
        touched = set()
        for row in rows:
            if row.retracted_seq in self._owners:
                touched.add(self._owners[row.retracted_seq])
                self._of.setdefault(self._owners[row.retracted_seq], []).append(row)
        return touched

    def retracted_at(self, user_id: str, seq: int) -> set[int]:
        """Return the events of a user that are retracted at ``seq``."""
        return retracted_at(self._of.get(user_id, ()), seq)

    def differs_between(self, user_id: str, seq: int, after: int) -> bool:
        """Return True if retracted rows up to ``after`` differ at ``seq`` and ``after``."""
        if not any(after < row.seq <= seq and row.retracted_seq <= after for row in self._of.get(user_id, ())):
            return False
        then, now = (
            {retracted_seq for retracted_seq in self.retracted_at(user_id, at) if retracted_seq <= after}
            for at in (after, seq)
        )
        return then != now

    def archived_rows(self, user_id: str, seq: int, until: int) -> pl.DataFrame:
        """Return a user's archived rows up to ``until`` that are not retracted at ``seq``."""
        rows = self._rows[user_id].filter(pl.col(SEQ) <= until)
        return _without(rows, self.retracted_at(user_id, seq))


class StateCache:
    """States by user, as of any seq at or after the snapshot's.

    A cache entry is valid until a later row of its user is committed: the writer calls `invalidate` with the commit's seq
    before it acknowledges. The cache and the record of commits are bounded.

    Args:
        retracted: The retractions; the snapshot contains those up to its seq.
    """

    def __init__(
        self, log: EventLog, snapshot: Snapshot | None, signal: EventLabeler, retracted: RetractionIndex | None = None
    ) -> None:
        self._log = log
        self._snapshot = snapshot
        self._signal = signal
        self._retracted = retracted
        self._cache: ByteCache[str, tuple[int, UserState]] = ByteCache(STATE_CACHE_BYTES)
        self._newest: OrderedDict[str, int] = OrderedDict()  # in the order of the seq
        self._forgotten = 0  # the newest seq of a user dropped from `_newest`

    def read(self, user_id: str, seq: int) -> UserState:
        """Return a user's state at ``seq``, empty for unknown users; do not change it."""
        newest = self._newest.get(user_id, self._forgotten)
        cached = self._cache.get(user_id)
        if cached is not None and newest <= cached[0] and (cached[0] <= seq or newest <= seq):
            return cached[1]
        state = self._rebuild(user_id, seq)
        self._cache.put(user_id, (seq, state), sys.getsizeof(user_id) + state_bytes(state))
        return state

    def invalidate(self, user_ids: Iterable[str], seq: int) -> None:
        """Drop the cached states of users with rows committed up to ``seq``."""
        for user_id in user_ids:
            self._newest[user_id] = seq
            self._newest.move_to_end(user_id)
            self._cache.pop(user_id)
        while len(self._newest) > MAX_NEWEST_USERS:
            self._forgotten = max(self._forgotten, self._newest.popitem(last=False)[1])

    def clear(self) -> None:
        """Drop every cached state; the next read of each user uses snapshot and log."""
        self._cache = ByteCache(STATE_CACHE_BYTES)

    def _rebuild(self, user_id: str, seq: int) -> UserState:
        stored = None if self._snapshot is None else self._snapshot.get(user_id)
        state = UserState() if stored is None else msgspec.msgpack.decode(stored, type=UserState)
        after = 0 if self._snapshot is None else self._snapshot.seq
        rows = self._log.events(user_id, after, seq).filter(pl.col(RULE).is_null())
        if self._retracted is not None:
            rows = _without(rows, self._retracted.retracted_at(user_id, seq))
            if self._retracted.differs_between(user_id, seq, after):  # the snapshot of this user is outdated
                state = UserState(attributes=state.attributes)
                rows = pl.concat([self._retracted.archived_rows(user_id, seq, after), rows.select(*EVENT_SCHEMA)])
        if len(rows) and not is_guest(user_id):  # a guest basket has no state, as an unknown user
            fold(state, self._signal.label(rows))
        users = self._log.users(after, seq, user_id)
        if len(users):
            state.attributes = attribute_versions(users)[user_id][-1][1]
        return state


def fold(state: UserState, labelled: pl.DataFrame) -> None:
    """Fold a user's valid events into a state, in seq order."""
    for row in with_uses(labelled).sort(SEQ).select(ACT_COLUMNS).iter_rows():
        state.add(*row)


def full_snapshot(labelled: pl.DataFrame, users: pl.DataFrame | None) -> Iterator[tuple[str, bytes]]:
    """Return every user's state in a snapshot, by user id; guest baskets have none."""
    states: dict[str, UserState] = {}
    for user_id, versions in attribute_versions(users).items():
        states[user_id] = UserState(attributes=versions[-1][1])
    for user_id, *row in with_uses(labelled.filter(~guest_rows())).sort(SEQ).select(USER_ID, *ACT_COLUMNS).iter_rows():
        states.setdefault(user_id, UserState()).add(*row)
    for user_id in sorted(states):
        yield user_id, msgspec.msgpack.encode(states[user_id])


def snapshot_at(
    seq: int, archive: Archive, log: EventLog, signal: EventLabeler, earlier: Snapshot | None = None
) -> Iterator[tuple[str, bytes]]:
    """Build a snapshot of all states as of ``seq``.

    It advances an earlier snapshot if one exists, else it reads archive and log.
    """
    retractions = log.retractions(until=seq)
    if earlier is None:
        return _snapshot_from_all_rows(seq, archive, log, signal, retracted_at(retractions))
    return _snapshot_from_earlier(seq, archive, log, signal, earlier, retractions)


def _snapshot_from_all_rows(
    seq: int, archive: Archive, log: EventLog, signal: EventLabeler, retracted_seqs: Collection[int]
) -> Iterator[tuple[str, bytes]]:
    """Build states from archive and log up to ``seq``, without ``retracted_seqs``."""
    rows = pl.concat([archive.events(), _valid_events(log, archive.watermark, seq)])
    archived_users, new_users = archive.users(), log.users(archive.watermark, seq)
    users = new_users if archived_users is None else pl.concat([archived_users, new_users])
    return full_snapshot(signal.label(_without(rows, retracted_seqs)), users)


def _snapshot_from_earlier(
    seq: int,
    archive: Archive,
    log: EventLog,
    signal: EventLabeler,
    earlier: Snapshot,
    retractions: Sequence[Retraction],
) -> Iterator[tuple[str, bytes]]:
    """Advance the states of an earlier snapshot to ``seq``.

    Users with a retracted event in their stored state are rebuilt.
    """
    retracted_seqs = retracted_at(retractions)
    new_rows = _without(_valid_events(log, earlier.seq, seq), retracted_seqs)
    affected = _affected_users(retractions, earlier.seq, archive, log)
    is_affected = pl.col(USER_ID).is_in(pl.Series(affected, dtype=pl.String).implode())
    earlier_rows = _valid_events(log, archive.watermark, earlier.seq)
    all_rows = pl.concat([archive.for_users(affected), earlier_rows.filter(is_affected), new_rows.filter(is_affected)])
    labelled = signal.label(_without(all_rows, retracted_seqs))
    rows_by_user = _by_user(labelled)
    rebuilt = {user_id: rows_by_user.get(user_id, labelled.clear()) for user_id in affected}
    return advanced_snapshot(earlier, signal.label(new_rows.filter(~is_affected)), log.users(earlier.seq, seq), rebuilt)


def _affected_users(retractions: Sequence[Retraction], earlier_seq: int, archive: Archive, log: EventLog) -> list[str]:
    """Users with an event up to ``earlier_seq`` that changed after it, ascending.

    A change is a retraction or a restoration.
    """
    seqs = [row.retracted_seq for row in retractions if row.seq > earlier_seq and row.retracted_seq <= earlier_seq]
    owners = {*archive.owners(seqs).values(), *log.owners(seqs).values()} if seqs else set()
    return sorted(user for user in owners if not is_guest(user))


def advanced_snapshot(
    snapshot: Snapshot,
    labelled: pl.DataFrame,
    users: pl.DataFrame | None,
    rebuilt: Mapping[str, pl.DataFrame] | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Advance a snapshot by later valid rows and later versions of users.

    Args:
        rebuilt: All remaining rows of users with a retracted event in their stored state.
    """
    rebuilt = rebuilt or {}
    new_rows = _by_user(labelled)
    versions = attribute_versions(users)
    changed = {*new_rows, *rebuilt, *versions}
    for user_id, stored in snapshot:
        if user_id not in changed:
            yield user_id, stored
    for user_id in sorted(changed):
        earlier_state = snapshot.get(user_id)
        state = UserState() if earlier_state is None else msgspec.msgpack.decode(earlier_state, type=UserState)
        if user_id in rebuilt:
            state = UserState(attributes=state.attributes)
            fold(state, rebuilt[user_id])
        if user_id in new_rows:
            fold(state, new_rows[user_id])
        if user_id in versions:
            state.attributes = versions[user_id][-1][1]
        yield user_id, msgspec.msgpack.encode(state)


def _valid_events(log: EventLog, after: int, until: int) -> pl.DataFrame:
    """Events with ``after`` < seq <= ``until`` that are not quarantined: EVENT_SCHEMA."""
    return log.events(after=after, until=until).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)


def _by_user(labelled: pl.DataFrame) -> Mapping[str, pl.DataFrame]:
    of_users = labelled.filter(~guest_rows())
    return {str(user_id): rows for (user_id,), rows in of_users.partition_by(USER_ID, as_dict=True).items()}


def _without(rows: pl.DataFrame, seqs: Collection[int]) -> pl.DataFrame:
    return rows.filter(~pl.col(SEQ).is_in(pl.Series(sorted(seqs), dtype=pl.Int64).implode())) if len(seqs) else rows


class StateSource(NamedTuple):
    """States of one key: a snapshot and the reader of newer rows."""

    snapshot: Snapshot
    reader: StateCache


class StateRegistry:
    """User states by `FeatureSpec.state_key`; bundles with the same key share them."""

    def __init__(self, project: Project, archive: Archive, log: EventLog) -> None:
        self._project = project
        self.archive = archive
        self._log = log
        self.retractions = RetractionIndex(archive, log)
        self._by_key: dict[str, StateSource] = {}

    def open(self, specs: Iterable[FeatureSpec]) -> dict[str, StateSource]:
        """Open or create the states of these specs; reads files, so not on the event loop."""
        opened: dict[str, StateSource] = {}
        for spec in specs:
            key = spec.state_key
            opened[key] = self._by_key.get(key) or opened.get(key) or self._open(spec)
        return opened

    def activate(self, opened: Mapping[str, StateSource]) -> None:
        """Use only these sources and close the others; on the event loop."""
        unused = [source for key, source in self._by_key.items() if opened.get(key) is not source]
        self._by_key = dict(opened)
        for source in unused:
            source.snapshot.close()

    def over_archive(self, archive: Archive, specs: Iterable[FeatureSpec]) -> StateRegistry:
        """Build the registry over a new archive; reads files, so not on the event loop."""
        registry = StateRegistry(self._project, archive, self._log)
        registry.activate(registry.open(specs))
        return registry

    def get(self, spec: FeatureSpec) -> StateSource:
        return self._by_key[spec.state_key]

    def state(self, spec: FeatureSpec, user_id: str, seq: int, degraded: set[str]) -> tuple[UserState, int]:
        """Read a user's state and the seq it includes; never raises for a failing store.

        Falls back from ``seq`` to the snapshot's seq, then to an empty state at 0.
        """
        snapshot, reader = self.get(spec)
        try:
            return reader.read(user_id, seq), seq
        except sqlite3.Error:
            degraded.add("log")
        try:
            stored = snapshot.get(user_id)
        except sqlite3.Error:
            degraded.add("snapshot")
            return UserState(), 0
        return UserState() if stored is None else msgspec.msgpack.decode(stored, type=UserState), snapshot.seq

    def invalidate(self, user_ids: Iterable[str], seq: int) -> None:
        """Drop cached states of these users after a commit up to ``seq``."""
        users = list(user_ids)
        for source in self._by_key.values():
            source.reader.invalidate(users, seq)

    def clear(self) -> None:
        """Drop every cached state."""
        for source in self._by_key.values():
            source.reader.clear()

    def retract(self, rows: Sequence[Retraction]) -> set[str]:
        """Register committed retractions and return the affected user ids.

        `RetractionIndex.prepare` must have read their users before the commit.
        """
        return self.retractions.register(rows)

    def close(self) -> None:
        self.activate({})

    def _open(self, spec: FeatureSpec) -> StateSource:
        """Open the snapshot at the archive's watermark; rebuild a missing or damaged file."""
        key = spec.state_key
        watermark = self.archive.watermark
        signal = EventLabeler.from_spec(spec)
        try:
            snapshot = self._project.open_snapshot(watermark, key)
        except (UserError, sqlite3.Error):
            path = self._project.snapshot_file(watermark, key)
            snapshots.write(path, snapshot_at(watermark, self.archive, self._log, signal), watermark, key)
            snapshot = self._project.open_snapshot(watermark, key)
        return StateSource(snapshot, StateCache(self._log, snapshot, signal, self.retractions))
