"""``recloop quarantine``: rows that a person takes out of states and training, and brings back.

A row is never changed or deleted. Taking it out is a retraction with the rule ``quarantine``, bringing it back one with
the rule ``restored``; both have a seq of their own, so a state as of any seq stays the same for ever. They go through the
inbox of the control store: a running service numbers them within a second, without one this command does.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Final

import polars as pl

from recloop import conditions
from recloop.errors import Locked, Refused, UserError
from recloop.json_object import JsonTree
from recloop.monitoring.report import stamp
from recloop.project import Project
from recloop.records import EVENT_SCHEMA, EVENT_TYPE, ITEM_ID, RULE, SECOND, SEQ, TIMESTAMP, USER_ID, VALUE, iso, now
from recloop.storage import EventLog, Retraction, inbox, locks
from recloop.storage.archive import Archive
from recloop.storage.control import ControlStore
from recloop.storage.event_log import RESTORED, out_at

QUARANTINE: Final = "quarantine"
"""The rule of a row that a person took out."""
SAMPLES: Final = 5
WAIT_SECONDS: Final = 5.0
"""How long a running service is given to take the rows up before the command says that they wait."""


@dataclass(frozen=True)
class Quarantined:
    """What one call found and did: the keys of ``recloop quarantine --json``.

    Attributes:
        matched: Believed rows that meet the condition.
        already: Those of them that are out already (with ``restore``: that no quarantine holds).
        new: Those that were taken out, or brought back, now.
        rows: All believed rows that are in.
        share: ``new`` / ``rows``.
        users: Users of the new rows.
        user_share: ``users`` / all users with a believed row that is in.
        types: New rows by event type.
        samples: The first new rows.
        waiting: Handed to a running service that has not taken them up yet.
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
    """Take the believed rows that meet a condition out of states and training, or bring them back.

    Args:
        where: A condition over the fields of an event.
        reason: Why; kept with the rows.
        start, end: ISO 8601; only rows with ``start`` <= timestamp < ``end``; empty: no limit.
        restore: Bring back what a quarantine took out.
        force: Take out more than ``clean.max_removed`` of all rows.

    Raises:
        UserError: the condition or a stamp does not parse, or there is no reason.
        Refused: more than ``clean.max_removed`` of all rows meet the condition.
    """
    if not reason.strip():
        raise UserError("--reason", reason, "why these rows are taken out or brought back", '--reason "bot on 3 May"')
    condition = _condition(where, start, end)
    control = project.open_control()
    archive = project.open_archive()
    with project.open_log() as log:
        past = [*log.retractions(), *(one.retraction for one in control.handed())]
        matched, rows, users = _matching(archive, log, condition, out_at(past))
    held = {row.of_seq for row in past if row.rule == QUARANTINE} if restore else set()
    out = pl.Series(sorted(out_at(past) & held if restore else out_at(past)), dtype=pl.Int64)
    is_out = pl.col(SEQ).is_in(out.implode())
    chosen = matched.filter(is_out if restore else ~is_out)
    share = len(chosen) / max(1, rows)
    limit = project.config.clean.max_removed
    if not restore and not force and share > limit:
        counts = f"{len(chosen):,} of {rows:,} rows"
        raise Refused(
            "share of all rows", f"{share:.4f}", limit, f"{counts} (clean.max_removed); take them out: --force"
        )
    control.hand(
        [Retraction(seq, RESTORED if restore else QUARANTINE) for seq in chosen[SEQ]],
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
        users=chosen[USER_ID].n_unique(),
        user_share=chosen[USER_ID].n_unique() / max(1, users),
        types=dict(sorted(chosen[EVENT_TYPE].value_counts().iter_rows())),
        samples=[_sample(row) for row in chosen.head(SAMPLES).iter_rows(named=True)],
        waiting=_take_up(project, control) if len(chosen) else 0,
    )


def _condition(where: str, start: str, end: str) -> pl.Expr:
    """Rows that meet the condition, inside the time."""
    condition = conditions.parse(where, EVENT_SCHEMA, "--where").expr
    since, until = stamp("--from", start), stamp("--to", end)
    if since is not None:
        condition &= pl.col(TIMESTAMP) >= since
    if until is not None:
        condition &= pl.col(TIMESTAMP) < until
    return condition


def _matching(archive: Archive, log: EventLog, condition: pl.Expr, out: set[int]) -> tuple[pl.DataFrame, int, int]:
    """The believed rows that meet a condition, archived or not; how many rows and users are in besides."""
    fresh = log.events(after=archive.watermark).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
    matched = pl.concat([archive.matching(condition), fresh.filter(condition)])
    inside = ~pl.col(SEQ).is_in(pl.Series(sorted(out), dtype=pl.Int64).implode())
    rows = archive.count(inside) + len(fresh.filter(inside))
    users = pl.concat([archive.users_of(inside), fresh.filter(inside)[USER_ID].unique()]).n_unique()
    return matched, rows, users


def _sample(row: JsonTree) -> JsonTree:
    """A row as a person reads it."""
    return {
        SEQ: row[SEQ],
        USER_ID: row[USER_ID],
        ITEM_ID: row[ITEM_ID],
        EVENT_TYPE: row[EVENT_TYPE],
        TIMESTAMP: iso(row[TIMESTAMP] // SECOND * SECOND),
        VALUE: row[VALUE],
    }


def _take_up(project: Project, control: ControlStore) -> int:
    """Number what was handed where no service runs, else wait for it; how many rows still wait."""
    try:
        with locks.writer_lock(project.root, "quarantine"), project.open_log(write=True) as log:
            inbox.apply_inbox(control, log)
        return 0
    except Locked:
        deadline = time.monotonic() + WAIT_SECONDS
        while (waiting := len(control.handed())) and time.monotonic() < deadline:
            time.sleep(0.1)
        return waiting
