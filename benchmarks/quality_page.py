"""docs/benchmarks.md, made from the result files of `quality.py`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any, Final

import curves
from quality_data import DATA, LEARNING_CURVES, DataSet

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
METRICS: Final = ("HR@10", "Recall@10", "NDCG@10")
LISTS: Final = ("served", "fusion")
"""Rows of several sources; their names need the model that was trained."""
COLD_POSITIVES: Final = 5
"""Number of positives from which a user is not in the table of cold users."""
MAX_FEATURES: Final = 20
"""Rows of the table of a ranker's features."""
HEAD: Final = """\
# How good are the lists?

Each table is one data set. `make bench-quality` runs the missing rows; the result files are in
[`benchmarks/results`](../benchmarks/results), each with its command, commit, fingerprint of the data and seed.

- Rows rank the full catalog on the test split, except where a table says
  [given items](definitions/ranking-metrics.md#given-candidates). Values are means over users, with the 95 % interval of a bootstrap over users. Where
  several seeds were run, a value and the ends of its interval are their means.
- A published row has the protocol of its source. ML-1M is in file order, so a difference below 2 % to a published row means nothing.
- `trained`: epochs and steps. `stopped` by `time_budget`: the row was cut, and more time may change it.
- `source`: the commit of our row, or the repository of a published one, in italics.
- `explore`: NDCG@10 on items that the user did not have before. `cold`: HR@10 on items without an event before the cut; lists hold
  them by [`cold_own`](decisions/2026-11-29-a-slot-for-own-cold-items.md) and [`cold_share`](decisions/2026-11-29-slots-for-cold-items.md).
"""
Result = dict[str, Any]


def write_page(results: Path) -> None:
    """Write the page of all result files."""
    PAGE.write_text(page(results), "utf-8")


def page(results: Path) -> str:
    """Return the page of the result files of a folder."""
    found: dict[str, list[Result]] = defaultdict(list)
    for file in sorted(results.glob("quality-*.json")):
        result = json.loads(file.read_text("utf-8"))
        found[result["data"]].append(result)
    lines = [HEAD]
    for name, data in DATA.items():
        lines += section(name, data, found[name])
        if name == curves.DATA_SET:
            lines += [LEARNING_CURVES, *curves.table(results)]
        lines += features(results / f"importance-{name}-seed0.json")
    return "\n".join(lines).rstrip() + "\n"


def section(name: str, data: DataSet, results: list[Result]) -> Iterator[str]:
    """Yield the lines of one data set."""
    yield f"## {data.title}\n"
    if results:
        facts = results[0]["protocol"]
        given = f"each target among {facts['candidates']} given items of " if "candidates" in facts else ""
        yield f"`{facts['name']}`, {facts['users']:,} users of the test, {given}{facts['items']:,} items.\n"
        if data.note:
            yield f"{data.note}\n"
        yield "| row | " + " | ".join(METRICS) + " | explore | cold | seeds | trained | stopped | source |"
        yield "|---" * (len(METRICS) + 7) + "|"
        yield from (line(row, found) for row, found in rows(results).items())
        yield from (
            f"| *{row.model}* | {row.hit_rate:.4f} | | {row.ndcg:.4f} | | | | | | {row.source} |"
            for row in data.published
        )
        yield ""
        yield from cold_users(results)
    measured = {row_name(row, result) for result in results for row in result["rows"]}
    missing = [model for model in data.models if model.replace("-", " ") not in measured]
    if missing:
        yield f"Not run: {', '.join(missing)} (`python benchmarks/quality.py --data {name}`).\n"


def cold_users(results: list[Result]) -> Iterator[str]:
    """Yield NDCG@10 of the baselines and the served list for users with few positives."""
    measured = [result for result in results if result.get("lengths")]
    if not measured:
        return
    buckets = [bucket for bucket in measured[0]["lengths"] if bucket["from"] < COLD_POSITIVES]
    if not buckets:
        return
    names = [row["model"] for row in measured[0]["rows"]]
    yield f"Users with few positives before the moment, NDCG@10; `served` is with {trained_name(measured[0])}:\n"
    yield f"| positives | moments | users | {' | '.join(names)} |"
    yield "|---" * (len(names) + 3) + "|"
    for bucket in buckets:
        length = f"{bucket['from']}-{bucket['to']}" if bucket["to"] > bucket["from"] else str(bucket["from"])
        values = " | ".join(interval(bucket["rows"][name]) for name in names)
        yield f"| {length} | {bucket['moments']:,} | {bucket['users']:,} | {values} |"
    yield ""


def features(file: Path) -> Iterator[str]:
    """Yield the features of a ranker with the largest losses; nothing without the file of `ranker_importance.py`."""
    if not file.exists():
        return
    result = json.loads(file.read_text("utf-8"))
    yield (
        f"NDCG@10 that the ranker loses if the values of one feature are permuted over all candidates: {result['moments']:,} later moments "
        f"of validation, which the trees did not learn, means over {result['users']:,} users and {result['permutations']} permutations. All "
        f"{len(result['features'])} features together reach {result['NDCG@10']:.4f}. Features repeat each other, so losses do not add up "
        f"(`{result['command']}`, {result['commit'][:7]}).\n"
    )
    yield "| feature | loss |"
    yield "|---|---|"
    yield from (f"| `{one['name']}` | {interval(one['loss'])} |" for one in result["features"][:MAX_FEATURES])
    yield ""


def interval(estimate: Result) -> str:
    """Format a mean with its interval, which one user does not have."""
    if estimate["low"] is None:
        return f"{estimate['value']:.4f}"
    return f"{estimate['value']:.4f} [{estimate['low']:.4f}, {estimate['high']:.4f}]"


def mean_of_seeds(estimates: list[Result]) -> Result:
    """Return the means of the values and of the ends of their intervals; None for an end that a seed lacks."""
    ends = {end: [estimate[end] for estimate in estimates] for end in ("value", "low", "high")}
    return {end: None if None in values else mean(values) for end, values in ends.items()}


def rows(results: list[Result]) -> dict[str, list[tuple[Result, Result]]]:
    """Return (row, result) by name of the row: one per seed.

    A baseline is in the result of every model; its first one counts.
    """
    found: dict[str, dict[int, tuple[Result, Result]]] = defaultdict(dict)
    for result in results:
        for row in result["rows"]:
            found[row_name(row, result)].setdefault(result["seed"], (row, result))
    return {name: list(by_seed.values()) for name, by_seed in found.items()}


def trained_name(result: Result) -> str:
    """Name of the model or variant that a result trained; older files have the model alone."""
    name: str = result.get("name", result["model"])
    return name.replace("-", " ")


def row_name(row: Result, result: Result) -> str:
    """Name of a row: of the trained model or variant, of a baseline, or of a list with the trained one."""
    name: str = row["model"]
    if name in LISTS:
        return f"{name} with {trained_name(result)}"
    return trained_name(result) if name == result["model"] else name


def line(name: str, found: list[tuple[Result, Result]]) -> str:
    """Format one row."""
    row, result = found[0]
    cells = [interval(mean_of_seeds([row[metric] for row, _ in found])) for metric in METRICS]
    own = result["train"] if row["model"] == result["model"] else {}
    for part, metric in (("explore", "NDCG@10"), ("cold", "HR@10")):
        estimates = [(row.get(part) or {}).get(metric) or {"value": None} for row, _ in found]
        values = [estimate["value"] for estimate in estimates]
        cells.append("" if None in values else f"{mean(values):.4f}")
    commits = dict.fromkeys(result["commit"][:7] for _, result in found)
    cells += [str(len(found)), trained(own), own.get("stopped") or "", ", ".join(commits)]
    return f"| {name} | " + " | ".join(cells) + " |"


def trained(train: Result) -> str:
    """Format the epochs and steps of a network's row.

    A result file without ``steps_per_epoch`` has no whole epochs.
    """
    if not train.get("step"):
        return ""
    per_epoch = train.get("steps_per_epoch")
    if not per_epoch:
        return f"{train['step']:,} steps"
    if train["step"] < per_epoch:
        return f"not trained: {train['step']:,} steps"
    return f"{train['step'] / per_epoch:.1f} epochs, {train['step']:,} steps"
