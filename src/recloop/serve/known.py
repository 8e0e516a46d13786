"""What the service knows of people: for each meaning of events in use, the snapshot, the rows since, and a cache."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from recloop.backends import Log, Retraction, snapshots
from recloop.backends.archive import Archive
from recloop.errors import UserError
from recloop.features.signal import Signal
from recloop.features.spec import Spec
from recloop.features.state import UserState
from recloop.project import Project
from recloop.recommend.states import Retracted, StateReader, states_at


class Stored(NamedTuple):
    """The states of one key: those of the snapshot, and the reader that goes on from them."""

    snapshot: snapshots.Snapshot
    reader: StateReader


class Known:
    """States by the key of a spec (`Spec.state_key`): bundles of one key share them."""

    def __init__(self, project: Project, archive: Archive, log: Log) -> None:
        self._project, self.archive, self._log = project, archive, log
        self.retracted = Retracted(archive, log)
        self._by_key: dict[str, Stored] = {}

    def open(self, specs: Iterable[Spec]) -> dict[str, Stored]:
        """The states of these specs; what is not open yet is opened, or made: reads files, so never on the event loop."""
        opened: dict[str, Stored] = {}
        for spec in specs:
            key = spec.state_key
            opened[key] = self._by_key.get(key) or opened.get(key) or self._open(spec)
        return opened

    def keep(self, opened: Mapping[str, Stored]) -> None:
        """Serve from these alone; on the event loop."""
        left = [one for key, one in self._by_key.items() if opened.get(key) is not one]
        self._by_key = dict(opened)
        for one in left:
            one.snapshot.close()

    def reopened(self, archive: Archive, specs: Iterable[Spec]) -> Known:
        """The same over what an update archived; reads files, so never on the event loop."""
        known = Known(self._project, archive, self._log)
        known.keep(known.open(specs))
        return known

    def of(self, spec: Spec) -> Stored:
        return self._by_key[spec.state_key]

    def state(self, spec: Spec, user_id: str, seq: int, degraded: set[str]) -> tuple[UserState, int]:
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
        """These were committed, after `Retracted.prepare` had read whose they are; the users, whose states to drop."""
        return self.retracted.put(rows)

    def close(self) -> None:
        self.keep({})

    def _open(self, spec: Spec) -> Stored:
        """The states as of the archive's last row; made anew where the file is missing or broken."""
        key, watermark = spec.state_key, self.archive.watermark
        signal = Signal.of(spec)
        try:
            snapshot = self._project.open_snapshot(watermark, key)
        except (UserError, sqlite3.Error):
            path = self._project.snapshot_file(watermark, key)
            snapshots.write(path, states_at(watermark, self.archive, self._log, signal), watermark, key)
            snapshot = self._project.open_snapshot(watermark, key)
        return Stored(snapshot, StateReader(self._log, snapshot, signal, self.retracted))
