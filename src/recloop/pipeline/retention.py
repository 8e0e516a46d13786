"""Deletion of bundles, runs, decisions and log rows by ``[retention]``.

It keeps the live bundle, the ``retention.bundles`` before it (for rollbacks), bundles in shadow or in an experiment, and
the newest ``retention.bundles`` registered ones. A row of log.db is deleted only if ``data/`` has it with the same
content. A running service deletes these rows itself, because only it writes that file.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from recloop.errors import Locked, UserError
from recloop.files import JsonTree, sync_folder
from recloop.monitoring.experiment import data_start
from recloop.monitoring.experiment_plan import Plan
from recloop.pipeline import redaction
from recloop.pipeline.journal import JOURNAL_FILE as JOURNAL
from recloop.progress import Progress
from recloop.project import Project
from recloop.recommend import loading
from recloop.records import SECOND, now
from recloop.storage import decisions as decision_store
from recloop.storage import locks, releases
from recloop.storage.control import ReleaseRow
from recloop.storage.database import STORE_ERRORS
from recloop.storage.releases import ReleaseState
from recloop.storage.sqlite import bytes_of
from recloop.storage.trim import trim

REMOVED_PREFIX: Final = ".removed-"
"""Prefix of a bundle's folder while it is deleted."""
TESTED_STATES: Final = ("shadow", "experiment")


@dataclass(frozen=True)
class Freed:
    """Count and bytes on disk of one kind; a dry run estimates the bytes."""

    count: int
    bytes: int


@dataclass(frozen=True)
class Collection:
    """Result of a collection, with the keys of ``recloop gc --json``.

    In a dry run, it lists what would be removed.

    Attributes:
        bundles, runs: Names.
        not_archived: Rows of log.db up to the watermark that are kept, because ``data/`` lacks them or differs.
        log_left_to: The process that deletes rows of log.db; empty if this call did.
    """

    dry_run: bool
    freed: dict[str, Freed]
    bundles: list[str]
    runs: list[str]
    not_archived: int
    log_left_to: str

    @property
    def bytes(self) -> int:
        return sum(freed.bytes for freed in self.freed.values())

    @property
    def lines(self) -> list[str]:
        """Format one line per kind and a total."""
        verb = "would be freed" if self.dry_run else "freed"
        kinds = [f"{name}: {freed.count:,} ({freed.bytes / 1e6:,.1f} MB)" for name, freed in self.freed.items()]
        summary = [*kinds, f"{self.bytes / 1e6:,.1f} MB {verb}"]
        if self.not_archived:
            summary.append(f"log: kept {self.not_archived:,} rows that data/ does not have with the same content")
        if self.log_left_to:
            summary.append(f"log: {self.log_left_to} deletes its rows")
        return summary

    def to_json(self) -> JsonTree:
        return {**asdict(self), "bytes": self.bytes}


def collect(project: Project, dry_run: bool = False) -> Collection:
    """Delete everything that ``[retention]`` does not keep.

    The caller holds the update lock.

    Args:
        dry_run: Only report.
    """
    bundles = removable_bundles(project)
    runs = removable_runs(project)
    freed = {
        "bundles": Freed(len(bundles), sum(_size(project.bundles / name) for name in bundles)),
        "runs": Freed(len(runs), sum(_size(project.runs / name) for name in runs)),
        "decisions": _decisions(project, dry_run),
    }
    freed["rejected"] = Freed(*project.open_rejected().delete_before(_rejected_cutoff(project), dry_run))
    freed["log"], not_archived, holder = _log(project, dry_run)
    if not dry_run:
        _remove_bundles(project, bundles)
        for name in runs:
            shutil.rmtree(project.runs / name)
    return Collection(dry_run, freed, bundles, runs, not_archived, holder)


def apply_retention(project: Project, progress: Progress) -> None:
    """Run `collect` after an update and log one line; the next one retries failures.

    Users whose removal waited for the end of an interrupted update are removed too.
    """
    redaction.redact(project, progress)
    try:
        collection = collect(project)
    except STORE_ERRORS as error:
        progress.say("retention", f"not applied: {type(error).__name__}: {error}")
        return
    if any(freed.count for freed in collection.freed.values()):
        progress.say("retention", "; ".join(collection.lines))


def kept_bundles(machine: ReleaseState, newest: int) -> set[str]:
    """Return kept bundles: live, ``newest`` predecessors, tested, newest registered."""
    tested = [row.bundle for state in TESTED_STATES for row in machine.rows_in(state)]
    return {*machine.lives[-1 - newest :], *tested, *list(machine.hashes)[-newest:]}


def removable_bundles(project: Project) -> list[str]:
    """Return registered bundles with a folder that is not needed, oldest first."""
    machine = releases.read_state(project.open_control())
    kept_names = kept_bundles(machine, project.config.retention.bundles)
    return [name for name in machine.hashes if name not in kept_names and (project.bundles / name).is_dir()]


def removable_runs(project: Project) -> list[str]:
    """Return finished runs except the newest ``retention.runs``, oldest first."""
    runs = sorted(folder.name for folder in project.runs.glob("*") if folder.is_dir() and is_finished(folder))
    return runs[: -project.config.retention.runs]


def is_finished(run: Path) -> bool:
    """Return whether a run is finished; a run without a journal cannot resume."""
    journal = run / JOURNAL
    return not journal.exists() or json.loads(journal.read_text("utf-8"))["verdict"] is not None


def _remove_bundles(project: Project, names: Sequence[str]) -> None:
    """Record the names, then rename and delete each folder, so no bundle is partial."""
    if names:
        loading.write_removal_times(project, {**loading.removal_times(project), **dict.fromkeys(names, now())})
    for name in names:
        (project.bundles / name).rename(project.bundles / f"{REMOVED_PREFIX}{name}-{os.getpid()}")
    if names:
        sync_folder(project.bundles)
    for folder in project.bundles.glob(f"{REMOVED_PREFIX}*"):  # including those of an interrupted call
        shutil.rmtree(folder, ignore_errors=True)


def _decisions(project: Project, dry_run: bool) -> Freed:
    """Delete decisions older than ``retention.decisions`` that no experiment needs."""
    file = project.store_files()["decisions"]
    if not file.exists():
        return Freed(0, 0)
    with project.open_decisions() as store:
        newest = store.newest_served_at()
        if newest is None:
            return Freed(0, 0)
        cutoff = newest - round(project.config.retention.decision_seconds * SECOND)
        machine = releases.read_state(project.open_control())
        cutoff = min([cutoff, *(_judged_since(row) for state in TESTED_STATES for row in machine.rows_in(state))])
        count, rows = store.count_before(cutoff)
    size = bytes_of(file)
    if count and not dry_run:
        count = decision_store.remove_before(file, cutoff)
        return Freed(count, max(0, size - bytes_of(file)))
    return Freed(count, size * count // max(1, rows))


def _rejected_cutoff(project: Project) -> int:
    """Return the time before which rejected rows are removed.

    It is counted from today, so that the last rows are removed too.
    """
    return now() - round(project.config.retention.rejected_seconds * SECOND)


def _judged_since(row: ReleaseRow) -> int:
    """Return the time from which a tested bundle needs decisions.

    An experiment also reads some decisions before its start.
    """
    if row.to != "experiment":
        return row.at
    try:
        return data_start(Plan.from_row(row))
    except UserError:  # started by an earlier version; it has no evaluation
        return row.at


def _log(project: Project, dry_run: bool) -> tuple[Freed, int, str]:
    """Delete archived rows of log.db.

    A running service deletes them itself once it has read the new watermark.
    """
    with project.open_log() as log:
        if log.is_empty() or not (project.data / "manifest.json").exists():
            return Freed(0, 0), 0, ""
        age = project.config.retention.log_seconds
        archive = project.open_archive()
        size = log.size_bytes()
        if dry_run:
            result = trim(log, archive, age, dry_run=True)
            rows = len(log.events()[:, :1])
            return Freed(result.deleted, size * result.deleted // max(1, rows)), result.kept, ""
    try:
        with locks.writer_lock(project.root, "gc"), project.open_log(write=True) as log:
            result = trim(log, archive, age)
            left = log.size_bytes()
    except Locked as error:
        return Freed(0, 0), 0, error.holder
    return Freed(result.deleted, max(0, size - left)), result.kept, ""


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())
