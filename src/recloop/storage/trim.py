"""Trimming of log.db: deletes old rows that the archive holds with equal content."""

from __future__ import annotations

from typing import Final, NamedTuple

import polars as pl

from recloop.records import EVENT_SCHEMA, RULE, SEQ
from recloop.storage.archive import Archive
from recloop.storage.event_log import EventLog

MAX_BATCH_ROWS: Final = 5_000
"""Rows per transaction, which bounds the time that requests wait for the log."""


class Trimmed(NamedTuple):
    """Rows ``deleted`` (archived) and ``kept`` (missing or different in the archive)."""

    deleted: int
    kept: int


def trim(log: EventLog, archive: Archive, seconds: float, dry_run: bool = False) -> Trimmed:
    """Delete archived events received at least ``seconds`` before the newest one.

    A row is deleted only if the archive has a row with the same seq and content hash. Health and the look-back of the
    rules read the newest days from the log; duplicates are also found in the archive.

    Args:
        log: Opened for writing, unless ``dry_run``.
        archive: Archive whose watermark every reader of this log already uses.
        seconds: Minimum age of a deleted row, relative to the newest one.
    """
    newest = log.newest_received()
    if newest is None:
        return Trimmed(0, 0)
    received_before = newest - round(seconds * 1_000_000)
    last_seq = 0
    deleted = 0
    kept = 0
    while len(rows := log.old_events(last_seq, archive.watermark, received_before, MAX_BATCH_ROWS)):
        last_seq = int(rows[SEQ][-1])
        archived = archived_seqs(archive, rows)
        deleted = deleted + len(archived)
        kept = kept + len(rows) - len(archived)
        if len(archived) and not dry_run:
            log.delete_events(archived)
    if deleted and not dry_run:
        log.release_space()
    return Trimmed(deleted, kept)


def archived_seqs(archive: Archive, rows: pl.DataFrame) -> list[int]:
    """Seqs of the rows that the archive holds with the same hash of all columns."""
    in_range = pl.col(SEQ).is_between(int(rows[SEQ][0]), int(rows[SEQ][-1]))
    valid = archive.matching(in_range).with_columns(pl.lit(None, pl.String).alias(RULE))
    archived = pl.concat([valid, archive.quarantined(in_range)])
    log_hashes, archive_hashes = (
        frame.select(SEQ, frame.select(*EVENT_SCHEMA, RULE).hash_rows(0).alias("hash")) for frame in (rows, archived)
    )
    return log_hashes.join(archive_hashes, on=[SEQ, "hash"], how="semi")[SEQ].to_list()
