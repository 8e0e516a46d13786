"""Quarantine of rows, which excludes them from states and training.

A row is never changed or deleted. A quarantine is a retraction with the rule ``quarantine``; a restore is one with the
rule ``restored``. Both have a seq, so a state as of any seq never changes. They pass through the inbox of the control
store. A running service assigns their seqs within a second; without a service this command does.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Final

import polars as pl

from recloop.data.split import n_users
from recloop.errors import Locked, Refused, UserError
from recloop.features import conditions
from recloop.files import JsonTree
from recloop.project import Project
from recloop.records import (
    EVENT_SCHEMA,
    EVENT_TYPE,
    ITEM_ID,
    RULE,
    SECOND,
    SEQ,
    TIMESTAMP,
    USER_ID,
    VALUE,
    from_iso,
    iso,
    now,
)
from recloop.storage import EventLog, Retraction, inbox, locks
from recloop.storage.archive import Archive
from recloop.storage.control import ControlStore
from recloop.storage.retractions import RESTORED, retracted_at

QUARANTINE_RULE: Final = "quarantine"
"""Rule of a row that a person quarantined."""
MAX_SAMPLES: Final = 5
WAIT_SECONDS: Final = 5.0
"""Longest wait for a running service to apply the rows; then they are reported as waiting."""


@dataclass(frozen=True)
class Quarantined:
    """Result of one call, with the keys of ``recloop quarantine --json``.

    Attributes:
        matched: Valid rows that meet the condition.
        already: Matched rows that are already quarantined (with ``restore``: not quarantined).
        new: Rows that this call quarantined or restored.
        rows: All valid rows that are not quarantined.
        share: ``new`` / ``rows``.
        users: Users of the new rows.
        user_share: ``users`` / all users with a valid row that is not quarantined.
        types: New rows by event type.
        samples: The first new rows.
        waiting: Rows sent to a running service that has not applied them yet.
    """

    where: str
    restore: bool
    matched: int
    already: int
    new: int
    rows: int
    share: float
    users: int
    user_share: float
    types: dict[str, int]
    samples: list[JsonTree]
    waiting: int

    def to_json(self) -> JsonTree:
        return asdict(self)


def quarantine(
    project: Project,
    where: str,
    reason: str,
    start: str = "",
    end: str = "",
    restore: bool = False,
    force: bool = False,
) -> Quarantined:
    """Quarantine the valid rows that meet a condition, or restore them.

    Args:
        where: Condition over the fields of an event.
        reason: Reason, stored with the rows.
        start, end: ISO 8601; only rows with ``start`` <= timestamp < ``end``; empty for no limit.
        restore: Restore quarantined rows.
        force: Quarantine more than ``clean.max_removed`` of all rows.

    Raises:
        UserError: the condition or a timestamp is invalid, or the reason is empty.
        Refused: more than ``clean.max_removed`` of all rows meet the condition.
    """
    if not reason.strip():
        raise UserError("--reason", reason, "a reason for this quarantine or restore", '--reason "bot on 3 May"')
    condition = _condition(where, start, end)
    control = project.open_control()
    archive = project.open_archive()
    with project.open_log() as log:
        retractions = [*log.retractions(), *(entry.retraction for entry in control.pending())]
        matched, rows, users = _matching(archive, log, condition, retracted_at(retractions))
    quarantined_seqs = {row.retracted_seq for row in retractions if row.rule == QUARANTINE_RULE} if restore else set()
    excluded = pl.Series(
        sorted(retracted_at(retractions) & quarantined_seqs if restore else retracted_at(retractions)), dtype=pl.Int64
    )
    is_excluded = pl.col(SEQ).is_in(excluded.implode())
    chosen = matched.filter(is_excluded if restore else ~is_excluded)
    share = len(chosen) / max(1, rows)
    limit = project.config.clean.max_removed
    if not restore and not force and share > limit:
        counts = f"{len(chosen):,} of {rows:,} rows"
        raise Refused("share of all rows", f"{share:.4f}", limit, f"{counts} (clean.max_removed); to override: --force")
    control.submit(
        [Retraction(seq, RESTORED if restore else QUARANTINE_RULE) for seq in chosen[SEQ]],
        by="recloop quarantine", at=now(), reason=reason,
    )  # fmt: skip
    return Quarantined(
        where=where,
        restore=restore,
        matched=len(matched),
        already=len(matched) - len(chosen),
        new=len(chosen),
        rows=rows,
        share=share,
        users=n_users(chosen),
        user_share=n_users(chosen) / max(1, users),
        types=dict(sorted(chosen[EVENT_TYPE].value_counts().iter_rows())),
        samples=[_sample(row) for row in chosen.head(MAX_SAMPLES).iter_rows(named=True)],
        waiting=_apply_or_wait(project, control) if len(chosen) else 0,
    )


def _condition(where: str, start: str, end: str) -> pl.Expr:
    """Select the rows that meet the condition within the time range."""
    condition = conditions.parse(where, EVENT_SCHEMA, "--where").expr
    since = from_iso("--from", start, "recloop quarantine --from 2025-06-01")
    until = from_iso("--to", end, "recloop quarantine --to 2025-06-01")
    if since is not None:
        condition &= pl.col(TIMESTAMP) >= since
    if until is not None:
        condition &= pl.col(TIMESTAMP) < until
    return condition


def _matching(
    archive: Archive, log: EventLog, condition: pl.Expr, retracted: set[int]
) -> tuple[pl.DataFrame, int, int]:
    """Return valid rows that meet a condition; counts of all rows and users."""
    log_rows = log.events(after=archive.watermark).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
    matched = pl.concat([archive.matching(condition), log_rows.filter(condition)])
    valid = ~pl.col(SEQ).is_in(pl.Series(sorted(retracted), dtype=pl.Int64).implode())
    rows = archive.count(valid) + len(log_rows.filter(valid))
    users = pl.concat([archive.users_of(valid), log_rows.filter(valid)[USER_ID]]).to_frame(USER_ID)
    return matched, rows, n_users(users)


def _sample(row: JsonTree) -> JsonTree:
    """Format a row for display."""
    return {
        SEQ: row[SEQ],
        USER_ID: row[USER_ID],
        ITEM_ID: row[ITEM_ID],
        EVENT_TYPE: row[EVENT_TYPE],
        TIMESTAMP: iso(row[TIMESTAMP] // SECOND * SECOND),
        VALUE: row[VALUE],
    }


def _apply_or_wait(project: Project, control: ControlStore) -> int:
    """Apply pending rows or wait for the running service; return the waiting rows."""
    try:
        with locks.writer_lock(project.root, "quarantine"), project.open_log(write=True) as log:
            inbox.apply_inbox(control, log)
        return 0
    except Locked:
        deadline = time.monotonic() + WAIT_SECONDS
        while (waiting := len(control.pending())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return waiting
