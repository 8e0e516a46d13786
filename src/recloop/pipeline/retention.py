"""``[retention]``: bundles, runs, decisions and archived rows of the log that nothing needs any more.

Kept are the live bundle, as many before it as ``retention.bundles`` (a rollback brings them back), what is in the shadow
or the experiment, and the newest ``retention.bundles`` that were registered. A row of log.db goes only when ``data/``
holds it with the same content; beside a running service the service deletes them, which alone writes that file.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from recloop.errors import Locked, UserError
from recloop.files import sync_folder
from recloop.json_object import JsonTree
from recloop.monitoring.experiment import reads_since
from recloop.monitoring.experiment_plan import Plan
from recloop.pipeline.journal import FILE as JOURNAL
from recloop.progress import Progress
from recloop.project import Project
from recloop.recommend import loading
from recloop.records import SECOND, now
from recloop.storage import decisions as decision_store
from recloop.storage import locks, releases
from recloop.storage.control import ReleaseRow
from recloop.storage.releases import ReleaseState
from recloop.storage.sqlite import bytes_of, locate
from recloop.storage.trim import trim

GONE: Final = ".removed-"
"""Prefix of a bundle's folder while it is deleted."""
TRIED: Final = ("shadow", "experiment")


@dataclass(frozen=True)
class Freed:
    """What of one kind goes: how many (bundles, runs, rows), and bytes on the disk; before it is done an estimate."""

    count: int
    bytes: int


@dataclass(frozen=True)
class Collection:
    """What one call removed, or would remove: the keys of ``recloop gc --json``.

    Attributes:
        bundles, runs: Names.
        not_archived: Rows of log.db up to the watermark that stay, because ``data/`` does not hold them as they are.
        log_left_to: Who deletes rows of log.db in place of this call; empty: it did.
    """

    dry_run: bool
    freed: dict[str, Freed]
    bundles: list[str]
    runs: list[str]
    not_archived: int
    log_left_to: str

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.freed.values())

    @property
    def lines(self) -> list[str]:
        """As a person reads it: a line a kind, and the whole."""
        verb = "would be freed" if self.dry_run else "freed"
        kinds = [f"{name}: {one.count:,} ({one.bytes / 1e6:,.1f} MB)" for name, one in self.freed.items()]
        found = [*kinds, f"{self.bytes / 1e6:,.1f} MB {verb}"]
        if self.not_archived:
            found.append(f"log: {self.not_archived:,} rows stay, because data/ does not hold them as they are")
        if self.log_left_to:
            found.append(f"log: its rows are left to {self.log_left_to}")
        return found

    def to_json(self) -> JsonTree:
        return {**asdict(self), "bytes": self.bytes}


def collect(project: Project, dry_run: bool = False) -> Collection:
    """Remove what ``[retention]`` does not keep; the caller holds the turn's lock.

    Args:
        dry_run: Remove nothing, say what would go.
    """
    bundles, runs = removable_bundles(project), removable_runs(project)
    freed = {
        "bundles": Freed(len(bundles), sum(_size(project.bundles / name) for name in bundles)),
        "runs": Freed(len(runs), sum(_size(project.runs / name) for name in runs)),
        "decisions": _decisions(project, dry_run),
    }
    freed["log"], not_archived, holder = _log(project, dry_run)
    if not dry_run:
        _remove_bundles(project, bundles)
        for name in runs:
            shutil.rmtree(project.runs / name)
    return Collection(dry_run, freed, bundles, runs, not_archived, holder)


def tidy(project: Project, voice: Progress) -> None:
    """`collect` at the end of an update, told in one line; what cannot be removed now is left to the next one."""
    try:
        done = collect(project)
    except (OSError, sqlite3.Error) as error:
        voice.say("retention", f"not applied: {type(error).__name__}: {error}")
        return
    if any(one.count for one in done.freed.values()):
        voice.say("retention", "; ".join(done.lines))


def kept_bundles(machine: ReleaseState, newest: int) -> set[str]:
    """The live bundle, the ``newest`` before it, what is tried, and the ``newest`` registered last."""
    tried = [row.bundle for state in TRIED for row in machine.rows_in(state)]
    return {*machine.lives[-1 - newest :], *tried, *list(machine.hashes)[-newest:]}


def removable_bundles(project: Project) -> list[str]:
    """Registered bundles whose folder is there and need not be, the oldest first."""
    machine = releases.read_state(project.open_control())
    kept = kept_bundles(machine, project.config.retention.bundles)
    return [name for name in machine.hashes if name not in kept and (project.bundles / name).is_dir()]


def removable_runs(project: Project) -> list[str]:
    """Finished runs but the newest ``retention.runs``, the oldest first."""
    runs = sorted(one.name for one in project.runs.glob("*") if one.is_dir() and _finished(one))
    return runs[: -project.config.retention.runs]


def _finished(run: Path) -> bool:
    """Whether a run has its verdict; one without a journal is not gone on with."""
    journal = run / JOURNAL
    return not journal.exists() or json.loads(journal.read_text("utf-8"))["verdict"] is not None


def _remove_bundles(project: Project, names: Sequence[str]) -> None:
    """Note the names, then rename each folder away and delete it: a bundle is there whole or not at all."""
    if names:
        loading.write_removed(project, {**loading.removed(project), **dict.fromkeys(names, now())})
    for name in names:
        (project.bundles / name).rename(project.bundles / f"{GONE}{name}-{os.getpid()}")
    if names:
        sync_folder(project.bundles)
    for folder in project.bundles.glob(f"{GONE}*"):  # of an interrupted call too
        shutil.rmtree(folder, ignore_errors=True)


def _decisions(project: Project, dry_run: bool) -> Freed:
    """Decisions older than ``retention.decisions``, none that a running shadow or experiment is judged by."""
    file = locate("stores.decisions", project.config.stores.decisions, project.root)
    if not file.exists():
        return Freed(0, 0)
    with project.open_decisions() as store:
        newest = store.newest_at()
        if newest is None:
            return Freed(0, 0)
        before = newest - round(project.config.retention.decision_seconds * SECOND)
        machine = releases.read_state(project.open_control())
        before = min([before, *(_judged_since(row) for state in TRIED for row in machine.rows_in(state))])
        count, rows = store.count_before(before)
    size = bytes_of(file)
    if count and not dry_run:
        count = decision_store.remove_before(file, before)
        return Freed(count, max(0, size - bytes_of(file)))
    return Freed(count, size * count // max(1, rows))


def _judged_since(row: ReleaseRow) -> int:
    """The first moment whose decisions a bundle that is tried is judged by: an experiment reads some before its start too."""
    if row.to != "experiment":
        return row.at
    try:
        return reads_since(Plan.from_row(row))
    except UserError:  # an earlier version started it; nothing judges it
        return row.at


def _log(project: Project, dry_run: bool) -> tuple[Freed, int, str]:
    """Archived rows of log.db; a running service deletes them itself once it has taken up the new watermark."""
    file = locate("stores.log", project.config.stores.log, project.root)
    if not file.exists() or not (project.data / "manifest.json").exists():
        return Freed(0, 0), 0, ""
    age, archive, size = project.config.retention.log_seconds, project.open_archive(), bytes_of(file)
    if dry_run:
        with project.open_log() as log:
            found, rows = trim(log, archive, age, dry_run=True), len(log.events()[:, :1])
        return Freed(found.deleted, size * found.deleted // max(1, rows)), found.kept, ""
    try:
        with locks.writer_lock(project.root, "gc"), project.open_log(write=True) as log:
            found = trim(log, archive, age)
    except Locked as held:
        return Freed(0, 0), 0, held.holder
    return Freed(found.deleted, max(0, size - bytes_of(file))), found.kept, ""


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
