"""User states of the service by event labels: snapshot, newer rows and cache."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from recloop.errors import UserError
from recloop.features.labels import EventLabeler
from recloop.features.spec import FeatureSpec
from recloop.features.state import UserState
from recloop.project import Project
from recloop.recommend.user_states import RetractionIndex, StateCache, snapshot_at
from recloop.storage import EventLog, Retraction, snapshots
from recloop.storage.archive import Archive


class StateSource(NamedTuple):
    """States of one key: a snapshot and the reader of newer rows."""

    snapshot: snapshots.Snapshot
    reader: StateCache


class StateRegistry:
    """User states by `FeatureSpec.state_key`; bundles with the same key share them."""

    def __init__(self, project: Project, archive: Archive, log: EventLog) -> None:
        self._project, self.archive, self._log = project, archive, log
        self.retracted = RetractionIndex(archive, log)
        self._by_key: dict[str, StateSource] = {}

    def open(self, specs: Iterable[FeatureSpec]) -> dict[str, StateSource]:
        """Open or create the states of these specs; reads files, so not on the event loop."""
        opened: dict[str, StateSource] = {}
        for spec in specs:
            key = spec.state_key
            opened[key] = self._by_key.get(key) or opened.get(key) or self._open(spec)
        return opened

    def keep(self, opened: Mapping[str, StateSource]) -> None:
        """Use only these sources and close the others; on the event loop."""
        unused = [source for key, source in self._by_key.items() if opened.get(key) is not source]
        self._by_key = dict(opened)
        for source in unused:
            source.snapshot.close()

    def reopened(self, archive: Archive, specs: Iterable[FeatureSpec]) -> StateRegistry:
        """Build the registry over a new archive; reads files, so not on the event loop."""
        known = StateRegistry(self._project, archive, self._log)
        known.keep(known.open(specs))
        return known

    def of(self, spec: FeatureSpec) -> StateSource:
        return self._by_key[spec.state_key]

    def state(self, spec: FeatureSpec, user_id: str, seq: int, degraded: set[str]) -> tuple[UserState, int]:
        """Read a user's state and the seq it includes; never raises for a failing store.

        Falls back from ``seq`` to the snapshot's seq, then to an empty state at 0.
        """
        snapshot, reader = self.of(spec)
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

    def drop(self, user_ids: Iterable[str], seq: int) -> None:
        """Drop cached states of these users after a commit up to ``seq``."""
        users = list(user_ids)
        for source in self._by_key.values():
            source.reader.drop(users, seq)

    def forget(self) -> None:
        """Drop every cached state."""
        for source in self._by_key.values():
            source.reader.forget()

    def retract(self, rows: Sequence[Retraction]) -> set[str]:
        """Register committed retractions and return the affected user ids.

        `RetractionIndex.prepare` must have read their users before the commit.
        """
        return self.retracted.put(rows)

    def close(self) -> None:
        self.keep({})

    def _open(self, spec: FeatureSpec) -> StateSource:
        """Open the snapshot at the archive's watermark; rebuild a missing or damaged file."""
        key, watermark = spec.state_key, self.archive.watermark
        signal = EventLabeler.of(spec)
        try:
            snapshot = self._project.open_snapshot(watermark, key)
        except (UserError, sqlite3.Error):
            path = self._project.snapshot_file(watermark, key)
            snapshots.write(path, snapshot_at(watermark, self.archive, self._log, signal), watermark, key)
            snapshot = self._project.open_snapshot(watermark, key)
        return StateSource(snapshot, StateCache(self._log, snapshot, signal, self.retracted))
