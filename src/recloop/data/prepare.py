"""Write and read ``data/``, the cleaned and split log.

Equal input and settings give identical bytes. Files are written into ``data.tmp``, synced to disk and renamed; the
manifest is written last.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import polars as pl

from recloop import __version__
from recloop.data import new_files, rejected_rows
from recloop.data.atomic_folder import AtomicFolder
from recloop.data.clean import CleanResult, clean, nothing_left
from recloop.data.doctor import Report, report
from recloop.data.entities import EntityTable, read_project
from recloop.data.labelled_log import UPDATE_FORMAT, LabelledLog, split_at
from recloop.data.log_counts import LogCounts
from recloop.data.posted_rows import PostedRows
from recloop.data.rejected_rows import RejectedRow
from recloop.data.sources import find, fingerprint
from recloop.data.split import SplitFrames, split
from recloop.errors import UserError
from recloop.features.dwell import DwellPercentiles
from recloop.features.moments import number_moments
from recloop.files import recover_folder, swap_folder
from recloop.project import Project
from recloop.records import EVENT_SCHEMA, SEQ, TIMESTAMP, FileFacts
from recloop.storage.data_manifest import DataManifest, FileRecord, RowCounts

FORMAT_VERSION: Final = 2  # format 2: the split has use, pair and units
SPLITS: Final = ("train", "valid", "test")


@dataclass(frozen=True)
class PrepareResult:
    """Result of `prepare`: report, cut (us), watermark (seq) and rows of each split."""

    report: Report
    fingerprint: str
    cut: int
    watermark: int
    train: int
    valid: int
    test: int


@dataclass(frozen=True)
class PreparedData:
    """``data/`` in memory: labelled splits by seq, item and user versions, manifest."""

    train: pl.DataFrame
    valid: pl.DataFrame
    test: pl.DataFrame
    items: pl.DataFrame | None
    users: pl.DataFrame | None
    manifest: DataManifest

    @property
    def dwell(self) -> DwellPercentiles | None:
        """Dwell percentiles that labelled the rows."""
        tree = self.manifest.dwell
        return None if tree is None else DwellPercentiles.from_json(dict(tree))

    @cached_property
    def events(self) -> pl.DataFrame:
        """All valid events, labelled, in seq order."""
        return pl.concat([self.train, self.valid, self.test]).sort(SEQ)


def prepare(project: Project, logged: bool = False, posted: PostedRows | None = None) -> PrepareResult:
    """Read, clean and split the log of a project into ``data/``.

    The caller holds the run's lock.

    Args:
        project: The project.
        logged: True if log.db or decisions.db holds rows; then only the same import can be prepared again.
        posted: Rows of an earlier generation of the data, to be numbered after the import.

    Raises:
        UserError: the log or a setting is invalid; ``data/`` stays unchanged.
    """
    config = project.config
    recover_folder(project.data)
    sources = [
        source
        for key, text in (
            ("data.events", config.data.events),
            ("data.orders", config.data.orders),
            ("data.items", config.data.items),
            ("data.users", config.data.users),
        )
        if text
        for source in find(project.sources, text, key)
    ]
    data_fingerprint = fingerprint(config.data, sources)
    if logged:
        _same_import(project, data_fingerprint)
    files = new_files.records_of([source for source in sources if source.key == "data.events"])
    catalogs = new_files.records_of([source for source in sources if source.key in ("data.items", "data.users")])
    raw, items, users = read_project(project)
    read_files = new_files.with_rows(files, raw)
    excess_error = rejected_rows.excess(raw.rejects, raw.read, config.clean.max_rejected)
    if excess_error is not None:
        raise excess_error
    items, users = _numbered(items, 0), _numbered(users, 0 if items is None else len(items.frame))
    after = sum(len(table.frame) for table in (items, users) if table is not None)
    imported = after + len(raw.frame)
    if posted is not None:
        posted = posted.renumbered(imported)
        raw = replace(raw, read=raw.read + len(posted.events))
        items, users = _with_posted(items, posted.items), _with_posted(users, posted.users)
    cleaned = clean(raw.frame, config, after, None if items is None else items.frame, posted)
    if cleaned.excessive:
        raise cleaned.excessive[0]
    empty_error = nothing_left(cleaned)
    if empty_error is not None:
        raise empty_error
    split_frames = split(cleaned.valid_rows, config.split)
    counts = LogCounts.of(cleaned.valid_rows, config)
    log_report = report(raw, cleaned.removed, counts, items, users, config)
    rejects = [*raw.rejects, *(row for table in (items, users) if table is not None for row in table.rejects)]
    _write(
        project,
        cleaned,
        split_frames,
        items,
        users,
        rejects,
        log_report,
        data_fingerprint,
        imported,
        read_files,
        catalogs,
    )
    return PrepareResult(
        report=log_report,
        fingerprint=data_fingerprint,
        cut=split_frames.cut,
        watermark=cleaned.watermark,
        train=len(split_frames.train),
        valid=len(split_frames.valid),
        test=len(split_frames.test),
    )


def load(project: Project) -> PreparedData:
    """Read ``data/`` of a project and verify every page's checksum.

    Raises:
        UserError: ``data/`` does not exist yet, or a file is damaged or of another format.
    """
    recover_folder(project.data)
    return read(project.data)


def read(data: Path) -> PreparedData:
    """Read a data folder; the rows of an update are split at its window."""
    return split_log(LabelledLog(data))


def split_log(log: LabelledLog) -> PreparedData:
    """Read all rows of a labelled log as train, validation and test."""
    manifest = log.manifest
    if manifest.format not in {FORMAT_VERSION, UPDATE_FORMAT}:
        raise UserError("data", manifest.format, f"format {UPDATE_FORMAT} of data/", "recloop prepare")
    if log.has_parts:
        max_users = int(manifest.config["split"]["validation_users"])
        train, valid, test, _ = split_at(number_moments(log.rows()), log.window, max_users)
    else:
        train, valid, test = (log.table(f"split/{name}.parquet") for name in SPLITS)
    return PreparedData(train, valid, test, log.items, log.users, manifest)


def split_hash(written: Mapping[str, FileFacts]) -> str:
    """SHA-256 over the hashes of the three split files."""
    return hashlib.sha256("".join(written[f"split/{name}.parquet"].sha256 for name in SPLITS).encode()).hexdigest()


def _same_import(project: Project, data_fingerprint: str) -> None:
    try:
        recorded = DataManifest.read(project.data).fingerprint
    except UserError:
        recorded = "lost"
    if recorded != data_fingerprint:
        raise UserError(
            "data.events", f"{project.config.data.events} ({data_fingerprint[:8]})",
            f"the import that log.db continues ({recorded[:8]}): the stores of this folder hold later rows",
            "recloop update (it reads new files), recloop update --restart, or a new folder",
        )  # fmt: skip


def _numbered(table: EntityTable | None, after: int) -> EntityTable | None:
    if table is None:
        return None
    seq = pl.int_range(after + 1, after + 1 + len(table.frame), dtype=pl.Int64, eager=True)
    return EntityTable(table.frame.with_columns(seq.alias(SEQ)), table.rejects, table.sources)


def _with_posted(table: EntityTable | None, posted: pl.DataFrame) -> EntityTable | None:
    if not len(posted):
        return table
    if table is None:
        return EntityTable(posted, [], ())
    return replace(table, frame=pl.concat([table.frame, posted.select(table.frame.columns)]))


# -- writing


def _write(
    project: Project,
    cleaned: CleanResult,
    split_frames: SplitFrames,
    items: EntityTable | None,
    users: EntityTable | None,
    rejects: list[RejectedRow],
    log_report: Report,
    data_fingerprint: str,
    imported: int,
    read_files: list[FileRecord],
    catalogs: list[FileRecord],
) -> None:
    target = project.data
    staged = target.with_name(target.name + ".tmp")
    shutil.rmtree(staged, ignore_errors=True)
    files = AtomicFolder(staged)
    try:
        date = pl.from_epoch(TIMESTAMP, time_unit="us").dt.strftime("%Y-%m-%d").alias("date")
        days = cleaned.valid_rows.select(*EVENT_SCHEMA, date).partition_by("date", as_dict=True, include_key=False)
        for (day,), rows in sorted(days.items()):
            files.table(f"archive/date={day}/events.parquet", rows)
        for name, frame in zip(SPLITS, split_frames[:3], strict=True):
            files.table(f"split/{name}.parquet", frame)
        if items is not None:
            files.table("items.parquet", items.frame)
        if users is not None:
            files.table("users.parquet", users.frame)
        files.table("quarantine.parquet", cleaned.quarantine)
        files.lines("rejects.jsonl", rejects)
        files.wait()
        manifest = DataManifest(
            format=FORMAT_VERSION,
            code=__version__,
            fingerprint=data_fingerprint,
            cut=split_frames.cut,
            watermark=cleaned.watermark,
            imported=imported,
            sources=tuple(read_files),
            catalogs=tuple(catalogs),
            split_hash=split_hash(files.written),
            counts=RowCounts(
                read=log_report.read,
                kept=log_report.kept,
                removed=log_report.removed,
                rejected=log_report.rejected,
                train=len(split_frames.train),
                valid=len(split_frames.valid),
                test=len(split_frames.test),
            ),
            report=log_report.to_json(),
            dwell=None if cleaned.dwell is None else cleaned.dwell.to_json(),
            files=files.written,
            config=project.config.model_dump(mode="json", by_alias=True),
        )
        files.manifest(manifest.to_json())
        swap_folder(staged, target)
    finally:
        files.close()
        shutil.rmtree(staged, ignore_errors=True)
