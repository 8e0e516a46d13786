"""Report of the label rules in ``[events]``: events, weight and examples per rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import polars as pl
import rich.console
import rich.table
import rich.text

from recloop.data.clean import clean, describe_row
from recloop.data.entities import read_project
from recloop.features.dwell import DWELL, DWELL_PCT
from recloop.features.labels import CLASS_NAMES, EventLabeler
from recloop.files import JsonTree
from recloop.project import Project
from recloop.records import EVENT_TYPE, ITEM_ID, SEQ, TIMESTAMP, USER_ID, VALUE, hash_unit_interval, iso

N_EXAMPLES: Final = 5


@dataclass(frozen=True)
class LabelCount:
    """Label rule with its events; ``examples`` are sampled by a hash of their seq."""

    rule: str
    key: str
    means: str
    weight: float
    events: int
    examples: list[JsonTree]
    lines: list[str]


@dataclass(frozen=True)
class RuleCount:
    """Number of rows that one rule decides; ``weight`` is signed.

    An event type without a rule has a separate record.
    """

    rule: str
    means: str
    weight: float
    events: int

    def __str__(self) -> str:
        return f"{self.rule}: {self.means}, weight {self.weight:+g}, {self.events:,} rows"


@dataclass(frozen=True)
class RuleReport:
    """Rules in evaluation order, event types without a rule, and warnings."""

    rules: list[LabelCount]
    unnamed: dict[str, int]
    dwells: dict[str, int]
    warnings: list[str]

    def to_json(self) -> JsonTree:
        """JSON object that ``doctor --signals`` adds to the report.

        Keys: ``signals``, ``unnamed``, ``dwells``, ``signal_warnings``.
        """
        rules = [{name: value for name, value in vars(rule).items() if name != "lines"} for rule in self.rules]
        return {
            "signals": rules, "unnamed": self.unnamed, "dwells": self.dwells, "signal_warnings": self.warnings,
        }  # fmt: skip


def examine_signals(project: Project) -> RuleReport:
    """Apply the rules of a project to every valid row of its log."""
    config = project.config
    raw, items, users = read_project(project)
    after = sum(len(table.frame) for table in (items, users) if table is not None)
    cleaned = clean(raw.frame, config, after, None if items is None else items.frame)
    signal = EventLabeler(config.events, config.clean, cleaned.dwell)
    rows = signal.explain(cleaned.valid_rows)
    counts = dict(rows.group_by("by").len().iter_rows())
    label_counts = []
    for index, rule in enumerate(signal.rules):
        sample = _spread(rows.filter(pl.col("by") == index)) if index in counts else rows.clear()
        label_counts.append(
            LabelCount(
                rule=rule.text, key=rule.key, means=rule.means, weight=rule.label * rule.weight,
                events=counts.get(index, 0), examples=[_plain(row) for row in sample.iter_rows(named=True)],
                lines=[describe_row(row) for row in sample.iter_rows(named=True)],
            )
        )  # fmt: skip
    unmatched = (
        rows.filter(pl.col("by").is_null()).group_by(EVENT_TYPE).len().sort("len", EVENT_TYPE, descending=[True, False])
    )
    unnamed = {str(name): int(size) for name, size in unmatched.iter_rows()}
    dwells = rows.filter(pl.col(EVENT_TYPE) == DWELL)
    banded = int(dwells[DWELL_PCT].is_not_null().sum())
    bands = 0 if cleaned.dwell is None else len(cleaned.dwell.values)
    warnings = [
        f"{label_count.rule!r} ({label_count.key}) matches no event of this log: the type is misspelled, or an earlier rule matches first"
        for label_count in label_counts
        if not label_count.events and label_count.key.startswith("events.weights.")
    ]
    warnings += [
        f"event type {name!r} ({size:,} rows) is not in a rule of [events] and is neutral"
        for name, size in unnamed.items()
    ]
    if len(dwells) > banded:
        warnings.append(
            f"{len(dwells) - banded:,} of {len(dwells):,} dwells are neutral: their item has no attribute duration or "
            "category with 30 dwells before the cut"
        )
    return RuleReport(label_counts, unnamed, {"events": len(dwells), "compared": banded, "bands": bands}, warnings)


def count_by_rule(signal: EventLabeler, rows: pl.DataFrame) -> list[RuleCount]:
    """Count the rows that each rule decides; types without a rule come last."""
    explained = signal.explain(rows)
    counts = dict(explained.group_by("by").len().iter_rows())
    rule_counts = [
        RuleCount(rule.text, rule.means, rule.label * rule.weight, counts[index])
        for index, rule in enumerate(signal.rules)
        if index in counts
    ]
    unmatched = explained.filter(pl.col("by").is_null()).group_by(EVENT_TYPE).len().sort(EVENT_TYPE)
    return rule_counts + [
        RuleCount(event_type, CLASS_NAMES[0], 0.0, size) for event_type, size in unmatched.iter_rows()
    ]


def _spread(rows: pl.DataFrame) -> pl.DataFrame:
    """Deterministic sample of five rows, spread over the log; few rows are hashed."""
    candidates = rows.gather_every(max(1, len(rows) // (20 * N_EXAMPLES)))
    hashes = pl.Series([hash_unit_interval("signals", str(seq)) for seq in candidates[SEQ]], dtype=pl.Float64)
    return candidates.with_columns(hashes.alias("share")).sort("share").head(N_EXAMPLES).sort(SEQ)


def _plain(row: JsonTree) -> JsonTree:
    names = (SEQ, USER_ID, ITEM_ID, EVENT_TYPE, VALUE, DWELL_PCT)
    return {name: row[name] for name in names if row[name] is not None} | {TIMESTAMP: iso(row[TIMESTAMP])}


def render(signals: RuleReport) -> rich.console.Group:
    """Render the rules with their events for the terminal."""
    table = rich.table.Table(box=None, pad_edge=False)
    table.add_column("rule", style="bold")
    table.add_column("means")
    table.add_column("weight", justify="right")
    table.add_column("events", justify="right")
    table.add_column("from", style="dim")
    for rule in signals.rules:
        table.add_row(
            rich.text.Text(rule.rule), rule.means, f"{rule.weight:+g}" if rule.weight else "", f"{rule.events:,}",
            "weights" if rule.key.startswith("events.weights.") else rule.key.removeprefix("events."),
        )  # fmt: skip
    blocks: list[Any] = [table]
    for rule in signals.rules:
        if rule.lines:
            blocks.append(rich.text.Text(f"\n{rule.rule}: {rule.means}", style="bold"))
            blocks += [rich.text.Text(line) for line in rule.lines]
    blocks += [rich.text.Text(f"! {warning}", style="yellow") for warning in signals.warnings]
    return rich.console.Group(*blocks)
