"""Quality report of a log for ``recloop doctor``: counts, findings and warnings."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field, replace
from typing import Final

from recloop.data import rejected_rows
from recloop.data.clean import clean, nothing_left
from recloop.data.doctor.checks import LogChecks, run_checks
from recloop.data.doctor.warnings import (
    CountedLog,
    check_notes,
    check_warnings,
    count_notes,
    count_warnings,
    heavy_user,
)
from recloop.data.entities import read_project
from recloop.data.log_counts import LogCounts
from recloop.data.split import split
from recloop.errors import UserError
from recloop.files import JsonTree
from recloop.project import Project
from recloop.records import DAY, EVENT_TYPE, iso

MIN_SQLITE_VERSION: Final = (3, 51, 3)


@dataclass(frozen=True)
class Span:
    """First and last stamp of a log in ISO 8601, and the days between.

    Both stamps are None without rows.
    """

    first: str | None
    last: str | None
    days: float


@dataclass(frozen=True)
class TypeRows:
    """Rows and label of one event type; the label is -1, 0, 1 or ``mixed``."""

    rows: int
    label: int | str


@dataclass(frozen=True)
class GuestCounts:
    """Guest baskets and their rows among the valid rows."""

    baskets: int = 0
    rows: int = 0


@dataclass(frozen=True)
class ReturnCounts:
    """Rows that undo earlier ones, and the rows that they undo."""

    rows: int = 0
    undone: int = 0


@dataclass(frozen=True)
class Report:
    """Numbers of a log: ``read = kept + sum(removed) + rejected``.

    ``users`` leaves out ``guests``, whose rows are in ``kept``. ``span`` holds the first and last stamp and the days
    between. ``repeats`` is `recloop.data.repeats.repeat_share`. ``warnings`` ask for an action, ``notes`` do not. ``checks`` holds the findings of
    `build_report`; None in the report of ``prepare``.
    """

    read: int
    kept: int
    removed: dict[str, int]
    rejected: int
    users: int
    items: int
    moments: int
    span: Span
    repeats: float
    warnings: tuple[str, ...]
    info: str = ""
    event_types: dict[str, TypeRows] = field(default_factory=dict)
    event_classes: dict[str, str] = field(default_factory=dict)
    guests: GuestCounts = GuestCounts()
    returns: ReturnCounts = ReturnCounts()
    notes: tuple[str, ...] = ()
    checks: LogChecks | None = None

    def to_json(self) -> JsonTree:
        """JSON object with the keys of ``recloop doctor --json``."""
        return {
            "read": self.read,
            "kept": self.kept,
            "removed": dict(self.removed),
            "rejected": self.rejected,
            "users": self.users,
            "items": self.items,
            "moments": self.moments,
            "span": vars(self.span),
            "repeats": self.repeats,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "info": self.info,
            "event_types": {name: vars(facts) for name, facts in self.event_types.items()},
            "event_classes": dict(self.event_classes),
            "guests": vars(self.guests),
            "returns": vars(self.returns),
            **({} if self.checks is None else self.checks.to_json()),
        }


def build_report(project: Project) -> Report:
    """Read and clean the log of a project and report on it.

    A rule that removes too many rows and a log that cannot be split are warnings here.
    """
    config = project.config
    raw, items, users = read_project(project)
    after = sum(len(table.frame) for table in (items, users) if table is not None)
    cleaned = clean(raw.frame, config, after, None if items is None else items.frame)
    valid_rows = cleaned.valid_rows
    counts = LogCounts.of(valid_rows, config)
    log_report = _report(CountedLog(raw, cleaned.removed, counts, items, users, config))
    unread = rejected_rows.excess(raw.rejects, raw.read, config.clean.max_rejected)
    stops = [str(error) for error in (unread, *cleaned.excessive) if error is not None]
    try:
        split(valid_rows, config.split)
    except UserError as error:
        stops.append(str(nothing_left(len(cleaned.valid_rows), cleaned.removed, cleaned.quarantine) or error))
    checks = run_checks(valid_rows, items, users, config)
    counted = log_report.warnings if unread is None else log_report.warnings[1:]  # the stop names the rejected rows
    warnings = (*stops, *counted, *check_warnings(checks, items, users, config))
    notes = (*log_report.notes, *check_notes(checks, config), *_sqlite_note())
    return replace(log_report, warnings=warnings, notes=notes, checks=checks)


def _sqlite_note() -> list[str]:
    if sqlite3.sqlite_version_info >= MIN_SQLITE_VERSION:
        return []
    return [
        f"SQLite {sqlite3.sqlite_version}: before 3.51.3 two writers can corrupt a database; recloop uses one writer"
    ]


def report(log: CountedLog) -> Report:
    """Build the report of a cleaned log without the checks of `build_report`."""
    counted = _report(log)
    return replace(counted, warnings=(*counted.warnings, *heavy_user(log.counts, log.config)))


def _report(log: CountedLog) -> Report:
    """Counts of a cleaned log, with their warnings and notes."""
    raw, counts = log.raw, log.counts
    span = Span(None, None, 0.0)
    if counts.first is not None and counts.last is not None:
        span = Span(iso(counts.first), iso(counts.last), round((counts.last - counts.first) / DAY, 2))
    types = counts.types.sort(["rows", EVENT_TYPE], descending=[True, False])
    guests = counts.guests
    return Report(
        read=raw.read,
        kept=counts.rows,
        removed=({"where": raw.left_out} if raw.left_out else {}) | dict(log.removed),
        rejected=len(raw.rejects),
        users=len(counts.of_users),
        items=len(counts.items),
        moments=counts.moments,
        span=span,
        repeats=round(counts.repeats, 4),
        warnings=tuple(count_warnings(log)),
        notes=tuple(count_notes(counts, log.config)),
        info=raw.info,
        event_types={
            name: TypeRows(rows, low if low == high else "mixed") for name, rows, low, high in types.iter_rows()
        },
        event_classes=counts.event_classes(),
        guests=GuestCounts(len(guests), int(guests["rows"].sum())),
        returns=ReturnCounts(counts.returns, counts.undone),
    )
