"""Simulate hourly updates in a small shop to measure the error rates of the gate.

    python benchmarks/gate.py [--weeks 200]
    python benchmarks/gate.py --looks 10000

Each hour brings U test queries of U users. One query in ten differs between the two bundles; the relative standard
deviation of a difference is S. A true relative loss D is added from the first update on, or after three updates passed.

``--looks`` simulates windows of one update instead: how often a growing sample of its moments hides a true loss, and
how many moments are answered.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recloop.evaluation import paired
from recloop.pipeline import looks
from recloop.release import gate

HOURS = 168
SEED = 0
SHOPS = ((10, 0.2), (40, 0.2), (40, 0.5), (200, 0.5), (40, 1.0))
"""Queries per hour, and the relative standard deviation of a difference."""
RESULT = Path(__file__).resolve().parent / "results" / "gate.json"
MARGIN = 0.03
MIN_QUERIES = 30
CHANGED = 0.1
LOOK_LOSSES = (0.0, MARGIN, 2 * MARGIN)
"""True losses of the windows that are looked at."""


@dataclass(frozen=True)
class Rule:
    """Rule of a gate.

    ``width``: maximum detectable loss in margins; ``certain``: standard errors of a refusal; ``growth``: growth of data
    between looks.
    """

    name: str
    width: float
    certain: float
    growth: float


class Row(NamedTuple):
    """Shares of weeks, hours, and passes per week."""

    stopped: float
    first_pass_median: float
    first_pass_95: float
    passes: float
    slipped: float
    slipped_after_three: float


RULES = (
    Rule("before: an open point decides", math.inf, 1.96, 1.0),
    Rule("95 % upper end refuses, each hour", 3.0, 1.96, 1.0),
    Rule("width 2", 2.0, gate.CERTAIN_ERRORS, gate.REPEAT_GROWTH),
    Rule("chosen", gate.WIDTH_FACTOR, gate.CERTAIN_ERRORS, gate.REPEAT_GROWTH),
    Rule("width 4", 4.0, gate.CERTAIN_ERRORS, gate.REPEAT_GROWTH),
)


def decide(rule: Rule, own: NDArray[np.float64], earlier: list[NDArray[np.float64]]) -> str:
    """Decide by rows 4 to 10 of the table in `recloop.release.gate`, with normal intervals."""
    value, error = _mean(own)
    if value - 1.96 * error > -MARGIN:
        return "pass"
    low_enough = rule.certain == 1.96 or value < -MARGIN
    if value + rule.certain * error < 0 and low_enough:
        return "refused"
    if gate.DETECTION_STANDARD_ERRORS * error > rule.width * MARGIN:
        return "wait"
    pooled, pooled_error = _mean(np.concatenate([*earlier[-gate.MAX_POOLED_WINDOWS :], own]))
    if math.isinf(rule.width):
        return "pass" if pooled > -MARGIN else "refused"
    if pooled + rule.certain * pooled_error < 0 and pooled < -MARGIN:
        return "refused"
    return "pass" if min(value, pooled) > -MARGIN else "wait"


class LookRow(NamedTuple):
    """Windows of one spread and true loss.

    Attributes:
        hidden: Share of windows that a sample cleared. queries: Mean number of answered queries.
    """

    first: int
    spread: float
    loss: float
    hidden: float
    queries: float


def simulate_looks(first: int, spread: float, loss: float, windows: int) -> LookRow:
    """Look at samples of ``first`` queries, doubled until they are clear or all queries are answered."""
    rng = np.random.default_rng(SEED)
    hidden, answered = 0, 0
    for _ in range(windows):
        changed = rng.random(paired.MAX_QUERIES) < CHANGED
        signs = rng.choice([-1, 1], len(changed))
        values = np.where(changed, signs * spread / np.sqrt(CHANGED), 0.0) - loss
        size = first
        while size < len(values):
            value, error = _mean(values[:size])
            if value - gate.CERTAIN_ERRORS * error > -MARGIN:
                hidden += 1
                break
            size *= 2
        answered += min(size, len(values))
    return LookRow(first, spread, loss, hidden / windows, answered / windows)


def print_looks(windows: int) -> None:
    """Print a table of looks as Markdown."""
    sys.stdout.write(
        "| first look | spread | true loss | cleared by a sample | queries answered |\n|---|---|---|---|---|\n"
    )
    for first in (looks.FIRST_QUERIES, 2 * looks.FIRST_QUERIES):
        for spread in sorted({spread for _, spread in SHOPS}):
            for loss in LOOK_LOSSES:
                row = simulate_looks(first, spread, loss, windows)
                sys.stdout.write(f"| {first} | {spread} | {loss:.0%} | {row.hidden:.3%} | {row.queries:,.0f} |\n")


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def week(
    rng: np.random.Generator, rule: Rule, users: int, spread: float, loss: float, after: int
) -> tuple[str, int, int]:
    """Simulate a week.

    Returns its end (``ran``, ``refused``, ``slipped``), the hour of the first pass (168: none), and the number of passes.
    """
    waiting: list[float] = []
    earlier: list[NDArray[np.float64]] = []
    judged, first = 0, HOURS
    for hour in range(HOURS):
        changed = rng.random(users) < CHANGED
        waiting += np.where(changed, rng.choice([-1, 1], users) * spread / np.sqrt(CHANGED), 0.0).tolist()
        shift = loss if len(earlier) >= after else 0.0
        test = np.array(waiting[-max(1, len(waiting) // 4) :]) + shift
        if len(test) < max(MIN_QUERIES, rule.growth * judged):
            continue
        judged = len(test)
        outcome = decide(rule, test, earlier)
        if outcome == "refused":
            return outcome, first, len(earlier)
        if outcome == "pass":
            first = min(first, hour)
            if shift < 0:
                return "slipped", first, len(earlier)
            earlier.append(test)
            waiting, judged = [], 0
    return "ran", first, len(earlier)


def main() -> None:
    """Print the table as Markdown and write it to the results folder."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--weeks", type=int, default=200)
    arguments.add_argument("--looks", type=int, default=0, metavar="WINDOWS", help="simulate looks at windows instead")
    asked = arguments.parse_args()
    if asked.looks:
        print_looks(asked.looks)
        return
    weeks = asked.weeks
    sys.stdout.write("| rule | queries an hour | spread | no loss: weeks stopped | first pass, hours (median, 95 %) | passes a week |"
          " -10 %: slipped | -10 % after three: slipped |\n|---|---|---|---|---|---|---|---|\n")  # fmt: skip
    rows = []
    for rule in RULES:
        for users, spread in SHOPS:
            row = simulate(rule, users, spread, weeks)
            rows.append({"rule": rule.name, "queries_an_hour": users, "spread": spread, **row._asdict()})
            sys.stdout.write(
                f"| {rule.name} | {users} | {spread} | {row.stopped:.1%} | {row.first_pass_median:.0f}, {row.first_pass_95:.0f} |"
                f" {row.passes:.1f} | {row.slipped:.1%} | {row.slipped_after_three:.1%} |\n"
            )
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    tree = {
        "command": f".venv/bin/python benchmarks/gate.py --weeks {weeks}",
        "commit": head,
        "seed": SEED,
        "rows": rows,
    }
    RESULT.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")


def simulate(rule: Rule, users: int, spread: float, weeks: int) -> Row:
    """Simulate one row of the table.

    Its weeks are without a loss, with a loss of 10 %, and with that loss after three updates passed.
    """
    rng = np.random.default_rng(SEED)
    harmless = [week(rng, rule, users, spread, 0.0, 0) for _ in range(weeks)]
    lossy = [Counter(week(rng, rule, users, spread, -0.1, after)[0] for _ in range(weeks)) for after in (0, 3)]
    first = [one[1] for one in harmless]
    return Row(
        stopped=float(np.mean([one[0] == "refused" for one in harmless])),
        first_pass_median=float(np.median(first)),
        first_pass_95=float(np.quantile(first, 0.95)),
        passes=float(np.mean([one[2] for one in harmless])),
        slipped=lossy[0]["slipped"] / weeks,
        slipped_after_three=lossy[1]["slipped"] / weeks,
    )


if __name__ == "__main__":
    main()
