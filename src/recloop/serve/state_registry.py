"""What the service knows of people: for each meaning of events in use, the snapshot, the rows since, and a cache."""

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
    """The states of one key: those of the snapshot, and the reader that goes on from them."""

    snapshot: snapshots.Snapshot
    reader: StateCache


class StateRegistry:
    """States by the key of a spec (`FeatureSpec.state_key`): bundles of one key share them."""

    def __init__(self, project: Project, archive: Archive, log: EventLog) -> None:
        self._project, self.archive, self._log = project, archive, log
        self.retracted = RetractionIndex(archive, log)
        self._by_key: dict[str, StateSource] = {}

    def open(self, specs: Iterable[FeatureSpec]) -> dict[str, StateSource]:
        """The states of these specs; what is not open yet is opened, or made: reads files, so never on the event loop."""
        opened: dict[str, StateSource] = {}
        for spec in specs:
            key = spec.state_key
            opened[key] = self._by_key.get(key) or opened.get(key) or self._open(spec)
        return opened

    def keep(self, opened: Mapping[str, StateSource]) -> None:
        """Serve from these alone; on the event loop."""
        left = [one for key, one in self._by_key.items() if opened.get(key) is not one]
        self._by_key = dict(opened)
        for one in left:
            one.snapshot.close()

    def reopened(self, archive: Archive, specs: Iterable[FeatureSpec]) -> StateRegistry:
        """The same over what an update archived; reads files, so never on the event loop."""
        known = StateRegistry(self._project, archive, self._log)
        known.keep(known.open(specs))
        return known

    def of(self, spec: FeatureSpec) -> StateSource:
        return self._by_key[spec.state_key]

    def state(self, spec: FeatureSpec, user_id: str, seq: int, degraded: set[str]) -> tuple[UserState, int]:
        """A user's state and the seq it knows: ``seq``, else the snapshot's, else nothing; never an error."""
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
        """Rows of these users were committed with numbers up to ``seq``."""
        users = list(user_ids)
        for one in self._by_key.values():
            one.reader.drop(users, seq)

    def forget(self) -> None:
        """Drop every cached state."""
        for one in self._by_key.values():
            one.reader.forget()

    def retract(self, rows: Sequence[Retraction]) -> set[str]:
        """These were committed, after `RetractionIndex.prepare` had read whose they are; the users, whose states to drop."""
        return self.retracted.put(rows)

    def close(self) -> None:
        self.keep({})

    def _open(self, spec: FeatureSpec) -> StateSource:
        """The states as of the archive's last row; made anew where the file is missing or broken."""
        key, watermark = spec.state_key, self.archive.watermark
        signal = EventLabeler.of(spec)
        try:
            snapshot = self._project.open_snapshot(watermark, key)
        except (UserError, sqlite3.Error):
            path = self._project.snapshot_file(watermark, key)
            snapshots.write(path, snapshot_at(watermark, self.archive, self._log, signal), watermark, key)
            snapshot = self._project.open_snapshot(watermark, key)
        return StateSource(snapshot, StateCache(self._log, snapshot, signal, self.retracted))
