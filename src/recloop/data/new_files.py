"""New and grown files of ``data.events``, identified by content hash.

``data/manifest.json`` keeps one `FileRecord` per file. A file is read once, even after it was renamed. A grown file is
read from its first new row on. A change of its old content is an error.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from recloop.data.read import RawEvents, parse_events, read_orders
from recloop.data.rejected_rows import RejectedRow
from recloop.data.shape import input_columns
from recloop.data.sources import InputFile, find
from recloop.data.tables import read_table
from recloop.errors import UserError
from recloop.files import replace_file, replace_json
from recloop.project import Project
from recloop.records import FileFacts
from recloop.storage.data_manifest import MANIFEST, DataManifest, FileRecord

REJECTS_FILE: Final = "rejects.jsonl"


@dataclass(frozen=True)
class NewFiles:
    """Files that the next update has to read.

    Attributes:
        sources: New and grown files.
        since: Rows already read, by file name.
        records: New, grown and renamed files; ``rows`` and ``rejected`` count what was read before.
    """

    sources: list[InputFile]
    since: dict[str, int]
    records: list[FileRecord]


def records_of(sources: Sequence[InputFile]) -> list[FileRecord]:
    """Hash files before they are read.

    A file that grows meanwhile is then detected by the next update.
    """
    return [_record(source) for source in sources]


def with_rows(records: Sequence[FileRecord], raw: RawEvents) -> list[FileRecord]:
    """Add the rows that were read to the file records."""
    rejected: dict[str, int] = {}
    for row in raw.rejects:
        rejected[row.file] = rejected.get(row.file, 0) + 1
    return [
        replace(
            record,
            rows=record.rows + raw.rows.get(record.name, 0),
            rejected=record.rejected + rejected.get(record.name, 0),
        )
        for record in records
    ]


def known_files(manifest: DataManifest) -> dict[str, FileRecord]:
    """Files already read, by name; empty for data of a version without file records."""
    return {record.name: record for record in manifest.sources}


def find_new_files(project: Project, manifest: DataManifest) -> NewFiles:
    """Compare the files of ``data.events`` with those already read.

    Raises:
        UserError: the old content of a file has changed.
    """
    known_records = known_files(manifest)
    if not known_records:
        return NewFiles([], {}, [])
    try:
        sources = find(project.sources, project.config.data.events, "data.events")
    except UserError:  # all files were deleted; their rows are in data/
        return NewFiles([], {}, [])
    contents = {record.sha256: record for record in known_records.values()}
    result = NewFiles([], {}, [])
    changed = list[str]()
    for source in sources:
        known_record = known_records.get(source.name)
        if known_record is None:
            record = _record(source)
            copy = contents.get(record.sha256)
            if copy is None:
                result.sources.append(source)
                contents[record.sha256] = record
            result.records.append(record if copy is None else replace(record, rows=copy.rows, rejected=copy.rejected))
            continue
        record, has_grown = _grown(source, known_record)
        if record.sha256 == known_record.sha256:
            continue
        if not has_grown:
            changed.append(source.name)
            continue
        result.sources.append(source)
        result.since[source.name] = known_record.rows
        result.records.append(replace(record, rows=known_record.rows, rejected=known_record.rejected))
    if changed:
        raise UserError(
            "data.events", ", ".join(changed[:5]) + (" ..." if len(changed) > 5 else ""),
            "unchanged old content (rows may only be added at the end)",
            "restore the old content, or recloop update --restart (all files are read again, posted rows are kept)",
        )  # fmt: skip
    return result


def changed_catalogs(project: Project, manifest: DataManifest) -> list[str]:
    """Changed files of ``data.items`` and ``data.users``.

    Only a new first run reads them.
    """
    known_hashes = {record.name: record.sha256 for record in manifest.catalogs}
    changed = []
    for key, text in (("data.items", project.config.data.items), ("data.users", project.config.data.users)):
        try:
            sources = find(project.sources, text, key) if text and known_hashes else []
        except UserError:  # deleted; its rows are in data/
            continue
        changed += [source.name for source in sources if known_hashes.get(source.name) != _record(source).sha256]
    return changed


def missing_files(project: Project, manifest: DataManifest) -> list[str]:
    """Files read earlier that ``data.events`` no longer finds by name or content."""
    known_records = known_files(manifest)
    try:
        sources = find(project.sources, project.config.data.events, "data.events")
    except UserError:
        return sorted(known_records)
    names = {source.name for source in sources}
    missing = [record for record in known_records.values() if record.name not in names]
    contents = set[str]()
    if missing:
        contents = {_record(source).sha256 for source in sources if source.name not in known_records}
    return sorted(record.name for record in missing if record.sha256 not in contents)


def read_new(project: Project, new_files: NewFiles, manifest: DataManifest) -> RawEvents:
    """Read the new rows in the order of file and row, each with a unique event_id.

    An ambiguous order of day and month is resolved as in the import.
    """
    data = project.config.data
    tables = [read_table(source, data, input_columns(data)) for source in new_files.sources]
    info = str(manifest.report.get("info", ""))
    day_first = True if "day first" in info else False if "month first" in info else None
    return parse_events(tables, data, since=new_files.since, day_first=day_first, orders=read_orders(project))


def record_files(project: Project, records: Sequence[FileRecord], rejects: Sequence[RejectedRow]) -> None:
    """Record the files that were read and their rejected rows.

    The rejected rows are appended first, then ``data/manifest.json`` is replaced.
    """
    file = project.data / MANIFEST
    manifest = DataManifest.read(project.data)
    records_by_name = {**known_files(manifest), **{record.name: record for record in records}}
    sources = tuple(records_by_name[name] for name in sorted(records_by_name, key=str.encode))
    manifest = replace(manifest, sources=sources)
    if rejects:
        path = project.data / REJECTS_FILE
        text = path.read_bytes() if path.exists() else b""
        text += b"".join(msgspec.json.encode(row) + b"\n" for row in rejects)
        replace_file(path, text)
        facts = FileFacts(hashlib.sha256(text).hexdigest(), len(text))
        counts = manifest.counts
        counts = replace(counts, read=counts.read + len(rejects), rejected=counts.rejected + len(rejects))
        manifest = replace(manifest, files={**manifest.files, REJECTS_FILE: facts}, counts=counts)
    replace_json(file, manifest.to_json())


def _record(source: InputFile) -> FileRecord:
    size = source.n_bytes
    digest, _, _ = _hashed(source, size)
    return FileRecord(source.name, digest, size)


def _grown(source: InputFile, known_record: FileRecord) -> tuple[FileRecord, bool]:
    """Record of a file, and True if it is the old content plus new lines."""
    size = source.n_bytes
    if size < known_record.bytes:
        return _record(source), False
    digest, prefix, edge = _hashed(source, size, known_record.bytes)
    ends_at_line = source.kind != "parquet" and (
        source.packing not in (None, "zip") or edge[:1] in b"\r\n" or edge[1:] in (b"\r", b"\n")
    )
    return FileRecord(source.name, digest, size), prefix == known_record.sha256 and ends_at_line


def _hashed(source: InputFile, size: int, prefix_bytes: int = 0) -> tuple[str, str, bytes]:
    """Hash a file and its old part.

    Returns SHA-256 of the first ``size`` bytes, of the first ``prefix_bytes`` bytes, and the bytes at the edge.
    """
    digest = hashlib.sha256()
    prefix = hashlib.sha256().hexdigest()
    edge = b""
    n_hashed = 0
    for block in source.content():
        start = prefix_bytes - n_hashed
        if 0 < start <= len(block):
            old_part = digest.copy()
            old_part.update(block[:start])
            prefix = old_part.hexdigest()
        if prefix_bytes:
            edge += block[max(0, start - 1) : max(0, start + 1)]
        digest.update(block)
        n_hashed += len(block)
    return digest.hexdigest(), prefix, edge if prefix_bytes < size else b""
