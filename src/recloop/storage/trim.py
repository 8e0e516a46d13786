"""Rows of log.db that the archive holds, deleted once each was found there with the same content."""

from __future__ import annotations

from typing import Final, NamedTuple

import polars as pl

from recloop.records import EVENT_SCHEMA, RULE, SEQ
from recloop.storage.archive import Archive
from recloop.storage.event_log import EventLog

BATCH: Final = 5_000
"""Rows of one transaction: a request that waits for the log waits no longer."""


class Trimmed(NamedTuple):
    """``deleted``: rows that the archive holds; ``kept``: rows up to its watermark that it does not hold as they are."""

    deleted: int
    kept: int


def trim(log: EventLog, archive: Archive, seconds: float, dry_run: bool = False) -> Trimmed:
    """Delete the events of the log that are archived and were received this long before its newest one.

    A row goes only where the archive has a row of the same seq whose content has the same hash. Health and the
    look-back of the rules read the newest days in the log; duplicates are found in the archive too.

    Args:
        log: Opened for writing, unless ``dry_run``.
        archive: With the watermark that every reader of this log has taken up.
        seconds: Age from which a row may go.
    """
    newest = log.newest_received()
    if newest is None:
        return Trimmed(0, 0)
    before, after, deleted, kept = newest - round(seconds * 1_000_000), 0, 0, 0
    while len(rows := log.old_events(after, archive.watermark, before, BATCH)):
        after = int(rows[SEQ][-1])
        held = found_in(archive, rows)
        deleted, kept = deleted + len(held), kept + len(rows) - len(held)
        if len(held) and not dry_run:
            log.delete_events(held)
    if deleted and not dry_run:
        log.give_back()
    return Trimmed(deleted, kept)


def found_in(archive: Archive, rows: pl.DataFrame) -> list[int]:
    """The seqs of the rows that the archive holds with the same content, by the hash of all columns."""
    named = pl.col(SEQ).is_between(int(rows[SEQ][0]), int(rows[SEQ][-1]))
    believed = archive.matching(named).with_columns(pl.lit(None, pl.String).alias(RULE))
    archived = pl.concat([believed, archive.quarantined(named)])
    mine, theirs = (
        frame.select(SEQ, frame.select(*EVENT_SCHEMA, RULE).hash_rows(0).alias("hash")) for frame in (rows, archived)
    )
    return mine.join(theirs, on=[SEQ, "hash"], how="semi")[SEQ].to_list()
