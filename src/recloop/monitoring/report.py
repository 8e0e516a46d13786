"""HTML report: one self-contained page of the last evaluation and list health.

    recloop report --from 2025-06-01 --out june.html

The page loads nothing from other hosts, can be printed, follows the reader's dark mode, and is byte-identical for the
same evaluation, decisions and catalog.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recloop.features.value_text import display_name
from recloop.files import JsonTree, replace_file
from recloop.html import load_template
from recloop.manifest import Manifest
from recloop.monitoring import experiment
from recloop.monitoring.experiment_verdict import Verdict
from recloop.monitoring.summary import summarize
from recloop.project import Project
from recloop.records import ITEM_ID, LABEL, STAMP, from_iso, utc_minute

REPORT_FILE = "report.html"
RESULT_KEYS = ("entropy", "long_tail_share", "cold_coverage", "coverage", "requests", "events")
SHOWN_ITEMS = 8  # listed items per moment; the rest is counted

DEFINITIONS = {
    "events": "Valid events received in the window that name an answered request.",
    "requests": "Answered requests in the window. Shadow lists and replicas are not shown to users and do not count.",
    "slots": "Positions of the answered lists: n.",
    "entropy": "H / log2 N, at most 1: evenness of the slots over the N available items; "
    "H = -sum (n_i/n) log2 (n_i/n) + (d-1)/(2 n ln 2), d = distinct items shown (Miller-Madow).",
    "effective_items": "2^H: number of equally frequent items with the same entropy.",
    "coverage": "d / N: share of the available items that were shown.",
    "gini": "0 if all items are shown equally often, 1 if only one is. Items never shown are included.",
    "long_tail_share": "Share of slots with an item outside the fifth of items with most positive events in the 90 days "
    "before the cut.",
    "reference_tail_share": "The tail's share of the positive events of those 90 days.",
    "tail_ratio": "Long-tail share divided by the tail's share of events. Above 1, the tail is shown more often than it "
    "is chosen.",
    "new_item_share": "Share of slots with an item that had no positive event before the cut.",
    "novelty": "Mean over slots of -log2((c_i + 1) / (C + N)), c_i the item's events in the 90 days before the cut.",
    "cold_coverage": "Share of users with fewer than 5 positives at a request who had a personal list: at least half of "
    "its slots from model, neighbours, attributes or history.",
    "cold_users": "Distinct users with a request when they had fewer than 5 positives.",
}
TITLES = {
    "events": "events", "requests": "requests", "slots": "slots", "entropy": "entropy", "effective_items": "effective items",
    "coverage": "coverage", "gini": "Gini", "long_tail_share": "long-tail share", "reference_tail_share": "tail's share of events",
    "tail_ratio": "tail ratio", "new_item_share": "new items", "novelty": "novelty (bits)",
    "cold_coverage": "cold-start coverage", "cold_users": "cold users",
}  # fmt: skip
METRICS = {
    "Recall": "Share of all targets in the first K.",
    "NDCG": "Sum of 1/log2(rank + 1) over the targets in the first K, divided by its largest possible value.",
    "HR": "Share of moments with at least one target in the first K.",
    "MRR": "1 / rank of the first target; 0 without one in the first K.",
}
MARKERS = {
    "served": "o", "network": "s", "bought_before": "^", "covisitation": "D", "popular": "v", "fusion": "P",
    "buy_again": "<", "ease": "X", "item_knn": "p", "mf": "*",
}  # fmt: skip
"""Marker of each kind of row; the page has a color of the same name."""
COLORS = tuple(MARKERS)
LINES = ("-", "--", ":", "-.")
"""Lines of rows of one kind, such as two networks."""
INK = "#010203"
"""Placeholder colour, replaced by ``currentColor`` so that the plot follows dark mode."""


def write(project: Project, start: str = "", end: str = "", file: str = "") -> JsonTree:
    """Write the report of a project; return the keys of ``recloop report --json``.

    Args:
        start, end: ISO 8601; decisions from ``start`` to ``end``, both inclusive; empty for all.
        file: Output file; empty for ``reports/report.html``.

    Raises:
        UserError: no bundle is live yet, or a timestamp is invalid.
    """
    since = from_iso("--from", start, "recloop report --from 2025-06-01")
    until = from_iso("--to", end, "recloop report --to 2025-06-01")
    summary = summarize(project, since, until, learned=_learned(project))
    naming = project.config.data.columns.name

    def name(item_id: str) -> str:
        item = summary.catalogue.get(item_id)
        return display_name(naming, item.attributes if item else {}, item_id)

    running, _ = experiment.current_verdict(project)
    html = render(
        _evaluation(project),
        summary.numbers,
        summary.bundle.manifest,
        name,
        _window(summary.first, summary.last),
        summary.proven,
        running,
    )
    target = Path(file) if file else project.reports / REPORT_FILE
    replace_file(target, html)
    return {
        "path": str(target),
        **{key: summary.numbers["whole"][key] for key in RESULT_KEYS},
        "verify": summary.proven,
    }


def render(
    evaluation: Mapping[str, Any] | None,
    numbers: Mapping[str, Any],
    manifest: Manifest,
    name: Callable[[str], str],
    window: str,
    proven: Mapping[str, int] | None = None,
    tried: Verdict | None = None,
) -> str:
    """Render the page.

    Args:
        evaluation: Content of ``evaluation.json``; None if missing.
        numbers: Result of `recloop.monitoring.health.health`.
        manifest: Manifest of the live bundle.
        name: Returns the display name of an item_id.
        window: Period of the decisions, as text.
        proven: Last `recloop verify`; None if it never ran.
        tried: Running experiment; None without one.
    """
    filters = {"share": share, "utc_minute": utc_minute, "amount": amount}
    page = load_template(Path(__file__).parent / REPORT_FILE, filters)
    return page.render(
        evaluation=evaluation,
        tables=[] if evaluation is None else _tables(evaluation),
        plot=None if evaluation is None or not evaluation["lengths"] else plot(evaluation["lengths"]),
        evaluated=[] if evaluation is None else evaluated(evaluation),
        numbers=numbers,
        manifest=manifest,
        name=name,
        window=window,
        proven=proven,
        tried=tried,
        definitions=DEFINITIONS,
        titles=TITLES,
        metrics=METRICS,
        shown_items=SHOWN_ITEMS,
    )


def evaluated(evaluation: Mapping[str, Any]) -> list[str]:
    """List the bundles of the evaluation, in row order."""
    return list(dict.fromkeys(row["bundle"] for row in evaluation["rows"] if row["bundle"]))


def plot(lengths: Sequence[Mapping[str, Any]]) -> Markup:
    """Plot NDCG by history length with 95 % CI, one line per row, as SVG."""
    rows = list(lengths[0]["rows"])
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "recloop",
        "font.family": "sans-serif",
        "font.size": 10,
    }
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        kinds = [_kind(row) for row in rows]
        for number, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
            look = _Look(kind, LINES[kinds[:number].count(kind) % len(LINES)], (number - (len(rows) - 1) / 2) * 0.12)
            _draw_row(axes, [bucket["rows"][row] for bucket in lengths], row, look)
        axes.set_xticks(range(len(lengths)), [f"{_bucket(bucket)}\n{bucket['moments']:,}" for bucket in lengths])
        axes.set_xlabel("positives in the state (below: moments)")
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, ncols=min(5, len(rows)), loc="lower center", bbox_to_anchor=(0.5, 1.0))
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(out.getvalue())


@dataclass(frozen=True)
class _Look:
    """Look of a row in the plot.

    Attributes:
        shift: Distance to the right, so that bars of rows do not hide each other.
    """

    kind: str
    line: str
    shift: float


def _draw_row(axes: Axes, buckets: Sequence[Mapping[str, float | None]], label: str, look: _Look) -> None:
    """Draw the line of a row in the placeholder color of its kind."""
    points = [(x, bucket) for x, bucket in enumerate(buckets) if bucket["value"] is not None]
    value = np.array([bucket["value"] for _, bucket in points])
    ends = [
        [bucket["value"] if bucket[end] is None else bucket[end] for end in ("low", "high")] for _, bucket in points
    ]
    color = _placeholder(COLORS.index(look.kind))
    axes.errorbar(
        np.array([x for x, _ in points]) + look.shift,
        value,
        yerr=np.abs(np.array(ends).reshape(-1, 2).T - value),
        color=color,
        ecolor=color,
        marker=MARKERS[look.kind],
        markersize=5,
        linestyle=look.line,
        linewidth=1.4,
        elinewidth=1,
        capsize=2,
        label=label,
    )


def _placeholder(number: int) -> str:
    """Return a color that `_themed` replaces by one of `COLORS`."""
    return f"#0000{16 + number:02x}"


def _themed(svg: str) -> Markup:
    """Give an SVG of matplotlib the colors of the page, and remove its origin."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for number, kind in enumerate(COLORS):
        svg = svg.replace(_placeholder(number), f"var(--{kind})")
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        r'<svg viewBox="\1" role="img" aria-labelledby="plot-title">',
        svg,
        count=1,
    )
    return Markup(svg)  # noqa: S704 drawn by matplotlib, which escapes the labels


def share(value: float | None, digits: int = 4) -> str:
    """Format a share for a table: ``0.1234``; a dash for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def amount(value: float | None) -> str:
    """Format a number with thousands separators; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.2f}"


def _tables(evaluation: Mapping[str, Any]) -> list[JsonTree]:
    """Build one table per k with labelled rows and marked best values."""
    rows = evaluation["rows"]
    tables = []
    models = [row["model"] for row in rows]
    labels = [row["model"] if models.count(row["model"]) == 1 else f"{row['model']} {row['bundle']}" for row in rows]
    parts = [part for part in ("warm", "repeat", "explore") if rows and rows[0][part] is not None]
    for k in evaluation["protocol"]["k"]:
        columns = [("", f"{name}@{k}") for name in METRICS] + [(part, f"NDCG@{k}") for part in parts]

        def value(row: Mapping[str, Any], column: tuple[str, str]) -> dict[str, float | None]:
            cell_value: dict[str, float | None] = (row[column[0]] if column[0] else row)[column[1]]
            return cell_value

        cells = [[value(row, column) for column in columns] for row in rows]
        best = [max((cell[c]["value"] or 0.0 for cell in cells), default=0.0) for c in range(len(columns))]
        lines = [
            {
                "label": label,
                "row": row,
                "kind": _kind(row["model"]),
                "cells": [
                    {**cell, "best": cell["value"] is not None and share(cell["value"]) == share(best_value)}
                    for cell, best_value in zip(row_cells, best, strict=True)
                ],
            }
            for label, row, row_cells in zip(labels, rows, cells, strict=True)
        ]
        tables.append({"k": k, "columns": columns, "lines": lines})
    return tables


def _kind(row: str) -> str:
    name = row.partition(" ")[0]
    return name if name in COLORS else "network"


def _bucket(bucket: Mapping[str, Any]) -> str:
    if bucket["to"] is None:
        return f"{bucket['from']:,}+"
    return f"{bucket['from']:,}" if bucket["from"] == bucket["to"] else f"{bucket['from']:,}-{bucket['to']:,}"


def _evaluation(project: Project) -> JsonTree | None:
    file = project.reports / "evaluation.json"
    if not file.exists():
        return None
    evaluation: JsonTree = json.loads(file.read_text("utf-8"))
    return evaluation


def _learned(project: Project) -> pl.DataFrame | None:
    """Read the labelled rows written by ``prepare``, for the reference window."""
    files = [project.data / "split" / f"{part}.parquet" for part in ("train", "valid", "test")]
    if not all(file.exists() for file in files):
        return None
    return pl.concat([pl.read_parquet(file, columns=[ITEM_ID, STAMP, LABEL]) for file in files])


def _window(first: int | None, last: int | None) -> str:
    if first is None or last is None:
        return "no request in this period"
    return f"{utc_minute(first)} to {utc_minute(last)} UTC"
