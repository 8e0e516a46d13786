"""Evaluation table: means over users with paired intervals, as JSON and text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from recloop.errors import UserError
from recloop.evaluation import bootstrap, metrics, notebook
from recloop.evaluation.cold_items import ColdItemsResult
from recloop.evaluation.cold_items import lines as cold_items_lines
from recloop.evaluation.metrics import Floats
from recloop.evaluation.new_items import NewItemsResult
from recloop.evaluation.new_items import lines as new_items_lines
from recloop.evaluation.placements import PlacementResult
from recloop.evaluation.placements import lines as placement_lines
from recloop.evaluation.table_rows import (
    SLICES,
    BaselineComparison,
    EvaluationProtocol,
    Example,
    LengthBucket,
    QueryMetrics,
    TableRow,
)
from recloop.files import JsonTree, replace_file

MIN_LENGTHS: Final = (0, 1, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Lower bounds of the history-length buckets, in valid positives of the state."""
FILE_NAME: Final = "evaluation.json"


@dataclass(frozen=True)
class EvaluationTable:
    """Finished evaluation."""

    protocol: EvaluationProtocol
    rows: list[TableRow]
    compared: list[BaselineComparison]
    lengths: list[LengthBucket]
    examples: list[Example]
    repeats: bool
    native: str = "polars"  # library of the frame that `to_frame` returns
    placements: list[PlacementResult] = field(default_factory=list)
    new_items: list[NewItemsResult] = field(default_factory=list)
    cold_items: list[ColdItemsResult] = field(default_factory=list)

    @property
    def sentence(self) -> str:
        """Summarize the gain of networks and fusion over the best baseline."""
        name = f"NDCG@{self.protocol.k[0]}"
        if not self.compared:
            return f"This table has no baseline row, so it reports no {name} gain over one."
        base = self.compared[0].base
        value = {row.row.model: row.estimates["all", name].value for row in self.rows}[base]
        gains = [
            _describe_gain(comparison) for comparison in sorted(self.compared, key=lambda comparison: comparison.kind)
        ]
        prefix = "" if any(row.kind == "network" for row in self.compared) else "This table has no network; "
        users = self.protocol.users
        interval = "95 % CI, " if any(_has_interval(comparison) for comparison in self.compared) else ""
        basis = "one user: no interval" if users == 1 else f"{interval}paired over {users:,} users"
        text = f"{prefix}against {base}, the best baseline ({name} {value:.4f}), {'; '.join(gains)} ({basis})."
        return f"{text[0].upper()}{text[1:]}{self._zeros()}"

    def _zeros(self) -> str:
        """Explain a table with only zeros; empty for other tables."""
        values = [estimate.value for row in self.rows for estimate in row.estimates.values()]
        if any(value > 0 for value in values):
            return ""
        n_targets, n_unknown = self.protocol.wanted, self.protocol.unknown
        if n_unknown:
            return f" Every row is 0: {n_unknown:,} of {n_targets:,} targets were not in the catalog before the cut."
        return f" Every row is 0: no list holds one of the {n_targets:,} targets." if n_targets else ""

    def to_json(self) -> JsonTree:
        """Return the keys of the interface and the data of the report."""
        return {
            "protocol": self.protocol.to_json(),
            "rows": [row.to_json(self.repeats) for row in self.rows],
            "sentence": self.sentence,
            "placements": [result.to_json() for result in self.placements],
            "new_items": [result.to_json() for result in self.new_items],
            "cold_items": [result.to_json() for result in self.cold_items],
            "differences": [comparison.to_json() for comparison in self.compared],
            "lengths": [bucket.to_json() for bucket in self.lengths],
            "examples": [example.to_json() for example in self.examples],
        }

    def bundle_metrics(self) -> JsonTree:
        """Return the part that a bundle stores: protocol and rows.

        ``bundle`` and ``seconds`` are excluded, because a rerun would change them.
        """
        tree = self.to_json()
        rows = [
            {name: value for name, value in row.items() if name not in {"bundle", "seconds"}} for row in tree["rows"]
        ]
        return {"protocol": self.protocol.to_json(), "rows": rows, "sentence": self.sentence}

    def with_bundle(self, bundle: str) -> EvaluationTable:
        """Return the table with the id of a bundle that was evaluated in memory."""

        def id_of(bundle_id: str) -> str:
            return bundle_id or bundle

        return replace(
            self,
            rows=[replace(entry, row=replace(entry.row, bundle=id_of(entry.row.bundle))) for entry in self.rows],
            compared=[replace(entry, bundle=id_of(entry.bundle)) for entry in self.compared],
            placements=[replace(result, bundle=id_of(result.bundle)) for result in self.placements],
            new_items=[replace(result, bundle=id_of(result.bundle)) for result in self.new_items],
            cold_items=[replace(result, bundle=id_of(result.bundle)) for result in self.cold_items],
        )

    def to_frame(self, slice_name: str = "all", intervals: bool = False) -> Any:
        """Return one row per model, with a column per metric.

        Coverage, entropy, long-tail share and seconds follow.

        The frame is of the kind that `recloop.fit` got, otherwise Polars.

        Args:
            slice_name: ``all``, ``warm``, ``repeat`` or ``explore``.
            intervals: Add the ends of the 95 % CI as ``NDCG@10_low`` and ``NDCG@10_high``.

        Raises:
            UserError: the slice is unknown.
        """
        if slice_name not in SLICES:
            raise UserError("slice_name", slice_name, f"one of {', '.join(SLICES)}", 'slice_name="all"')
        return notebook.to_frame(self.rows, slice_name, intervals, self.native)

    def _repr_html_(self) -> str:
        """Render for a notebook: one row per model, best values bold, and the sentence."""
        return notebook.to_html(self.rows, f"{protocol_line(self.protocol)}. {self.sentence}")

    def save(self, folder: Path) -> Path:
        """Replace ``evaluation.json`` atomically and return its path."""
        target = folder / FILE_NAME
        replace_file(target, json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return target

    def render(self) -> Group:
        """Render the table for a terminal: one per k, best values bold, with intervals."""
        tables: list[Any] = [self._render_table(k) for k in self.protocol.k]
        k = self.protocol.k[0]
        lines = [
            *new_items_lines(self.new_items, k),
            *cold_items_lines(self.cold_items, k),
            *placement_lines(self.placements, k),
        ]
        return Group(*tables, Text(protocol_line(self.protocol), style="dim"), Text(self.sentence), *map(Text, lines))

    def _render_table(self, k: int) -> RichTable:
        table = RichTable(box=SIMPLE_HEAD, padding=0)
        table.add_column("model", no_wrap=True)
        columns = [("all", f"{name}@{k}", f"{name}@{k}") for name in metrics.RANKING]
        headline = f"NDCG@{k}"
        columns += [
            (slice_name, headline, slice_name) for slice_name in SLICES[1:] if self.repeats or slice_name == "warm"
        ]
        for slice_name, _, title in columns:
            table.add_column(title if slice_name == "all" else f"{title}\n{headline}", justify="right")
        for title in ("coverage", "entropy", "tail", "seconds"):
            table.add_column(title, justify="right")
        best = {
            (slice_name, name): max(round(row.estimates[slice_name, name].value, 4) for row in self.rows)
            for slice_name, name, _ in columns
        }
        for row in self.rows:
            cells = []
            for slice_name, name, _ in columns:
                estimate = row.estimates[slice_name, name]
                style = "bold" if round(estimate.value, 4) == best[slice_name, name] else ""
                cell = Text(number(estimate.value), style=style)
                if slice_name == "all":
                    cell.append(f"\n{number(estimate.low)}-{number(estimate.high)}", style="dim")
                cells.append(cell)
            metrics_row = row.row
            health = [
                number(value, 3) for value in (metrics_row.coverage, metrics_row.entropy, metrics_row.long_tail_share)
            ]
            head = Text(metrics_row.model)
            if metrics_row.trained is not None:
                head.append(f"\n{metrics_row.trained}", style="bold" if metrics_row.trained.note else "dim")
            table.add_row(head, *cells, *health, f"{metrics_row.seconds:.1f}")
        return table


def make_table(
    protocol: EvaluationProtocol,
    rows: Sequence[QueryMetrics],
    users: Sequence[str],
    positives: NDArray[np.int64],
    examples: Sequence[Example],
) -> EvaluationTable:
    """Average per user, then over users, with intervals by resampling users.

    All columns share the resampled users.

    Args:
        users: (Q,) user of each query.
        positives: (Q,) valid positives in the query's state.
    """
    names, code = np.unique(np.array(users, dtype=object), return_inverse=True)
    keys = list(rows[0].values)
    headline = ("all", f"NDCG@{protocol.k[0]}")
    query_bucket = np.searchsorted(np.array(MIN_LENGTHS), positives, side="right") - 1
    buckets = np.unique(query_bucket)
    columns = [row.values[key] for row in rows for key in keys]
    columns += [np.where(query_bucket == bucket, row.values[headline], np.nan) for row in rows for bucket in buckets]
    by_user = bootstrap.user_means(np.column_stack(columns), code, len(names))  # (U, C)
    means, samples = bootstrap.mean_over_users(by_user), bootstrap.resample(by_user, protocol.seed)
    several = (~np.isnan(by_user)).sum(axis=0) > 1  # one user has no interval
    samples = np.where(several, samples, np.nan)
    estimates = [bootstrap.estimate(float(means[c]), samples[:, c]) for c in range(len(columns))]
    table_rows = [
        TableRow(row, dict(zip(keys, estimates[r * len(keys) :], strict=False))) for r, row in enumerate(rows)
    ]
    start = len(rows) * len(keys)
    models = [row.model for row in rows]
    labels = [row.model if models.count(row.model) == 1 else f"{row.model} of {row.bundle}" for row in rows]
    lengths = [
        LengthBucket(
            first=MIN_LENGTHS[bucket],
            last=MIN_LENGTHS[bucket + 1] - 1 if bucket + 1 < len(MIN_LENGTHS) else None,
            moments=int((query_bucket == bucket).sum()),
            users=len(np.unique(code[query_bucket == bucket])),
            rows={label: estimates[start + r * len(buckets) + h] for r, label in enumerate(labels)},
        )
        for h, bucket in enumerate(buckets)
    ]
    headline_columns = [r * len(keys) + keys.index(headline) for r in range(len(rows))]
    compared = _compare(rows, labels, by_user[:, headline_columns], protocol.seed)
    repeats = not np.isnan(rows[0].values["repeat", headline[1]]).all()
    return EvaluationTable(protocol, table_rows, compared, lengths, list(examples), repeats)


def _compare(
    rows: Sequence[QueryMetrics], labels: Sequence[str], headline: Floats, seed: int
) -> list[BaselineComparison]:
    """Compare network and served rows with the best baseline by mean ``headline``."""
    baselines = [r for r, row in enumerate(rows) if row.kind == "baseline"]
    if not baselines:
        return []
    means = bootstrap.mean_over_users(headline)
    base = max(baselines, key=lambda r: float(means[r]))
    others = [r for r in range(len(rows)) if r not in baselines]
    differences = [bootstrap.difference(headline[:, r], headline[:, base], seed) for r in others]
    adjusted = bootstrap.holm([difference.p for difference in differences])
    return [
        BaselineComparison(
            labels[r], rows[r].model, rows[r].bundle, rows[r].kind, rows[base].model, difference, round(p, 6)
        )
        for r, difference, p in zip(others, differences, adjusted, strict=True)
    ]


def _has_interval(comparison: BaselineComparison) -> bool:
    """True if a difference has an interval.

    One user, or users without a difference, have none.
    """
    estimate = comparison.difference.absolute
    return not np.isnan(estimate.low) and estimate.low != estimate.high


def _describe_gain(comparison: BaselineComparison) -> str:
    estimate, relative = comparison.difference.absolute, comparison.difference.relative
    verb = {"more": "adds", "less": "loses", "inconclusive": "is inconclusive:"}[comparison.difference.verdict]
    size = estimate.value if comparison.difference.verdict != "less" else -estimate.value
    share = "" if np.isnan(relative.value) else f", {relative.value:+.1%}"
    subject = (
        f"{comparison.label} alone"
        if comparison.kind == "network"
        else comparison.label.replace("served", "the list as served", 1)
    )
    if not _has_interval(comparison):
        return f"{subject}: difference {estimate.value:+.4f}{share}"
    return (
        f"{subject} {verb} {size:{'+' if comparison.difference.verdict == 'inconclusive' else ''}.4f} "
        f"({estimate.low:+.4f} to {estimate.high:+.4f}{share}, p = {comparison.p:.2g})"
    )


def protocol_line(protocol: EvaluationProtocol) -> str:
    """Describe the protocol in one line."""
    ranked = f"full ranking of {protocol.items:,} items"
    if protocol.candidates is not None:
        ranked = f"ranked among {protocol.candidates:,} given items of {protocol.items:,}"
    return (
        f"{protocol.name}, targets {protocol.targets}, {ranked}, "
        f"{protocol.moments:,} moments of {protocol.users:,} users, filter_seen {str(protocol.filter_seen).lower()}, "
        f"ties {protocol.ties}, k {', '.join(map(str, protocol.k))}, seed {protocol.seed}, "
        f"split {protocol.split_hash[:8]}, data {protocol.fingerprint[:8]}; "
        f"95 % CI over users, resampled {bootstrap.N_DRAWS:,} times"
    )


def number(value: float, digits: int = 4) -> str:
    """Format a share for a table: ``0.1234``, or a dash for NaN."""
    return "-" if np.isnan(value) else f"{value:.{digits}f}"
