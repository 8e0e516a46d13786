"""User states as of a seq: stored states, later rows in memory, and a cache.

A state is a function of the log up to a seq, so states that were lost can be rebuilt without a change.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import polars as pl

from recloop.errors import UserError
from recloop.features import state_store
from recloop.features.label_cache import LabelCache
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps
from recloop.features.spec import FeatureSpec
from recloop.features.state import StateBatch
from recloop.features.state_advance import advance
from recloop.features.state_delta import StateDelta, UserRows, rows_of, state_of_user, stored_rows, with_delta
from recloop.features.state_history import StateHistory
from recloop.features.state_store import StoredStates
from recloop.project import Project
from recloop.recommend.cache import ByteCache, tree_bytes
from recloop.records import EVENT_SCHEMA, RULE, SEQ, USER_ID, User, is_guest
from recloop.storage.archive import Archive
from recloop.storage.database import STORE_ERRORS
from recloop.storage.event_log import EventLog
from recloop.storage.event_rows import EventColumns
from recloop.storage.identities import IDENTIFIED, Identities
from recloop.storage.retractions import Retraction, retracted_at

STATE_CACHE_BYTES = 256 * 2**20
"""Memory limit of cached states per event meaning; the least recently used are dropped first."""
STATE_BYTES = 40_000
"""Memory of a cached state besides the arrays of its rows: objects, and rankings that bundles derive from it."""


class LabelledRows(dict[str, list[tuple[Any, ...]]]):
    """Rows of one commit by state key, as `StateDelta.add` takes them."""


class RetractionIndex:
    """Retracted rows by user, with the seq from which each retraction applies.

    The archived rows of these users are kept in memory, because retractions are few and the serving event loop does not
    read the archive. `preload` may run on any thread; `register` and the queries run on the reader's thread.

    Rows that moved from an anonymous id to a user are left out: no request reads the state of an identified id.
    """

    def __init__(self, archive: Archive, log: EventLog) -> None:
        self._archive = archive
        self._log = log
        self._owners: dict[int, str] = {}
        self._of: dict[str, list[Retraction]] = {}
        self._rows: dict[str, pl.DataFrame] = {}
        self._seq = 0  # newest registered retraction
        self.catch_up(None)

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

    def catch_up(self, seq: int | None) -> None:
        """Register the new retractions of the log up to a seq; None: all."""
        rows = [row for row in self._log.retractions(self._seq, seq) if row.rule != IDENTIFIED]
        self.preload(rows)
        self.register(rows)

    def register(self, rows: Sequence[Retraction]) -> set[str]:
        """Register retractions and return the affected user ids.

        Unknown rows, and rows that are registered already, are ignored.
        """
        touched = set()
        new_rows = [row for row in rows if row.seq > self._seq]
        self._seq = max([self._seq, *(row.seq for row in new_rows)])
        for row in new_rows:
            if row.retracted_seq in self._owners:
                touched.add(self._owners[row.retracted_seq])
                self._of.setdefault(self._owners[row.retracted_seq], []).append(row)
        return touched

    def retracted_at(self, user_id: str, seq: int) -> set[int]:
        """Return the events of a user that are retracted at ``seq``."""
        return retracted_at(self._of.get(user_id, ()), seq)

    def count(self, user_id: str, after: int, seq: int) -> int:
        """Return the number of a user's retractions with ``after`` < seq <= ``seq``."""
        rows = self._of.get(user_id)
        return 0 if rows is None else sum(after < row.seq <= seq for row in rows)

    def archived_rows(self, user_id: str, until: int) -> pl.DataFrame:
        """Return a user's archived rows up to ``until``, retracted ones included."""
        return self._rows[user_id].filter(pl.col(SEQ) <= until)


class _Cached(NamedTuple):
    """Cached state of a user, with the rows it was computed from.

    ``n_retractions`` counts the user's retractions that it includes.
    """

    user: UserRows
    state: StateBatch
    n_retractions: int


class StateSource:
    """States of one key: stored states, later rows and a bounded cache.

    One thread uses it, except for `label`.

    Attributes:
        stored: States at the archive's watermark.
        seq: The newest seq that the states include.
    """

    def __init__(
        self, stored: StoredStates, signal: EventLabeler, log: EventLog, retracted: RetractionIndex | None = None
    ) -> None:
        self.stored = stored
        self.seq = stored.seq
        self.signal = signal
        self._log = log
        self._retracted = retracted
        self._labels = LabelCache(signal)
        self._delta = StateDelta(stored.history, stored.groups)
        self._cache: ByteCache[str, _Cached] = ByteCache(STATE_CACHE_BYTES)

    def label(self, valid_rows: EventColumns) -> list[tuple[Any, ...]]:
        """Label valid rows for `apply`; may run on any thread."""
        if not len(valid_rows):
            return []
        rows = self._labels.rows(valid_rows)
        return rows_of(self.signal.label(valid_rows.frame)) if rows is None else rows

    def apply(self, rows: Iterable[Sequence[Any]], users: Sequence[User], seq: int) -> None:
        """Add the rows and user versions of commits up to ``seq``, in seq order."""
        self._delta.add_rows(row for row in rows if row[-1] > self.seq)
        for user in users:
            if user.seq > self.seq:
                self._delta.describe(user.user_id, user.seq, user.attributes)
        self.seq = max(self.seq, seq)

    def catch_up(self, seq: int) -> None:
        """Add the rows of the log after `seq`, up to ``seq``."""
        if seq > self.seq:
            rows = _valid_events(self._log, self.seq, seq)
            self.apply(self.label(EventColumns.of_frame(rows)), users_of(self._log, self.seq, seq), seq)

    def read(self, user_id: str, seq: int | None = None) -> StateBatch:
        """Return a user's state at ``seq`` (None: the newest).

        Unknown users have no events.
        """
        if is_guest(user_id):  # a guest basket has no state
            return StateBatch.empty([user_id])
        at = self.seq if seq is None else min(seq, self.seq)
        n_retractions = self._count_retractions(user_id, at)
        if at < self.seq:
            return self._restored(user_id, at) if n_retractions else self._state(user_id, self._rows(user_id, None, at))
        delta = self._delta.get(user_id)
        n_acts, n_versions = (0, 0) if delta is None else (len(delta.acts), len(delta.versions))
        cached = self._cache.get(user_id)
        if cached is not None and (cached.user.n_acts, cached.user.n_versions, cached.n_retractions) == (
            n_acts,
            n_versions,
            n_retractions,
        ):
            return cached.state
        user = self._rows(user_id, None if cached is None else cached.user, None)
        state = self._restored(user_id, at) if n_retractions else self._state(user_id, user)
        size = sys.getsizeof(user_id) + STATE_BYTES + user.nbytes + 3 * state.nbytes + tree_bytes(user.attributes)
        self._cache.put(user_id, _Cached(user, state, n_retractions), size)
        return state

    def clear(self) -> None:
        """Drop every cached state; the next read of each user uses stored and later rows."""
        self._cache.clear()

    def _rows(self, user_id: str, user: UserRows | None, max_seq: int | None) -> UserRows:
        user = stored_rows(self.stored.history, user_id) if user is None else user
        delta = self._delta.get(user_id)
        return user if delta is None else with_delta(user, delta, self._delta.codes, self._delta.kinds, max_seq)

    def _state(self, user_id: str, user: UserRows) -> StateBatch:
        return state_of_user(user_id, user, self._delta.codes, self._delta.kinds)

    def _count_retractions(self, user_id: str, seq: int) -> int:
        return 0 if self._retracted is None else self._retracted.count(user_id, self.stored.seq, seq)

    def _restored(self, user_id: str, seq: int) -> StateBatch:
        """State of a user with retracted rows, from all its remaining rows; reads the log."""
        assert self._retracted is not None
        rows = self._log.events(user_id, self.stored.seq, seq).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
        rows = pl.concat([self._retracted.archived_rows(user_id, self.stored.seq), rows])
        rows = _without(rows, self._retracted.retracted_at(user_id, seq))
        attributes = self._rows(user_id, None, seq).attributes
        states = StateHistory(moment_stamps(self.signal.label(rows))).states([user_id], [seq])
        return replace(states, attributes=[attributes])


def users_of(log: EventLog, after: int, until: int) -> list[User]:
    """Versions of users in the log with ``after`` < seq <= ``until``, by seq."""
    return [
        User(**{**row, "attributes": msgspec.json.decode(row["attributes"])})
        for row in log.users(after, until).iter_rows(named=True)
    ]


def write_states(
    path: Path, seq: int, archive: Archive, log: EventLog, signal: EventLabeler, key: str,
    earlier: StoredStates | None = None,
) -> None:  # fmt: skip
    """Write all states as of ``seq``.

    With earlier ones only the rows after them are read.
    """
    if earlier is not None:
        state_store.write(path, _advanced(seq, archive, log, signal, earlier))
        return
    rows = pl.concat([archive.events(), _valid_events(log, archive.watermark, seq)])
    rows = _without(rows, retracted_at(log.retractions(until=seq)))
    archived_users, new_users = archive.users(), log.users(archive.watermark, seq)
    users = new_users if archived_users is None else pl.concat([archived_users, new_users])
    state_store.write_frame(path, moment_stamps(signal.label(rows)), users, seq, key)


def _advanced(seq: int, archive: Archive, log: EventLog, signal: EventLabeler, earlier: StoredStates) -> StoredStates:
    """Advance stored states to ``seq``.

    Users with a retracted event in them are computed again.
    """
    retractions = log.retractions(until=seq)
    retracted_seqs = retracted_at(retractions)
    new_rows = _without(_valid_events(log, earlier.seq, seq), retracted_seqs)
    affected = _affected_users(retractions, earlier.seq, archive, log)
    is_affected = pl.col(USER_ID).is_in(pl.Series(affected, dtype=pl.String).implode())
    delta = StateDelta(earlier.history, earlier.groups)
    delta.add_rows(rows_of(signal.label(new_rows.filter(~is_affected))))
    for user in users_of(log, earlier.seq, seq):
        delta.describe(user.user_id, user.seq, user.attributes)
    remaining = None
    if affected:
        since = _valid_events(log, archive.watermark, earlier.seq).filter(is_affected)
        rows = pl.concat([archive.for_users(affected), since, new_rows.filter(is_affected)])
        remaining = moment_stamps(signal.label(_without(rows, retracted_seqs)))
    return advance(earlier, delta, seq, affected, remaining)


def _affected_users(retractions: Sequence[Retraction], earlier_seq: int, archive: Archive, log: EventLog) -> list[str]:
    """Users with an event up to ``earlier_seq`` that changed after it, ascending.

    A change is a retraction or a restoration.
    """
    seqs = [row.retracted_seq for row in retractions if row.seq > earlier_seq and row.retracted_seq <= earlier_seq]
    owners = {*archive.owners(seqs).values(), *log.owners(seqs).values()} if seqs else set()
    return sorted(user for user in owners if not is_guest(user))


def _valid_events(log: EventLog, after: int, until: int) -> pl.DataFrame:
    """Events with ``after`` < seq <= ``until`` that are not quarantined: EVENT_SCHEMA."""
    return log.events(after=after, until=until).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)


def _without(rows: pl.DataFrame, seqs: Collection[int]) -> pl.DataFrame:
    return rows.filter(~pl.col(SEQ).is_in(pl.Series(sorted(seqs), dtype=pl.Int64).implode())) if len(seqs) else rows


class StateRegistry:
    """User states by `FeatureSpec.state_key`; bundles with the same key share them.

    `open` and `label` may run on any thread; all other methods run on the event loop.

    Args:
        seq: The last identity to know; None: the newest. Later ones are added by commits and by `catch_up`.

    Attributes:
        identities: Identified anonymous ids.
    """

    def __init__(self, project: Project, archive: Archive, log: EventLog, seq: int | None = None) -> None:
        self._project = project
        self.archive = archive
        self._log = log
        self.retractions = RetractionIndex(archive, log)
        self.identities = Identities(log.identities(until=seq))
        self._by_key: dict[str, StateSource] = {}

    def open(self, specs: Iterable[FeatureSpec]) -> dict[str, StateSource]:
        """Open or create the states of these specs and read the log.

        Not on the event loop.
        """
        opened: dict[str, StateSource] = {}
        for spec in specs:
            key = spec.state_key
            opened[key] = self._by_key.get(key) or opened.get(key) or self._open(spec)
        return opened

    def activate(self, opened: Mapping[str, StateSource], seq: int = 0) -> None:
        """Use only these sources; rows up to ``seq`` that arrived since `open` are read."""
        for source in opened.values():
            source.catch_up(seq)
        self._by_key = dict(opened)

    def over_archive(self, archive: Archive, specs: Iterable[FeatureSpec], seq: int) -> StateRegistry:
        """Build the registry over a new archive; reads files, so not on the event loop.

        ``seq``: The last identity to know, at most the seq of the answers.
        """
        registry = StateRegistry(self._project, archive, self._log, seq)
        registry.activate(registry.open(specs))
        return registry

    def get(self, spec: FeatureSpec) -> StateSource:
        return self._by_key[spec.state_key]

    def state(self, spec: FeatureSpec, user_id: str, seq: int, degraded: set[str]) -> tuple[StateBatch, int]:
        """Read a user's state at ``seq``, and the seq it includes.

        A failing log raises no error.

        Only states with retracted rows need the log; without it they are those of `StateSource.stored`.
        """
        source = self.get(spec)
        try:
            return source.read(user_id, seq), min(seq, source.seq)
        except STORE_ERRORS:
            degraded.add("log")
            return source.read(user_id, source.stored.seq), source.stored.seq

    def label(self, valid_rows: EventColumns) -> LabelledRows:
        """Label the valid events of a commit, by seq, for every key."""
        return LabelledRows({key: source.label(valid_rows) for key, source in self._by_key.items()})

    def apply(self, labelled: LabelledRows | None, users: Sequence[User], seq: int) -> None:
        """Add the rows of a commit up to ``seq``; None for a commit without events."""
        for key, source in self._by_key.items():
            if labelled is None:
                source.apply([], users, seq)
            elif key in labelled:
                source.apply(labelled[key], users, seq)
            else:  # opened after the rows were labelled
                source.catch_up(seq)

    def catch_up(self, seq: int) -> None:
        """Read the rows up to ``seq`` that the states do not include yet from the log."""
        self.identities.add(self._log.identities(self.identities.seq, seq))
        self.retractions.catch_up(seq)
        for source in self._by_key.values():
            source.catch_up(seq)

    def clear(self) -> None:
        """Drop every cached state."""
        for source in self._by_key.values():
            source.clear()

    def retract(self, rows: Sequence[Retraction]) -> set[str]:
        """Register committed retractions and return the affected user ids.

        `RetractionIndex.preload` must have read their users before the commit.
        """
        return self.retractions.register(rows)

    def close(self) -> None:
        """Release the mapped files."""
        self._by_key = {}

    def _open(self, spec: FeatureSpec) -> StateSource:
        """Open the states at the archive's watermark; rebuild missing or damaged files."""
        key = spec.state_key
        watermark = self.archive.watermark
        signal = EventLabeler.from_spec(spec)
        path = self._project.states_folder(watermark, key)
        try:
            stored = state_store.read(path, key)
        except UserError:
            write_states(path, watermark, self.archive, self._log, signal, key)
            stored = state_store.read(path, key)
        source = StateSource(stored, signal, self._log, self.retractions)
        source.catch_up(self._log.last_seq())
        return source
