"""Picture of what recloop costs, from the committed results.

    python benchmarks/plot_cost.py                                # writes docs/img/cost.png
    python benchmarks/plot_cost.py --results DIR --picture FILE

A list against the items and against the user's history, a log against its rows, an update against a first run, and events.
It measures nothing: `serve.py`, `collect.py`, `update_cost.py` and `ingest.py` write the results. A missing file leaves its
points out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullFormatter, StrMethodFormatter

ROOT: Final = Path(__file__).resolve().parents[1]
CATALOGS: Final = {"3700": 3_700, "100000": 100_000, "1000000": 1_000_000}
"""Size of `serve.py` with a network -> number of items."""
COUNTS_ONLY: Final = {"complete-journey": 63_571}
"""Size of `serve.py` without a network -> number of items."""
SERIES: Final = {
    "recloop": ("recloop", "#1f6f54", "o"),
    "before": ("recloop before states as arrays", "#999999", "s"),
    "kept": ("recloop, kept vectors", "#7fb39c", "v"),
    "ranked": ("recloop with the ranker", "#8a5a9e", "P"),
    "typical": ("FastAPI, torch, argsort", "#c0562b", "^"),
    "prepare": ("recloop prepare", "#1f6f54", "o"),
    "polars": ("the same steps in Polars", "#c0562b", "^"),
    "duckdb": ("the same steps in DuckDB", "#3b6ea5", "D"),
}
"""Name in the results -> label, color and marker."""
Points = list[tuple[float, float]]


def read(folder: Path, name: str) -> Any:
    """Content of a result file; None if it is missing."""
    file = folder / f"{name}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else None


def by_items(folder: Path, key: str, catalogs: Mapping[str, int]) -> dict[str, Points]:
    """(items, median of ``key``) of each service over the measured catalogs."""
    points: dict[str, Points] = {}
    for size, items in catalogs.items():
        result = read(folder, f"serve-{size}") or {}
        for name, values in result.get(key, {}).items():
            points.setdefault(name, []).append((items, median(values) if isinstance(values, list) else values))
    return points


def by_history(folder: Path) -> dict[str, Points]:
    """(events of the user, milliseconds of a list)."""
    result = read(folder, "serve-heavy") or {}
    points = [(float(events), min(values)) for events, values in result.get("milliseconds", {}).items()]
    return {"recloop": sorted(points)} if points else {}


def by_rows(folder: Path) -> dict[str, Points]:
    """(rows of a log, microseconds of CPU a row) of `prepare` and of the queries written by hand."""
    points: dict[str, Points] = {}
    for run in (read(folder, "collect") or {}).get("runs", []):
        for name in ("prepare", "polars", "duckdb"):
            if isinstance(run.get(name), dict) and "cpu_us_per_row" in run[name]:
                points.setdefault(name, []).append((run["rows"], run[name]["cpu_us_per_row"]))
    return points


def draw_points(axes: Axes, series: Mapping[str, Points], title: str, x: str, y: str) -> None:
    """Draw lines over a logarithmic number of items, events or rows, from zero upwards."""
    for name, points in series.items():
        label, color, marker = SERIES[name]
        axes.plot(*zip(*sorted(points), strict=True), marker=marker, color=color, label=label)
    _finish(axes, title, y)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x)
    if series:
        axes.legend(frameon=False, fontsize=8)


def draw_by_items(axes: Axes, folder: Path, key: str, title: str, y: str) -> None:
    """Draw lines of a network's lists; open markers are lists of counts alone."""
    counts = by_items(folder, key, COUNTS_ONLY)
    for name, points in counts.items():
        _, color, marker = SERIES[name]
        axes.plot(*zip(*points, strict=True), marker=marker, color=color, markerfacecolor="none", linestyle="none")
    draw_points(axes, by_items(folder, key, CATALOGS), title, "items (open: counts only)" if counts else "items", y)
    axes.set_xlim(2e3, 2e6)


def draw_bars(axes: Axes, bars: Sequence[tuple[str, float]], title: str, y: str) -> None:
    """Draw labelled bars with their values."""
    drawn = axes.bar([name for name, _ in bars], [value for _, value in bars], color="#1f6f54", width=0.6)
    axes.bar_label(drawn, [f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for _, value in bars], fontsize=8)
    _finish(axes, title, y)
    axes.tick_params(axis="x", labelsize=8)


def _finish(axes: Axes, title: str, y: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_ylabel(y)
    axes.set_ylim(0, 1.25 * axes.dataLim.ymax if axes.has_data() else 1)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def picture(folder: Path) -> Figure:
    """Draw all six panels."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    (top, bottom) = figure.subplots(2, 3)
    draw_by_items(top[0], folder, "cpu_ms", "A list, by items", "CPU milliseconds a list")
    draw_points(
        top[1], by_history(folder), "A list, by the user's history", "events of the user", "milliseconds a list"
    )
    draw_by_items(top[2], folder, "memory_mib", "The service, by items", "resident memory, MiB")
    draw_points(bottom[0], by_rows(folder), "A log, by rows", "rows", "CPU microseconds a row")
    draw_bars(bottom[1], update_bars(folder), "An update with 1 % new rows", "CPU seconds")
    draw_bars(bottom[2], event_bars(folder), "Durable events", "rows a second")
    return figure


def update_bars(folder: Path) -> list[tuple[str, float]]:
    """CPU seconds of a first run and of an update on the generated log."""
    sizes = (("1 M rows", "update-cost-generated"), ("300,000 rows", "update-cost-generated-300000"))
    size, result = next(((size, found) for size, name in sizes if (found := read(folder, name))), ("", None))
    if result is None:
        return []
    names = ((f"first run,\n{size}", "first_run"), ("second update", "update"))
    return [(name, result[key]["cpu_seconds"]) for name, key in names]


def event_bars(folder: Path) -> list[tuple[str, float]]:
    """Rows a second of the service beside bare SQLite."""
    rates = (read(folder, "ingest") or {}).get("rows_per_second", {})
    names = {
        "executemany": "SQLite\nexecutemany",
        "batches": "recloop,\nbatches of 100",
        "fsync": "one fsync\nan event",
        "singles": "recloop,\nsingle posts",
    }
    return [(label, rates[key]) for key, label in names.items() if key in rates]


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "img" / "cost.png")
    options = parser.parse_args()
    picture(options.results).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
