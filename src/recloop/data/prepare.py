"""Write and read ``data/``, the cleaned and split log.

Equal input and settings give identical bytes. Files are written into ``data.tmp``, synced to disk and renamed; the
manifest is written last.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

import polars as pl

from recloop.config import Config
from recloop.data import new_files, rejected_rows
from recloop.data.clean import clean, nothing_left
from recloop.data.doctor.report import report
from recloop.data.doctor.warnings import CountedLog
from recloop.data.entities import EntityTable, read_items, read_project, read_users
from recloop.data.event_blocks import EventBlocks, NotStreamableError
from recloop.data.forgotten_rows import leave_out, leave_out_users
from recloop.data.labelled_log import UPDATE_FORMAT, LabelledLog, split_at
from recloop.data.log_counts import LogCounts
from recloop.data.posted_rows import PostedRows, identities_of, with_first_users
from recloop.data.read import RawEvents
from recloop.data.sharded_log import ShardedLog, can_shard, days_of
from recloop.data.sources import InputFile, find, fingerprint
from recloop.data.split import split
from recloop.data.staging import FORMAT_VERSION, SPLITS, Imported, PrepareResult, commit, staged_data
from recloop.errors import UserError
from recloop.features.dwell import DwellPercentiles
from recloop.features.moments import number_moments
from recloop.files import recover_folder
from recloop.project import Project
from recloop.records import SEQ
from recloop.storage.data_manifest import DataManifest, FileRecord
from recloop.storage.forgotten import ForgottenUsers

__all__ = ["PrepareResult", "PreparedData", "load", "prepare", "read", "split_log"]

SPACE_RATIO: Final = 4
"""Bytes of shards and ``data/``, divided by those of the files of ``data.events``."""


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
    log_sources = [source for source in sources if source.key == "data.events"]
    records = _Records(
        data_fingerprint,
        new_files.records_of(log_sources),
        tuple(new_files.records_of([source for source in sources if source.key in ("data.items", "data.users")])),
    )
    if posted is None and can_shard(config, log_sources):
        try:
            return _prepare_shards(project, log_sources, records)
        except NotStreamableError:
            pass  # rows depend on others, or an error names them: the log is read whole
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise _disk_full(project, log_sources) from None
            raise
    return _prepare_whole(project, records, posted)


@dataclass(frozen=True)
class _Records:
    """Fingerprint of an import, and its files before they are read."""

    fingerprint: str
    sources: list[FileRecord]
    catalogs: tuple[FileRecord, ...]

    def imported(self, raw: RawEvents, items: EntityTable | None, users: EntityTable | None, last_seq: int) -> Imported:
        rejects = [*raw.rejects, *(row for table in (items, users) if table is not None for row in table.rejects)]
        sources = tuple(new_files.with_rows(self.sources, raw))
        return Imported(self.fingerprint, sources, self.catalogs, items, users, rejects, last_seq)


def _prepare_whole(project: Project, records: _Records, posted: PostedRows | None) -> PrepareResult:
    config = project.config
    raw, items, users = read_project(project)
    imported = records.imported(raw, items, users, 0)
    _check_rejects(raw, config)
    items, users = _numbered(items, 0), _numbered(users, 0 if items is None else len(items.frame))
    after = sum(len(table.frame) for table in (items, users) if table is not None)
    last_seq = after + len(raw.frame)
    forgotten = ForgottenUsers.read(project.sources)
    users = leave_out_users(forgotten, users)
    if posted is not None:
        posted = posted.renumbered(last_seq)
        frame = with_first_users(raw.frame, posted.identities)
        raw = replace(raw, frame=frame, read=raw.read + len(posted.events))
        items, users = _with_posted(items, posted.items), _with_posted(users, posted.users)
    cleaned = clean(raw.frame, config, after, None if items is None else items.frame, posted)
    if cleaned.excessive:
        raise cleaned.excessive[0]
    valid_rows, quarantine, removed = leave_out(
        forgotten, cleaned.valid_rows, cleaned.quarantine, cleaned.removed, last_seq
    )
    cleaned = replace(cleaned, valid_rows=valid_rows, quarantine=quarantine, removed=removed)
    empty_error = nothing_left(len(cleaned.valid_rows), cleaned.removed, cleaned.quarantine)
    if empty_error is not None:
        raise empty_error
    split_frames = split(cleaned.valid_rows, config.split)
    counts = LogCounts.of(cleaned.valid_rows, config)
    result = PrepareResult(
        report=report(CountedLog(raw, cleaned.removed, counts, items, users, config)),
        fingerprint=records.fingerprint,
        cut=split_frames.cut,
        watermark=cleaned.watermark,
        train=len(split_frames.train),
        valid=len(split_frames.valid),
        test=len(split_frames.test),
        identities=() if posted is None else identities_of(posted.identities),
    )
    imported = replace(imported, items=items, users=users, last_seq=last_seq)
    with staged_data(project) as files:
        for day, rows in days_of(cleaned.valid_rows):
            files.table(f"archive/date={day}/events.parquet", rows)
        for name, frame in zip(SPLITS, split_frames[:3], strict=True):
            files.table(f"split/{name}.parquet", frame)
        files.table("quarantine.parquet", cleaned.quarantine)
        commit(project, files, imported, result, cleaned.dwell)
    return result


def _prepare_shards(project: Project, sources: Sequence[InputFile], records: _Records) -> PrepareResult:
    """As `_prepare_whole`, in memory for one shard of the users at a time."""
    config = project.config
    forgotten = ForgottenUsers.read(project.sources)
    with staged_data(project) as files, ShardedLog.open(files.folder / "shards", sources, config, forgotten) as log:
        raw = log.read(EventBlocks(sources, config.data))
        items, users = read_items(project), read_users(project)
        imported = records.imported(raw, items, users, 0)
        _check_rejects(raw, config)
        items, users = _numbered(items, 0), _numbered(users, 0 if items is None else len(items.frame))
        after = sum(len(table.frame) for table in (items, users) if table is not None)
        users = leave_out_users(forgotten, users)
        cleaned = log.clean(after, None if items is None else items.frame)
        if cleaned.excessive:
            raise cleaned.excessive[0]
        empty_error = nothing_left(cleaned.counts.rows, cleaned.removed, cleaned.samples)
        if empty_error is not None:
            raise empty_error
        split_rows = log.split(cleaned)
        rows = log.write(files, split_rows)
        result = PrepareResult(
            report=report(CountedLog(raw, cleaned.removed, cleaned.counts, items, users, config)),
            fingerprint=records.fingerprint,
            cut=split_rows.cut,
            watermark=cleaned.last_seq,
            train=rows["train"],
            valid=rows["valid"],
            test=rows["test"],
        )
        log.remove()
        imported = replace(imported, items=items, users=users, last_seq=cleaned.last_seq)
        commit(project, files, imported, result, cleaned.dwell)
    return result


def _disk_full(project: Project, sources: Sequence[InputFile]) -> UserError:
    """Error of a disk that filled while shards were written; ``data/`` is unchanged."""
    free = shutil.disk_usage(project.root).free
    n_bytes = sum(source.n_bytes for source in sources)
    expected = f"free space of about {SPACE_RATIO * n_bytes / 1e9:.1f} GB for shards and data/"
    return UserError("disk", f"{free / 1e9:.1f} GB free at {project.root}", expected, f"df -h {project.root}")


def _check_rejects(raw: RawEvents, config: Config) -> None:
    error = rejected_rows.excess(raw.rejects, raw.read, config.clean.max_rejected)
    if error is not None:
        raise error


def load(project: Project) -> PreparedData:
    """Read ``data/`` of a project and verify every page's checksum.

    Rows of forgotten users that an update has yet to remove are left out.

    Raises:
        UserError: ``data/`` does not exist yet, or a file is damaged or of another format.
    """
    recover_folder(project.data)
    data, forgotten = read(project.data), ForgottenUsers.read(project.root)
    if not forgotten.pending:
        return data
    train, valid, test = (forgotten.without(frame) for frame in (data.train, data.valid, data.test))
    users = None if data.users is None else forgotten.without(data.users)
    return replace(data, train=train, valid=valid, test=test, users=users)


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
