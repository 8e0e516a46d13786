"""Import of new files of ``data.events`` into the log before an update."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import polars as pl

from recloop.data import new_files, rejected_rows
from recloop.errors import Locked, UserError
from recloop.ingest import bulk
from recloop.progress import Progress
from recloop.project import Project
from recloop.recommend import loading
from recloop.records import RECEIVED_AT, TIMESTAMP, Event, now
from recloop.storage import locks
from recloop.storage.data_manifest import FileRecord


@dataclass(frozen=True)
class Read:
    """Result of an import: files, rows by status, and rejected rows."""

    files: int
    kept: int
    rejected: int


def import_new_files(project: Project, progress: Progress) -> Read:
    """Import every new or grown file once; post its rows to the server if one runs.

    Rows without event ids get ids from file name and row number, so a resumed run may read the file again.

    Raises:
        UserError: an imported file has changed, or more rows than ``clean.max_rejected`` are unreadable.
        Locked: another writer holds the log and does not accept rows over HTTP.
    """
    manifest = loading.manifest(project)
    for name in new_files.changed_catalogs(project, manifest):
        progress.say("collect", f"{name} has changed since its import; post its rows, or recloop update --restart")
    new = new_files.find_new_files(project, manifest)
    if not new.records:
        return Read(0, 0, 0)
    if not new.sources:  # only known content under other names
        new_files.record_files(project, new.records, ())
        return Read(0, 0, 0)
    raw = new_files.read_new(project, new, manifest)
    records = new_files.with_rows(new.records, raw)
    _limit(project, new_files.known_files(manifest), records, raw.rejects)
    with ExitStack() as stack:
        kept = _keep(project, raw.frame.sort(TIMESTAMP, maintain_order=True), stack)
    new_files.record_files(project, records, raw.rejects)
    why = f" ({rejected_rows.reasons(raw.rejects)})" if raw.rejects else ""
    progress.say(
        "collect",
        f"{len(new.sources):,} new or grown files of data.events: {kept:,} rows added to the log, "
        f"{len(raw.rejects):,} rejected{why}",
    )
    return Read(len(new.sources), kept, len(raw.rejects))


def _limit(
    project: Project, before: dict[str, FileRecord], records: list[FileRecord],
    rejects: list[rejected_rows.RejectedRow],
) -> None:  # fmt: skip
    """Apply the rejection limit over all files ever imported, as a first run does."""
    every = {**before, **{one.name: one for one in records}}.values()
    rows, bad = sum(one.rows for one in every), sum(one.rejected for one in every)
    allowed = project.config.clean.max_rejected
    if rejects and bad > allowed * rows:
        share = rejected_rows.rounded_up(bad / rows)
        raise UserError(
            "rejected", f"{bad / rows:.1%} of the rows of all files; in the new ones {rejected_rows.reasons(rejects)}",
            f"at most {allowed:.1%} (clean.max_rejected)",
            f"correct the rows, or drop them: recloop update --set clean.max_rejected={share}",
            tuple(f"{row.place}: {row.raw}"[:300] for row in rejects[:3]),
        )  # fmt: skip


def _keep(project: Project, rows: pl.DataFrame, stack: ExitStack) -> int:
    try:
        keep = bulk.into_log(project, project.config.data.events, stack)
    except Locked:
        url = locks.server_url(project.root)
        if not url:
            raise
        keep = bulk.into_service(url, stack)
    kept, received_at = 0, now()
    for start in range(0, len(rows), bulk.BATCH):
        part = rows[start : start + bulk.BATCH].drop(RECEIVED_AT)
        outcomes = keep([Event(received_at=received_at, **row) for row in part.iter_rows(named=True)])
        refused = [one for one in outcomes if one.status in {"rejected", "conflict"}]
        if refused:
            expected = f"rows that the log accepts, but it refused {len(refused):,} ({refused[0].reason or 'conflict'})"
            raise UserError(
                "data.events", project.config.data.events, expected, "correct the file, then recloop update"
            )
        kept += sum(one.status in {"accepted", "quarantined"} for one in outcomes)
    return kept
