"""An hourly update in a small shop, simulated: how often the gate stops a harmless loop, and how often a loss passes.

python benchmarks/gate.py [--weeks 200]

Each hour brings U test queries of as many users. One query in ten differs between the two bundles; the relative standard
deviation of a difference is S. A true relative loss D is added from the first update on, or after three that passed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recloop.watch import gate

HOURS = 168
MARGIN = 0.03
MIN_QUERIES = 30
CHANGED = 0.1


@dataclass(frozen=True)
class Rule:
    """``width``: margins that a detectable loss may have; ``certain``: standard errors of a refusal; ``growth``: between looks."""

    name: str
    width: float
    certain: float
    growth: float


RULES = (
    Rule("before: an open point decides", math.inf, 1.96, 1.0),
    Rule("95 % upper end refuses, each hour", 3.0, 1.96, 1.0),
    Rule("width 2", 2.0, gate.CERTAIN_ERRORS, gate.REPEAT_GROWTH),
    Rule("chosen", gate.WIDTH_FACTOR, gate.CERTAIN_ERRORS, gate.REPEAT_GROWTH),
    Rule("width 4", 4.0, gate.CERTAIN_ERRORS, gate.REPEAT_GROWTH),
)


def decide(rule: Rule, own: NDArray[np.float64], earlier: list[NDArray[np.float64]]) -> str:
    """Rows 4 to 10 of the table in `recloop.watch.gate`, by normal intervals."""
    value, error = _mean(own)
    if value - 1.96 * error > -MARGIN:
        return "pass"
    low_enough = rule.certain == 1.96 or value < -MARGIN
    if value + rule.certain * error < 0 and low_enough:
        return "refused"
    if gate.DETECTS * error > rule.width * MARGIN:
        return "wait"
    pooled, pooled_error = _mean(np.concatenate([*earlier[-gate.POOLED :], own]))
    if math.isinf(rule.width):
        return "pass" if pooled > -MARGIN else "refused"
    if pooled + rule.certain * pooled_error < 0 and pooled < -MARGIN:
        return "refused"
    return "pass" if min(value, pooled) > -MARGIN else "wait"


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def week(
    rng: np.random.Generator, rule: Rule, users: int, spread: float, loss: float, after: int
) -> tuple[str, int, int]:
    """How a week ends (``ran``, ``refused``, ``slipped``), the hour of the first pass (168: none), and the passes."""
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
    """Print the table as Markdown."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--weeks", type=int, default=200)
    weeks = arguments.parse_args().weeks
    sys.stdout.write("| rule | queries an hour | spread | no loss: weeks stopped | first pass, hours (median, 95 %) | passes a week |"
          " -10 %: slipped | -10 % after three: slipped |\n|---|---|---|---|---|---|---|---|\n")  # fmt: skip
    for rule in RULES:
        for users, spread in ((10, 0.2), (40, 0.2), (40, 0.5), (200, 0.5), (40, 1.0)):
            rng = np.random.default_rng(0)
            harmless = [week(rng, rule, users, spread, 0.0, 0) for _ in range(weeks)]
            lossy = [Counter(week(rng, rule, users, spread, -0.1, after)[0] for _ in range(weeks)) for after in (0, 3)]
            first = [one[1] for one in harmless]
            stopped = np.mean([one[0] == "refused" for one in harmless])
            slipped = " | ".join(f"{one['slipped'] / weeks:.1%}" for one in lossy)
            sys.stdout.write(
                f"| {rule.name} | {users} | {spread} | {stopped:.1%} | {np.median(first):.0f}, {np.quantile(first, 0.95):.0f} |"
                f" {np.mean([one[2] for one in harmless]):.1f} | {slipped} |\n"
            )


if __name__ == "__main__":
    main()
