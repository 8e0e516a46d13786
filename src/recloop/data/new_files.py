"""Files of ``data.events`` that are new or have grown since they were read, each found by the hash of its content.

``data/manifest.json`` keeps one record a file (`FileRecord`). A file is read once, also under another name; one that
has grown is read from the row on at which it ended before; one whose old content changed is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from recloop.data.read import RawEvents, parse_events, wanted
from recloop.data.rejected_rows import RejectedRow
from recloop.data.sources import InputFile, find
from recloop.data.tables import read_table
from recloop.errors import UserError
from recloop.files import replace_file, replace_json
from recloop.project import Project
from recloop.records import FileFacts
from recloop.storage.data_manifest import MANIFEST, DataManifest, FileRecord

BLOCK: Final = 1 << 22
REJECTS: Final = "rejects.jsonl"


@dataclass(frozen=True)
class NewFiles:
    """What the next update has to read: ``since`` gives the rows of each file that were read before.

    Attributes:
        sources: New and grown files.
        records: One a file, new, grown or renamed; ``rows`` and ``rejected`` are those of before.
    """

    sources: list[InputFile]
    since: dict[str, int]
    records: list[FileRecord]


def records_of(sources: Sequence[InputFile]) -> list[FileRecord]:
    """The content of files, taken before they are read: a file that grows meanwhile is found as grown later."""
    return [_record(source) for source in sources]


def with_rows(records: Sequence[FileRecord], raw: RawEvents) -> list[FileRecord]:
    """The records with the rows that were read of each file, added to those of before."""
    rejected: dict[str, int] = {}
    for row in raw.rejects:
        rejected[row.file] = rejected.get(row.file, 0) + 1
    return [
        replace(one, rows=one.rows + raw.rows.get(one.name, 0), rejected=one.rejected + rejected.get(one.name, 0))
        for one in records
    ]


def known(manifest: DataManifest) -> dict[str, FileRecord]:
    """The files that were read, by name; empty for data of a version that kept no records."""
    return {record.name: record for record in manifest.sources}


def look(project: Project, manifest: DataManifest) -> NewFiles:
    """Compare the files of ``data.events`` with those that were read.

    Raises:
        UserError: the content of a file that was read has changed.
    """
    before = known(manifest)
    if not before:
        return NewFiles([], {}, [])
    try:
        sources = find(project.sources, project.config.data.events, "data.events")
    except UserError:  # every file is gone; their rows are in data/
        return NewFiles([], {}, [])
    contents = {one.sha256: one for one in before.values()}
    found, changed = NewFiles([], {}, []), list[str]()
    for source in sources:
        old = before.get(source.name)
        if old is None:
            record = _record(source)
            twin = contents.get(record.sha256)
            if twin is None:
                found.sources.append(source)
                contents[record.sha256] = record
            found.records.append(record if twin is None else replace(record, rows=twin.rows, rejected=twin.rejected))
            continue
        record, grown = _grown(source, old)
        if record.sha256 == old.sha256:
            continue
        if not grown:
            changed.append(source.name)
            continue
        found.sources.append(source)
        found.since[source.name] = old.rows
        found.records.append(replace(record, rows=old.rows, rejected=old.rejected))
    if changed:
        raise UserError(
            "data.events", ", ".join(changed[:5]) + (" ..." if len(changed) > 5 else ""),
            "content that begins as it did when it was read: rows may be added at the end, never changed",
            "put the old content back, or recloop update --restart (all files are read again, posted rows are kept)",
        )  # fmt: skip
    return found


def changed_catalogs(project: Project, manifest: DataManifest) -> list[str]:
    """Files of ``data.items`` and ``data.users`` whose content is not what was read; only a new first run reads them."""
    before = {record.name: record.sha256 for record in manifest.catalogs}
    found = []
    for key, text in (("data.items", project.config.data.items), ("data.users", project.config.data.users)):
        try:
            sources = find(project.sources, text, key) if text and before else []
        except UserError:  # gone; its rows are in data/
            continue
        found += [source.name for source in sources if before.get(source.name) != _record(source).sha256]
    return found


def missing(project: Project, manifest: DataManifest) -> list[str]:
    """Files that were read and that ``data.events`` no longer finds, neither by name nor by content."""
    before = known(manifest)
    try:
        sources = find(project.sources, project.config.data.events, "data.events")
    except UserError:
        return sorted(before)
    names = {source.name for source in sources}
    lost = [one for one in before.values() if one.name not in names]
    contents = {_record(source).sha256 for source in sources if source.name not in before} if lost else set[str]()
    return sorted(one.name for one in lost if one.sha256 not in contents)


def read_new(project: Project, new: NewFiles, manifest: DataManifest) -> RawEvents:
    """The rows of new and grown files in the order of file and row, each with an event_id of its own.

    Stamps whose day and month cannot be told apart are read as those of the import were.
    """
    data = project.config.data
    tables = [read_table(source, data.encoding, wanted(data.columns)) for source in new.sources]
    info = str(manifest.report.get("info", ""))
    day_first = True if "day first" in info else False if "month first" in info else None
    return parse_events(tables, data, since=new.since, day_first=day_first)


def remember(project: Project, records: Sequence[FileRecord], rejects: Sequence[RejectedRow]) -> None:
    """Write the records into ``data/manifest.json``, by rename, after the rejected rows."""
    file = project.data / MANIFEST
    manifest = DataManifest.read(project.data)
    records_by_name = {**known(manifest), **{record.name: record for record in records}}
    sources = tuple(records_by_name[name] for name in sorted(records_by_name, key=str.encode))
    manifest = replace(manifest, sources=sources)
    if rejects:
        path = project.data / REJECTS
        text = path.read_bytes() if path.exists() else b""
        text += b"".join(msgspec.json.encode(row) + b"\n" for row in rejects)
        replace_file(path, text)
        facts = FileFacts(hashlib.sha256(text).hexdigest(), len(text))
        counts = manifest.counts
        counts = replace(counts, read=counts.read + len(rejects), rejected=counts.rejected + len(rejects))
        manifest = replace(manifest, files={**manifest.files, REJECTS: facts}, counts=counts)
    replace_json(file, manifest.to_json())


def _record(source: InputFile) -> FileRecord:
    size = source.path.stat().st_size
    digest, _, _ = _hashed(source.path, size)
    return FileRecord(source.name, digest, size)


def _grown(source: InputFile, old: FileRecord) -> tuple[FileRecord, bool]:
    """A file's present content, and whether it begins with the old one and goes on in a new line."""
    size = source.path.stat().st_size
    if size < old.bytes:
        return _record(source), False
    whole, prefix, edge = _hashed(source.path, size, old.bytes)
    lines = source.kind != "parquet" and (
        source.packing is not None or edge[:1] in b"\r\n" or edge[1:] in (b"\r", b"\n")
    )
    return FileRecord(source.name, whole, size), prefix == old.sha256 and lines


def _hashed(path: Path, size: int, part: int = 0) -> tuple[str, str, bytes]:
    """SHA-256 of the first ``size`` bytes, that of the first ``part``, and the two bytes about its end."""
    digest, prefix, edge = hashlib.sha256(), hashlib.sha256().hexdigest(), b""
    with path.open("rb") as file:
        for end in (part, size):
            while (left := end - file.tell()) > 0:
                block = file.read(min(BLOCK, left))
                if not block:
                    break
                digest.update(block)
            if end == part:
                prefix = digest.hexdigest()
        if 0 < part < size:
            file.seek(part - 1)
            edge = file.read(2)
    return digest.hexdigest(), prefix, edge
