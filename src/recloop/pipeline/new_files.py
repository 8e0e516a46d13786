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
from recloop.storage import admin_token, locks
from recloop.storage.data_manifest import FileRecord
from recloop.storage.forgotten import ForgottenUsers


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
    new_data = new_files.find_new_files(project, manifest)
    if not new_data.records:
        return Read(0, 0, 0)
    if not new_data.sources:  # only known content under other names
        new_files.record_files(project, new_data.records, ())
        return Read(0, 0, 0)
    raw = new_files.read_new(project, new_data, manifest)
    records = new_files.with_rows(new_data.records, raw)
    _limit(project, new_files.known_files(manifest), records, raw.rejects)
    with ExitStack() as stack:
        rows = raw.frame.filter(~ForgottenUsers.read(project.root).imported_rows(raw.frame))
        row_count = _keep(project, rows.sort(TIMESTAMP, maintain_order=True), stack)
    new_files.record_files(project, records, raw.rejects)
    reasons = f" ({rejected_rows.reasons(raw.rejects)})" if raw.rejects else ""
    progress.say(
        "collect",
        f"{len(new_data.sources):,} new or grown files of data.events: {row_count:,} rows added to the log, "
        f"{len(raw.rejects):,} rejected{reasons}",
    )
    return Read(len(new_data.sources), row_count, len(raw.rejects))


def _limit(
    project: Project, earlier: dict[str, FileRecord], records: list[FileRecord],
    rejects: list[rejected_rows.RejectedRow],
) -> None:  # fmt: skip
    """Apply the rejection limit over all files ever imported, as a first run does."""
    all_records = {**earlier, **{record.name: record for record in records}}.values()
    rows = sum(record.rows for record in all_records)
    rejected = sum(record.rejected for record in all_records)
    allowed = project.config.clean.max_rejected
    if rejects and rejected > allowed * rows:
        share = rejected_rows.rounded_up(rejected / rows)
        raise UserError(
            "rejected", f"{rejected / rows:.1%} of the rows of all files; in the new ones {rejected_rows.reasons(rejects)}",
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
        keep = bulk.into_service(url, stack, admin_token.read(project.root), project.config.serve.limits)
    stored = 0
    received_at = now()
    for start in range(0, len(rows), bulk.MAX_BATCH_ROWS):
        batch = rows[start : start + bulk.MAX_BATCH_ROWS].drop(RECEIVED_AT)
        outcomes = keep([Event(received_at=received_at, **row) for row in batch.iter_rows(named=True)])
        refused = [outcome for outcome in outcomes if outcome.status in {"rejected", "conflict"}]
        if refused:
            expected = f"rows that the log accepts, but it refused {len(refused):,} ({refused[0].reason or 'conflict'})"
            raise UserError(
                "data.events", project.config.data.events, expected, "correct the file, then recloop update"
            )
        stored += sum(outcome.status in {"accepted", "quarantined"} for outcome in outcomes)
    return stored
