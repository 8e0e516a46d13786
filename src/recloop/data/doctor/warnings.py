"""Sentences of the doctor: warnings ask for an action, notes do not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from recloop.config import Config
from recloop.data.doctor.anomalies import min_heavy_rows
from recloop.data.doctor.checks import LogChecks
from recloop.data.doctor.id_checks import FORM_CAUSES, JoinShare
from recloop.data.entities import EntityTable
from recloop.data.log_counts import LogCounts
from recloop.data.read import RawEvents
from recloop.features.clock_rule import CLOCK
from recloop.records import GROUP_ID, ITEM_ID, USER_ID, iso

MAX_SHARED_STAMPS: Final = 0.1  # a larger share of rows with a shared stamp gives a warning
MIN_JOIN_SHARE: Final = 0.9  # of ids; a smaller share of a file's ids in the log gives a warning
MAX_REPEATED_IDS: Final = 0.1  # of a table's rows; a larger share looks like one row per attribute
N_NAMED: Final = 6  # ids in one sentence


def percent(share: float) -> str:
    """Format a share as per cent with one decimal."""
    return "under 0.1 %" if 0 < share < 0.001 else f"{share * 100:.1f} %"


def table_name(table: EntityTable) -> str:
    """Name of the first file of a table."""
    return table.sources[0].name if table.sources else "the posted rows"


@dataclass(frozen=True)
class CountedLog:
    """A log after reading, cleaning and counting.

    Attributes:
        removed: Rows by cleaning rule.
        counts: Counts of the valid rows.
        items, users: Tables of the project; None without one.
    """

    raw: RawEvents
    removed: Mapping[str, int]
    counts: LogCounts
    items: EntityTable | None
    users: EntityTable | None
    config: Config


def count_warnings(log: CountedLog) -> list[str]:
    """Warnings of reading and cleaning, in the order of the steps."""
    raw, counts, config = log.raw, log.counts, log.config
    warnings: list[str] = []
    if raw.rejects:
        reasons = Counter(row.reason for row in raw.rejects).most_common(3)
        listed = ", ".join(f"{reason} ({count:,})" for reason, count in reasons)
        warnings.append(f"{percent(len(raw.rejects) / raw.read)} of rows could not be read: {listed}")
    for table, id_column in ((log.items, ITEM_ID), (log.users, USER_ID)):
        if table is not None and table.rejects:
            warnings.append(f"{len(table.rejects):,} rows of {table.sources[0].name} without {id_column} were ignored")
        if table is not None and (n_repeated := len(table.frame) - table.frame[id_column].n_unique()):
            is_long = n_repeated > MAX_REPEATED_IDS * len(table.frame)
            hint = ": one row per attribute? Export one row per id" if is_long else ""
            name = table_name(table)
            warnings.append(f"{n_repeated:,} rows of {name} repeat an earlier {id_column}; the last one is used{hint}")
    if n_wrong := log.removed.get(CLOCK):
        end = "unknown" if counts.last is None else iso(counts.last)
        warnings.append(
            f"{n_wrong:,} rows are dated before 1970 or more than {config.clean.future} after the end of the log ({end}); "
            "the rule clock quarantines them"
        )
    if not counts.rows:
        return [*warnings, "no valid row is left"]
    warnings += _stamps(counts, config)
    warnings += _rows(counts, config)
    if log.items is not None:
        warnings += _items_outside_catalog(counts, log.items)
    return warnings


def count_notes(counts: LogCounts, config: Config) -> list[str]:
    """Facts of a log that are as they should be, or that no setting changes."""
    if not counts.rows:
        return []
    notes = []
    columns = config.data.columns
    guests = counts.guests
    if len(guests):
        rows = int(guests["rows"].sum())
        notes.append(
            f"{len(guests):,} guest baskets ({rows:,} rows, {percent(rows / counts.rows)}) have no user; they count "
            'for popularity and for what is bought together, never in a test; data.guests = "reject" leaves them out'
        )
    if columns.group_id and counts.shared:
        share = percent(counts.shared_share)
        notes.append(f"{share} of rows share their stamp with others: baskets, grouped by {columns.group_id}")
    per_user = counts.of_users["moments"]
    single = (per_user == 1).mean()
    if isinstance(single, float) and single >= 0.5 and len(per_user) > 1:
        is_temporal = config.split.protocol == "temporal"
        test = "tested without a history if it is after the cut" if is_temporal else "not tested"
        notes.append(f"{percent(single)} of users have only one moment, which is {test}")
    if counts.repeats == 0 and not config.split.filter_seen and counts.rows > 1:
        notes.append("no user repeats an item; split.filter_seen = true removes seen items from the lists")
    if not columns.event_id:
        notes.append("no event_id: an import cannot be repeated safely; set data.columns.event_id if a column has one")
    return notes


def _stamps(counts: LogCounts, config: Config) -> list[str]:
    warnings = []
    if not config.data.columns.group_id and counts.shared_share >= MAX_SHARED_STAMPS:
        warnings.append(
            f"{percent(counts.shared_share)} of rows share their stamp with others of the same user and count as one moment; "
            "if a column names the basket, set data.columns.group_id"
        )
    if len(reused := counts.reused):
        samples = ", ".join(repr(group) for group in reused[GROUP_ID].unique(maintain_order=True).head(3))
        warnings.append(
            f"{len(reused):,} groups ({config.data.columns.group_id}) span more than a day, such as {samples}: "
            "a reused group id starts a new moment"
        )
    if counts.resolution and config.clean.burst != "off":
        warnings.append(
            f'stamps have a resolution of one {counts.resolution}, too coarse for the burst rule; set clean.burst = "off"'
        )
    if counts.first is not None and counts.first == counts.last:
        warnings.append(f"all rows have one stamp, {iso(counts.first)}: rows cannot be ordered in time")
    return warnings


def _rows(counts: LogCounts, config: Config) -> list[str]:
    warnings = []
    n_users = len(counts.of_users)
    if not n_users:
        return ["all rows belong to guests: lists are not personal, and no user can be tested"]
    if n_users == 1:
        warnings.append("only one user: collaborative models cannot learn")
    if len(counts.items) == 1:
        warnings.append("only one item: a ranking needs at least two")
    warnings += [
        f"event type {name!r} ({rows:,} rows) is not in a rule of [events] and is neutral"
        for name, rows in list(counts.unnamed.items())[:10]
    ]
    if not counts.has_positive:
        warnings.append("no row is positive: see [events]")
    if counts.repeats >= 0.1 and config.split.filter_seen:
        warnings.append(
            f"{percent(counts.repeats)} of rows are repeats; split.filter_seen = true never recommends them"
        )
    return warnings


def heavy_user(counts: LogCounts, config: Config) -> list[str]:
    """Warning of the user with most rows, if it is heavy (`min_heavy_rows`)."""
    users = counts.of_users
    if not len(users):
        return []
    max_rows = int(users["rows"].max())  # type: ignore[arg-type]
    if max_rows < min_heavy_rows(users["rows"]):
        return []
    heaviest = users.filter(pl.col("rows") == max_rows)[USER_ID].sort()[0]
    return [_crawler_warning(heaviest, f"{percent(max_rows / counts.rows)} of all rows", config)]


def _crawler_warning(user_id: str, reasons: str, config: Config) -> str:
    condition = f"user_id <> '{user_id}'"
    keep = f"({config.clean.keep}) AND {condition}" if config.clean.keep else condition
    return f'user {user_id!r} has {reasons}: a checkout account, a test or a crawler? To leave it out: clean.keep = "{keep}"'


def _items_outside_catalog(counts: LogCounts, items: EntityTable) -> list[str]:
    missing = counts.items.join(items.frame.select(ITEM_ID), on=ITEM_ID, how="anti")
    if not len(missing):
        return []
    name = items.sources[0].name if items.sources else "the catalog"
    share = percent(int(missing["rows"].sum()) / counts.rows)
    return [f"{len(missing):,} items of the log ({share} of rows) are not in {name}"]


def check_warnings(
    checks: LogChecks, items: EntityTable | None, users: EntityTable | None, config: Config
) -> list[str]:
    """Warnings of the findings over the kept rows."""
    warnings = []
    if checks.outliers is not None:
        found = checks.outliers
        ends = [f"earliest {found.earliest[:10]}"] if found.earliest < found.first else []
        ends += [f"latest {found.latest[:10]}"] if found.latest > found.last else []
        warnings.append(
            f"{percent(found.share)} of rows lie in {found.first[:10]} .. {found.last[:10]}; {found.rows:,} rows lie far "
            f"outside ({', '.join(ends)}): wrong clocks, or data.time_unit is wrong"
        )
    if checks.missing_users:
        words = ", ".join(f"{word!r} ({rows:,})" for word, rows in list(checks.missing_users.items())[:N_NAMED])
        setting = json.dumps(list(checks.missing_users), ensure_ascii=False)
        warnings.append(f"user ids that mean no user: {words} rows; set data.missing_users = {setting}")
    warnings += [
        _crawler_warning(crawler.user_id, " and ".join(crawler.reasons), config)
        for crawler in checks.crawlers
        if crawler.user_id not in checks.missing_users
    ]
    if proposed := [item for item in checks.non_products if item.proposed]:
        named = ", ".join(f"{item.item_id!r} ({item.rows:,} rows)" for item in proposed[:N_NAMED])
        setting = json.dumps([item.item_id for item in proposed], ensure_ascii=False)
        warnings.append(f"probably not products: {named}; set clean.exclude_items = {setting}")
    if checks.spreadsheet_ids:
        named = ", ".join(f"{text!r} ({rows:,} rows)" for text, rows in list(checks.spreadsheet_ids.items())[:3])
        warnings.append(f"ids that a spreadsheet cut: {named}; several ids became one: export the column as text")
    for name, table in (("items", items), ("users", users)):
        join = checks.joins.get(name)
        if join is not None and table is not None and join.share < MIN_JOIN_SHARE:
            warnings.append(_join_warning(name, join, table_name(table)))
    if checks.tied.reveals_label and config.split.ties == "row":
        warnings.append(f'{_order_of_ties(checks)}; set split.ties = "moment"')
    return warnings


def _join_warning(name: str, join: JoinShare, file: str) -> str:
    text = f"{round(join.share * join.ids):,} of {join.ids:,} {name} of the log are in {file}"
    if not join.best:
        return f"{text}; check data.columns.{name[:-1]}_id and the file"
    cause = FORM_CAUSES[join.best.partition(":")[0]]
    fix = f'; set data.id_form = "{join.best}"' if join.best.partition(":")[0] in {"integer", "zeros"} else ""
    return f"{text}, {round(join.forms[join.best] * join.ids):,} if {join.best} is applied: {cause}{fix}"


def _order_of_ties(checks: LogChecks) -> str:
    first = max(checks.tied.heavier_first, 1 - checks.tied.heavier_first)
    end = "first" if checks.tied.heavier_first > 0.5 else "last"
    return (
        f"the file's order tells the label: of rows with one user and stamp, the heavier one is {end} in {percent(first)} of "
        f"{checks.tied.pairs:,} pairs"
    )


def check_notes(checks: LogChecks, config: Config) -> list[str]:
    """Facts of the findings that ask for no action."""
    notes = []
    if checks.tied.reveals_label and config.split.ties == "moment":
        notes.append(f"{_order_of_ties(checks)}; rows of one moment have no order in recloop")
    if checks.profile is not None and checks.profile.gaps and checks.profile.gaps[0].days >= 2:
        gap = checks.profile.gaps[0]
        notes.append(
            f"{checks.profile.empty_days:,} days without an event; the longest gap is {gap.first} .. {gap.last} "
            f"({gap.days:,} days)"
        )
    notes += [
        f"look at item {item.item_id!r} ({item.rows:,} rows): {item.reason}"
        for item in checks.non_products
        if not item.proposed
    ]
    return notes
