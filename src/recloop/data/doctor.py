"""Quality report of a log for ``recloop doctor``: counts and warnings."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl
import rich.console
import rich.table
import rich.text

from recloop.config import Config
from recloop.data import rejected_rows
from recloop.data.clean import CleanResult, clean, nothing_left
from recloop.data.entities import EntityTable, read_items, read_users
from recloop.data.read import RawEvents, read_events
from recloop.data.repeats import repeat_share
from recloop.data.split import n_users, split
from recloop.errors import UserError
from recloop.features.clock_rule import CLOCK
from recloop.features.labels import EventLabeler, class_of, with_uses
from recloop.features.moments import reused_groups
from recloop.features.undo import without_undone
from recloop.files import JsonTree
from recloop.project import Project
from recloop.records import (
    DAY,
    EVENT_TYPE,
    GROUP_ID,
    ITEM_ID,
    LABEL,
    SECOND,
    STAMP,
    TIMESTAMP,
    USE,
    USER_ID,
    Use,
    guest_rows,
    iso,
    max_int,
)

MAX_SHARED_STAMPS: Final = 0.1  # a larger share of rows with a shared stamp gives a warning
MAX_USER_SHARE: Final = 0.05  # of all rows; above it a checkout or a crawler is likely
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

    ``users`` leaves out ``guests``, whose rows are in ``kept``. ``span`` holds the first and last stamp and the days between. ``repeats`` is
    `recloop.data.repeats.repeat_share`.
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
            "info": self.info,
            "event_types": {name: vars(facts) for name, facts in self.event_types.items()},
            "event_classes": dict(self.event_classes),
            "guests": vars(self.guests),
            "returns": vars(self.returns),
        }


def build_report(project: Project) -> Report:
    """Read and clean the log of a project and report on it.

    A rule that removes too many rows and a log that cannot be split are warnings here.
    """
    config = project.config
    raw, items, users = read_events(project), read_items(project), read_users(project)
    after = sum(len(table.frame) for table in (items, users) if table is not None)
    cleaned = clean(raw.frame, config, after, None if items is None else items.frame)
    log_report = report(raw, cleaned, items, users, config)
    unread = rejected_rows.excess(raw.rejects, raw.read, config.clean.max_rejected)
    stops = [str(error) for error in (unread, *cleaned.excessive) if error is not None]
    empty_error = nothing_left(cleaned)
    try:
        split(cleaned.valid_rows, config.split)
    except UserError as error:
        stops.append(str(empty_error or error))
    if sqlite3.sqlite_version_info < MIN_SQLITE_VERSION:
        stops.append(
            f"SQLite {sqlite3.sqlite_version}: before 3.51.3 two writers can corrupt a database; recloop uses one writer"
        )
    return Report(**{**vars(log_report), "warnings": (*stops, *log_report.warnings)})


def report(
    raw: RawEvents, cleaned: CleanResult, items: EntityTable | None, users: EntityTable | None, config: Config
) -> Report:
    """Build the report of a cleaned log."""
    valid_rows = cleaned.valid_rows
    first, last = valid_rows[TIMESTAMP].min(), valid_rows[TIMESTAMP].max()
    span = Span(None, None, 0.0)
    if isinstance(first, int) and isinstance(last, int):
        span = Span(iso(first), iso(last), round((last - first) / DAY, 2))
    type_rows = (
        valid_rows.group_by(EVENT_TYPE)
        .agg(pl.len().alias("rows"), pl.col(LABEL).min().alias("low"), pl.col(LABEL).max().alias("high"))
        .sort(["rows", EVENT_TYPE], descending=[True, False])
    )
    repeats = repeat_share(valid_rows)
    return Report(
        read=raw.read,
        kept=len(valid_rows),
        removed=({"where": raw.left_out} if raw.left_out else {}) | cleaned.removed,
        rejected=len(raw.rejects),
        users=n_users(valid_rows),
        items=valid_rows[ITEM_ID].n_unique(),
        moments=valid_rows.select(pl.struct(USER_ID, STAMP).n_unique()).item() if len(valid_rows) else 0,
        span=span,
        repeats=round(repeats, 4),
        warnings=tuple(_warnings(raw, cleaned, items, users, config, repeats)),
        info=raw.info,
        event_types={
            name: TypeRows(rows, low if low == high else "mixed") for name, rows, low, high in type_rows.iter_rows()
        },
        event_classes=_classes(valid_rows),
        guests=_guests(valid_rows),
        returns=_returns(valid_rows),
    )


def _guests(valid_rows: pl.DataFrame) -> GuestCounts:
    rows = valid_rows.filter(guest_rows())
    return GuestCounts(rows[USER_ID].n_unique(), len(rows))


def _returns(valid_rows: pl.DataFrame) -> ReturnCounts:
    n_returns = int((valid_rows[USE] == Use.UNDO).sum())
    if not n_returns:
        return ReturnCounts()
    uses = pl.DataFrame({"before": valid_rows[USE], "after": without_undone(valid_rows)[USE]})
    is_undone = pl.col("before").is_in([int(Use.TARGET), int(Use.INPUT), int(Use.NEGATIVE)]) & (pl.col("after") == 0)
    return ReturnCounts(n_returns, len(uses.filter(is_undone)))


def _classes(valid_rows: pl.DataFrame) -> dict[str, str]:
    """Class of each event type's rows; ``by condition`` if they differ."""
    classes: dict[str, str] = {}
    for name, use, label in with_uses(valid_rows).select(EVENT_TYPE, USE, LABEL).unique().iter_rows():
        class_name = class_of(use, label)
        classes[name] = class_name if classes.setdefault(name, class_name) == class_name else "by condition"
    return classes


def _warnings(
    raw: RawEvents,
    cleaned: CleanResult,
    items: EntityTable | None,
    users: EntityTable | None,
    config: Config,
    repeats: float,
) -> list[str]:
    valid_rows = cleaned.valid_rows
    columns = config.data.columns
    warnings: list[str] = []
    if raw.rejects:
        reasons = Counter(row.reason for row in raw.rejects).most_common(3)
        listed = ", ".join(f"{reason} ({count:,})" for reason, count in reasons)
        warnings.append(f"{_percent(len(raw.rejects) / raw.read)} of rows could not be read: {listed}")
    for table, id_column in ((items, ITEM_ID), (users, USER_ID)):
        if table is not None and table.rejects:
            warnings.append(f"{len(table.rejects):,} rows of {table.sources[0].name} without {id_column} were ignored")
        if table is not None and (n_repeated := len(table.frame) - table.frame[id_column].n_unique()):
            file = table.sources[0].name if table.sources else "the posted rows"
            warnings.append(f"{n_repeated:,} rows of {file} repeat an earlier {id_column}; the last one is used")
    if n_wrong := cleaned.removed.get(CLOCK):
        end = iso(max_int(valid_rows[TIMESTAMP])) if len(valid_rows) else "unknown"
        warnings.append(
            f"{n_wrong:,} rows are dated before 1970 or more than {config.clean.future} after the end of the log ({end}); "
            "the rule clock quarantines them"
        )
    if not len(valid_rows):
        return [*warnings, "no valid row is left"]
    warnings += _stamps(valid_rows, config)
    warnings += _rows(valid_rows, config, repeats)
    if items is not None:
        warnings += _items_outside_catalog(valid_rows, items)
    if not columns.event_id:
        warnings.append(
            "no event_id: an import cannot be repeated safely; set data.columns.event_id if a column has one"
        )
    return warnings


def _stamps(valid_rows: pl.DataFrame, config: Config) -> list[str]:
    warnings = []
    shared_share = valid_rows.select(pl.struct(USER_ID, TIMESTAMP).is_duplicated().mean()).item()
    grouped = config.data.columns.group_id
    if grouped and shared_share > 0:
        warnings.append(
            f"{_percent(shared_share)} of rows share their stamp with others: baskets, grouped by {grouped}"
        )
    elif shared_share >= MAX_SHARED_STAMPS:
        warnings.append(
            f"{_percent(shared_share)} of rows share their stamp with others of the same user and count as one moment; "
            "if a column names the basket, set data.columns.group_id"
        )
    if len(reused := reused_groups(valid_rows)):
        samples = ", ".join(repr(group) for group in reused[GROUP_ID].unique(maintain_order=True).head(3))
        warnings.append(
            f"{len(reused):,} groups ({config.data.columns.group_id}) span more than a day, such as {samples}: "
            "a reused group id starts a new moment"
        )
    coarse = timestamp_resolution(valid_rows[TIMESTAMP])
    if coarse and config.clean.burst != "off":
        warnings.append(
            f'stamps have a resolution of one {coarse}, too coarse for the burst rule; set clean.burst = "off"'
        )
    if valid_rows[TIMESTAMP].n_unique() == 1:
        warnings.append(
            f"all rows have one stamp, {iso(int(valid_rows[TIMESTAMP][0]))}: rows cannot be ordered in time"
        )
    return warnings


def timestamp_resolution(stamps: pl.Series) -> str:
    """Resolution of stamps: ``day``, ``hour``, ``minute``, or "" for seconds or finer."""
    for name, seconds in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        if (
            len(stamps)
            and (stamps % (seconds * SECOND) == stamps[0] % (seconds * SECOND)).all()
            and stamps.n_unique() > 1
        ):
            return name
    return ""


def _rows(valid_rows: pl.DataFrame, config: Config, repeats: float) -> list[str]:
    warnings = []
    size = len(valid_rows)
    of_users = valid_rows.filter(~guest_rows())
    if len(of_users) < size:
        guests = _guests(valid_rows)
        warnings.append(
            f"{guests.baskets:,} guest baskets ({guests.rows:,} rows, {_percent(guests.rows / size)}) have no user; they count "
            'for popularity and for what is bought together, never in a test; data.guests = "reject" leaves them out'
        )
    if not len(of_users):
        return [*warnings, "every row is a guest's: lists cannot be personal and there is no test"]
    if of_users[USER_ID].n_unique() == 1:
        warnings.append("only one user: collaborative models cannot learn")
    if valid_rows[ITEM_ID].n_unique() == 1:
        warnings.append("only one item: a ranking needs at least two")
    per_user = of_users.group_by(USER_ID).len().sort("len", USER_ID, descending=[True, False])
    heaviest, max_rows = per_user.row(0)
    if len(per_user) >= 2 / MAX_USER_SHARE and max_rows > MAX_USER_SHARE * size:
        warnings.append(
            f"user {heaviest!r} has {_percent(max_rows / size)} of all rows; check for a checkout account, a test or a crawler"
        )
    single = of_users.group_by(USER_ID).agg(pl.col(STAMP).n_unique() == 1)[STAMP].mean()
    if isinstance(single, float) and single >= 0.5 and len(per_user) > 1:
        warnings.append(f"{_percent(single)} of users have only one moment and are not in the test")
    warnings += [
        f"event type {name!r} ({rows:,} rows) is not in a rule of [events] and is neutral"
        for name, rows in _unnamed(valid_rows, config)
    ]
    if not (valid_rows[LABEL] > 0).any():
        warnings.append("no row is positive: see [events]")
    if repeats >= 0.1 and config.split.filter_seen:
        warnings.append(f"{_percent(repeats)} of rows are repeats; split.filter_seen = true never recommends them")
    if repeats == 0 and not config.split.filter_seen and size > 1:
        warnings.append("no user repeats an item; split.filter_seen = true removes seen items from the lists")
    return warnings


def _unnamed(valid_rows: pl.DataFrame, config: Config) -> list[tuple[str, int]]:
    """Event types without a rule; their rows are neutral."""
    unmatched = EventLabeler(config.events, config.clean).explain(valid_rows).filter(pl.col("by").is_null())
    counts = unmatched.group_by(EVENT_TYPE).len().sort("len", EVENT_TYPE, descending=[True, False])
    return [(str(name), int(rows)) for name, rows in counts.head(10).iter_rows()]


def _items_outside_catalog(valid_rows: pl.DataFrame, items: EntityTable) -> list[str]:
    item_ids = items.frame[ITEM_ID].unique()
    missing_share = valid_rows.select((~pl.col(ITEM_ID).is_in(item_ids.implode())).mean()).item()
    if missing_share:
        n_missing = valid_rows.filter(~pl.col(ITEM_ID).is_in(item_ids.implode()))[ITEM_ID].n_unique()
        return [
            f"{n_missing:,} items of the log ({_percent(missing_share)} of rows) are not in {items.sources[0].name if items.sources else 'the catalog'}"
        ]
    return []


def _percent(share: float) -> str:
    return "under 0.1 %" if 0 < share < 0.001 else f"{share * 100:.1f} %"


def render(log_report: Report) -> rich.console.Group:
    """Render a report for the terminal."""
    table = rich.table.Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("read", f"{log_report.read:,}", "rows")
    table.add_row("kept", f"{log_report.kept:,}", "")
    for rule, rows in log_report.removed.items():
        table.add_row("removed", f"{rows:,}", f"by {rule}")
    if log_report.returns.rows:
        returns = log_report.returns
        table.add_row("returns", f"{returns.rows:,}", f"of the kept rows; they undo {returns.undone:,} others")
    table.add_row("rejected", f"{log_report.rejected:,}", "could not be read" if log_report.rejected else "")
    table.add_row("users", f"{log_report.users:,}", "")
    if log_report.guests.rows:
        table.add_row(
            "guests", f"{log_report.guests.baskets:,}", f"baskets without a user ({log_report.guests.rows:,} rows)"
        )
    table.add_row("items", f"{log_report.items:,}", "")
    table.add_row("moments", f"{log_report.moments:,}", "rows of one user at one time")
    table.add_row("span", f"{log_report.span.days:,.0f} days", f"{log_report.span.first} .. {log_report.span.last}")
    table.add_row("repeats", _percent(log_report.repeats), "of positive acts: the user had the item before")
    if len(log_report.event_types) > 1:
        for name, facts in log_report.event_types.items():
            table.add_row("type", f"{facts.rows:,}", f"{name}: {log_report.event_classes[name]}")
    lines: Sequence[Any] = [rich.text.Text(log_report.info), table]
    warnings = [rich.text.Text(f"! {warning}", style="yellow") for warning in log_report.warnings]
    return rich.console.Group(*lines, *warnings)
