"""Staged ``data/``: new files, then the manifest, then a rename."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from recloop import __version__
from recloop.data.atomic_folder import AtomicFolder
from recloop.data.doctor.report import Report
from recloop.data.entities import EntityTable
from recloop.data.rejected_rows import RejectedRow
from recloop.features.dwell import DwellPercentiles
from recloop.files import swap_folder
from recloop.project import Project
from recloop.records import FileFacts
from recloop.storage.data_manifest import DataManifest, FileRecord, RowCounts
from recloop.storage.identities import Identity

FORMAT_VERSION: Final = 2  # format 2: the split has use, pair and units
SPLITS: Final = ("train", "valid", "test")


@dataclass(frozen=True)
class Imported:
    """Files that an import reads, and what it read besides the events.

    Attributes:
        fingerprint: Hash of the files and of the settings that read them.
        sources: Files of ``data.events``.
        catalogs: Files of ``data.items`` and ``data.users``.
        items, users: Tables with their seq; None if the project has none.
        rejects: Rejected rows of all files.
        last_seq: Last seq of the import.
    """

    fingerprint: str
    sources: tuple[FileRecord, ...]
    catalogs: tuple[FileRecord, ...]
    items: EntityTable | None
    users: EntityTable | None
    rejects: list[RejectedRow]
    last_seq: int


@dataclass(frozen=True)
class PrepareResult:
    """Result of `prepare`: report, cut (us), watermark (seq) and rows of each split.

    Attributes:
        identities: Identities of an earlier log, with seqs up to the watermark.
    """

    report: Report
    fingerprint: str
    cut: int
    watermark: int
    train: int
    valid: int
    test: int
    identities: tuple[Identity, ...] = ()


@contextmanager
def staged_data(project: Project) -> Iterator[AtomicFolder]:
    """Folder beside ``data/`` for its new files, removed unless `commit` moves it."""
    staged = project.data.with_name(project.data.name + ".tmp")
    shutil.rmtree(staged, ignore_errors=True)
    files = AtomicFolder(staged)
    try:
        yield files
    finally:
        files.close()
        shutil.rmtree(staged, ignore_errors=True)


def commit(
    project: Project,
    files: AtomicFolder,
    imported: Imported,
    result: PrepareResult,
    dwell: DwellPercentiles | None,
) -> None:
    """Write the remaining tables and the manifest, and replace ``data/``."""
    if imported.items is not None:
        files.table("items.parquet", imported.items.frame)
    if imported.users is not None:
        files.table("users.parquet", imported.users.frame)
    files.lines("rejects.jsonl", imported.rejects)
    files.wait()
    report = result.report
    manifest = DataManifest(
        format=FORMAT_VERSION,
        code=__version__,
        fingerprint=imported.fingerprint,
        cut=result.cut,
        watermark=result.watermark,
        imported=imported.last_seq,
        sources=imported.sources,
        catalogs=imported.catalogs,
        split_hash=split_hash(files.written),
        counts=RowCounts(
            read=report.read,
            kept=report.kept,
            removed=report.removed,
            rejected=report.rejected,
            train=result.train,
            valid=result.valid,
            test=result.test,
        ),
        report=report.to_json(),
        dwell=None if dwell is None else dwell.to_json(),
        files=files.written,
        config=project.config.model_dump(mode="json", by_alias=True),
    )
    files.manifest(manifest.to_json())
    swap_folder(files.folder, project.data)


def split_hash(written: Mapping[str, FileFacts]) -> str:
    """SHA-256 over the hashes of the three split files."""
    return hashlib.sha256("".join(written[f"split/{name}.parquet"].sha256 for name in SPLITS).encode()).hexdigest()
