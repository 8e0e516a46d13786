"""Append the log's rows after the watermark to ``data/``.

Causal rules were applied when a row arrived; ``rule`` names the rule that removed it. Retrospective rules run here and
remove rows that serving accepted: repeats without an event_id (`duplicates`) and the rows of a burst before its tenth
(`burst`). No split contains such rows. They stay in the archive, because states contained them. A retraction with a
separate seq, which the caller appends to the log, removes them from the states (`AppendResult.taken_back`).

The cost follows the new rows: files of untouched days and the labelled rows of earlier updates are neither read completely
nor written again (`recloop.data.split_change`, `recloop.data.compaction`). All files are written into a staged folder;
`publish_data` renames it into ``data/``, the manifest last. Files that a new one replaces are deleted at once without a
server; beside one the next update deletes them, because the server still reads them.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from recloop import __version__
from recloop.data.atomic_folder import AtomicFolder
from recloop.data.clean import QUARANTINED
from recloop.data.compaction import absorbed
from recloop.data.doctor.label_report import RuleCount, count_by_rule
from recloop.data.labelled_log import DROPPED_PREFIX, SPLIT, UPDATE_FORMAT, LabelledLog
from recloop.data.split_change import NewRows, SplitChange, split_change
from recloop.features.labels import EventLabeler
from recloop.features.learned_range import LearnedRange
from recloop.features.spec import FeatureSpec
from recloop.files import move, replace_json
from recloop.project import Project
from recloop.records import EVENT_SCHEMA, ITEM_ID, LABEL, RULE, SEQ, TIMESTAMP, USER_ID, is_guest
from recloop.storage import EventLog
from recloop.storage.data_manifest import MANIFEST, DataManifest, UpdateRecord, WindowLoss

PART_PREFIX = f"{SPLIT}/rows-"
COMPRESSION = 8
"""Bytes of rows in memory per byte of their Parquet file, roughly."""


@dataclass(frozen=True)
class AppendResult:
    """Row counts of one update, as in ``recloop update --json``, and its test window.

    ``cut``, ``held_seq``, ``late``, ``fresh`` are those of `recloop.features.learned_range.NewWindow`.

    ``signals``: new valid rows by the rule of ``[events]`` that decides them (`recloop.data.doctor.label_report.count_by_rule`).
    ``taken_back``: (seq, rule) of the valid rows that a retrospective rule removes and that are not yet retracted.
    """

    read: int
    kept: int
    removed: dict[str, int]
    new_users: int
    new_items: int
    cut: int
    held_seq: int
    late: int
    fresh: int
    positives: int
    signals: list[RuleCount]
    taken_back: list[tuple[int, str]]


def append(
    project: Project,
    log: EventLog,
    until: int,
    learned: LearnedRange,
    spec: FeatureSpec,
    target: Path,
    retracted_seqs: Sequence[int] = (),
) -> AppendResult:
    """Write the next version of ``data/`` as a staged folder.

    It contains the new files and a full manifest.

    Args:
        until: The last seq to append.
        learned: The moments that the live bundle has learned; every other moment is new.
        spec: The candidate's spec, which labels the rows.
        retracted_seqs: The seq of rows that were retracted before.
        target: The staged folder; an existing one is replaced.
    """
    archive = project.open_archive()
    signal = EventLabeler.from_spec(spec)
    rows = log.events(after=archive.watermark, until=until)
    valid = rows.filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
    new = NewRows(archive, rows, valid, sorted(retracted_seqs), signal, spec.state_key, project.config.clean, learned)
    stored = LabelledLog(project.data, manifest=archive.manifest)
    change = split_change(new, stored)
    result = _result(new, change)
    _StagedData(project, stored, new, change, result, until).write(log, target)
    return result


def _result(new: NewRows, change: SplitChange) -> AppendResult:
    removed = Counter(new.rows[RULE].drop_nulls().to_list()) + Counter(
        rule for seq, rule in change.removed_rules.items() if seq > new.after
    )
    users, items = (new.archive.new_ids(column, new.valid[column]) for column in (USER_ID, ITEM_ID))
    return AppendResult(
        read=len(new.rows),
        kept=len(new.rows) - removed.total(),
        removed=dict(sorted(removed.items())),
        new_users=sum(not is_guest(user) for user in users),
        new_items=len(items),
        cut=change.window.cut,
        held_seq=change.window.held_seq,
        late=change.window.late,
        fresh=change.window.fresh,
        positives=len(change.rows.filter((pl.col(SEQ) > new.after) & (pl.col(LABEL) > 0))),
        signals=count_by_rule(new.signal, new.valid),
        taken_back=sorted(change.removed_rules.items()),
    )


@dataclass(frozen=True)
class _StagedData:
    """Files of the next version of ``data/``."""

    project: Project
    stored: LabelledLog
    new: NewRows
    change: SplitChange
    result: AppendResult
    until: int

    def write(self, log: EventLog, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        files = AtomicFolder(target)
        try:
            replaced = [*self._archive(files), *self._split(files)]
            self._tables(files, log)
            files.wait()
            files.manifest(self._manifest(files, replaced).to_json())
        finally:
            files.close()

    def _archive(self, files: AtomicFolder) -> list[str]:
        """Add the new valid rows to the files of their days; return the replaced files."""
        date = pl.from_epoch(TIMESTAMP, time_unit="us").dt.strftime("%Y-%m-%d").alias("date")
        days = self.new.valid.with_columns(date).partition_by("date", as_dict=True, include_key=False)
        archived_files = self.new.archive.files()
        replaced: list[str] = []
        for (day,), day_rows in sorted(days.items()):
            folder = f"archive/date={day}"
            frame, merged = self._merged(archived_files.get(str(day), []), day_rows)
            files.table(f"{folder}/events-{frame[SEQ][0]}-{self.until}.parquet", frame)
            replaced += merged
        return replaced

    def _split(self, files: AtomicFolder) -> list[str]:
        """Add the labelled rows and the seqs of removed ones; return the replaced files."""
        earlier = self.stored.row_files
        earlier_dropped = [name for name in self.stored.manifest.files_in(SPLIT) if name.startswith(DROPPED_PREFIX)]
        if self.change.replaces:
            frame, merged = self.change.rows, earlier
        else:
            bases = [name for name in earlier if not name.startswith(PART_PREFIX)]
            parts = sorted(set(earlier) - set(bases), key=_last_seq)
            frame, merged = self._merged(parts, self.change.rows)
        if len(frame):
            files.table(f"{PART_PREFIX}{frame[SEQ][0]}-{self.until}.parquet", frame)
        if self.change.dropped:
            seqs = pl.DataFrame({SEQ: self.change.dropped}, schema={SEQ: pl.Int64})
            files.table(f"{DROPPED_PREFIX}{self.until}.parquet", seqs)
        return [*merged, *earlier_dropped]

    def _merged(self, names: Sequence[str], rows: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
        """Rows with those of the newest files that they absorb, and these files' names."""
        sizes = [self.stored.manifest.files[name].bytes for name in names if name in self.stored.manifest.files]
        if len(sizes) < len(names) or not len(rows):
            return rows, []  # files of an earlier version that the manifest does not name
        count = absorbed(sizes, int(rows.estimated_size()) // COMPRESSION)
        merged = list(names[len(names) - count :])
        frames = [self.stored.table(name, rows.columns) for name in merged]
        return pl.concat([*frames, rows]).sort(SEQ), merged

    def _tables(self, files: AtomicFolder, log: EventLog) -> None:
        archive = self.new.archive
        for name, archived, logged in (
            ("items", archive.items, log.items(archive.watermark, self.until)),
            ("users", archive.users, log.users(archive.watermark, self.until)),
        ):
            if len(logged):
                earlier = archived()
                files.table(f"{name}.parquet", logged if earlier is None else pl.concat([earlier, logged]))
        quarantined = self.new.rows.filter(pl.col(RULE).is_not_null()).select(*QUARANTINED)
        if len(quarantined):
            files.table("quarantine.parquet", pl.concat([archive.quarantine(), quarantined]))

    def _manifest(self, files: AtomicFolder, replaced: Sequence[str]) -> DataManifest:
        previous, change, result = self.stored.manifest, self.change, self.result
        kept_files = {name: facts for name, facts in previous.files.items() if name not in set(replaced)}
        old_counts = previous.counts
        counts = replace(
            old_counts,
            read=old_counts.read + result.read,
            kept=old_counts.kept + result.kept,
            removed={
                rule: old_counts.removed.get(rule, 0) + result.removed.get(rule, 0)
                for rule in sorted({*old_counts.removed, *result.removed})
            },
            train=change.n_rows - change.n_test,
            valid=0,
            test=change.n_test,
        )
        manifest = replace(
            previous,
            format=UPDATE_FORMAT,
            code=__version__,
            cut=result.cut,
            held_seq=result.held_seq,
            watermark=self.until,
            labels=self.new.labels,
            superseded=tuple(sorted(replaced)),
            counts=counts,
            files={**kept_files, **files.written},
            config=self.project.config.model_dump(mode="json", by_alias=True),
            updates=(*previous.updates, UpdateRecord(previous.watermark + 1, self.until, result.read, result.kept)),
        )
        return replace(manifest, split_hash=split_hash_of(manifest))


def _last_seq(name: str) -> int:
    """Last seq in the name of a part."""
    return int(name.removesuffix(".parquet").rsplit("-", 1)[1])


def split_hash_of(manifest: DataManifest) -> str:
    """SHA-256 over the hashes of the files of the split, and its window."""
    hashes = [f"{name}:{manifest.files[name].sha256}" for name in manifest.files_in(SPLIT)]
    return hashlib.sha256("\n".join([*hashes, f"{manifest.cut}:{manifest.held_seq}"]).encode()).hexdigest()


def publish_data(staged: Path, data: Path, windows: tuple[WindowLoss, ...]) -> None:
    """Rename the files of `append` into ``data/``, the manifest last.

    The files that the present version replaced are deleted first. A call after a crash continues the interrupted one.

    Args:
        windows: Losses of the earlier windows, for the next input check.
    """
    for table in sorted(staged.rglob("*.parquet")):
        move(table, data / table.relative_to(staged))
    manifest_file = staged / MANIFEST
    if not manifest_file.exists():
        return
    manifest = replace(DataManifest.read(staged), windows=windows)
    if (data / MANIFEST).exists():
        present = DataManifest.read(data)
        if present.watermark < manifest.watermark:
            remove_superseded(data)
        manifest = replace(manifest, sources=present.sources)  # files may have been read since
    replace_json(data / MANIFEST, manifest.to_json())
    manifest_file.unlink()


def remove_superseded(data: Path) -> None:
    """Delete the files that the present version of ``data/`` replaced."""
    manifest = DataManifest.read(data)
    for name in set(manifest.superseded) - set(manifest.files):
        (data / name).unlink(missing_ok=True)
