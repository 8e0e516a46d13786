"""Simulate the false and true verdicts of an experiment.

    .venv/bin/python benchmarks/experiments.py         # 2,000 runs per row; writes benchmarks/results/experiments.json

Fixed before the first run: seed 0 and 2,000 runs of each row. Users, taste and requests are drawn as in `WORLDS`. Each
run is analysed at its planned looks and at every 50 users between them. A verdict is false if the arms are equal and any
analysis gives `better`, `worse` or `invalid`; each procedure has a separate share. The number `delivered` analyses the
same runs by the bundle that answered, without the users who saw both, as an earlier version did.

All runs are computed together from prefix sums over users. `tests/monitoring/test_simulated_experiments.py` compares them
with `recloop.monitoring.experiment`, which is the code that decides.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from recloop.monitoring.experiment import GUARDRAILS, METRICS, ExperimentMetric, analysis_sizes
from recloop.monitoring.experiment_plan import Plan
from recloop.monitoring.statistics import MIN_USERS_PER_ARM, SAMPLE_RATIO_ALARM, half_width, sequential_bounds

RESULT: Final = Path(__file__).resolve().parent / "results" / "experiments.json"
SEED: Final = 0
RUNS: Final = 2_000
BATCH: Final = 50
"""Number of runs in memory at once."""
STEP: Final = 50
"""Number of users between two analyses."""
EARNED_USERS: Final = 200
"""Minimum users of each arm before a bundle may become live (`recloop.release.transitions.MIN_USERS_PER_ARM`)."""
NAMES: Final = {metric.name: metric for metric in METRICS}

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
World = Callable[[np.random.Generator, int, int], "Users"]


@dataclass(frozen=True)
class Users:
    """Outcomes of R runs of U users in order of entry; ``columns`` as in `experiment.Table`."""

    treated: Bools  # (R, U)
    columns: Mapping[str, Floats]  # each (R, U)


@dataclass(frozen=True)
class Effects:
    """Effect on one metric over the first users of each run, at A analyses: each (R, A)."""

    live: Floats
    delta: Floats
    se: Floats
    n_live: Floats
    n_candidate: Floats

    @property
    def z(self) -> Floats:
        return np.divide(self.delta, self.se, out=np.zeros_like(self.delta), where=self.se > 0)

    def sequence(self, asks: list[int], alpha: float, tuned: float) -> tuple[Floats, Floats]:
        """`Effect.sequence` of every analysis; NaN below 200 users per arm."""
        width = np.array([half_width(1.0, ask, alpha, tuned) for ask in asks])
        reach = np.where(np.minimum(self.n_live, self.n_candidate) < MIN_USERS_PER_ARM, math.nan, self.se * width)
        return self.delta - reach, self.delta + reach


def two_arms(lift: float) -> World:
    """World with a taste of Beta(2, 3) and 1 + Poisson(2) requests per user.

    The candidate's hit rate is (1 + lift) times that of live.
    """

    def draw(rng: np.random.Generator, runs: int, users: int) -> Users:
        shape = (runs, users)
        treated = rng.random(shape) < 0.5
        taste = rng.beta(2, 3, shape)
        asked, before = 1 + rng.poisson(2, shape), rng.poisson(2, shape)
        hits = rng.binomial(asked, np.clip(taste * (1 + lift * treated), 0, 1))
        return _users(
            treated, requests=asked, hits=hits, all_positives=rng.poisson(3 * taste), dislikes=rng.binomial(2, 0.05, shape),
            latency_us=asked * rng.integers(3_000, 6_000, shape), before_requests=before,
            before_hits=rng.binomial(before, taste), before_all_positives=rng.poisson(3 * taste),
            before_dislikes=rng.binomial(2, 0.05, shape), before_latency_us=before * 4_000,
        )  # fmt: skip

    return draw


def failing(fails: float) -> World:
    """World with equally good lists and a candidate that fails.

    It raises for a share of the later requests of the less active four fifths of the users.
    """

    def draw(rng: np.random.Generator, runs: int, users: int) -> Users:
        shape = (runs, users)
        treated, active = rng.random(shape) < 0.5, rng.random(shape) < 0.2
        hits = rng.binomial(4, np.where(active, 0.8, 0.2))
        unanswered = np.where(treated & ~active, rng.binomial(3, fails, shape), 0)
        return _users(treated, requests=np.full(shape, 4), hits=hits, all_positives=hits, unanswered=unanswered)

    return draw


def _users(treated: Bools, **columns: Any) -> Users:
    names = {name for metric in METRICS for name in (metric.top, metric.bottom) if name} | {"requests"}
    none = np.zeros(treated.shape)
    every = {own: columns.get(own, none) for name in names for own in (name, f"before_{name}")}
    return Users(treated, {name: np.asarray(values, np.float64) for name, values in every.items()})


def effects(users: Users, metric: ExperimentMetric, asks: list[int], kept: Bools | None = None) -> Effects:
    """Compute `experiment.measure` for the first ``asks`` users of every run.

    Args:
        kept: (R, U) users to analyse; None means all.
    """
    y = users.columns[metric.top]  # (R, U)
    n = np.ones_like(y) if metric.bottom is None else users.columns[metric.bottom]
    past, known = _past(users, metric)
    kept = np.ones_like(users.treated) if kept is None else kept
    sums = []
    for arm in (~users.treated & kept, users.treated & kept):
        own = {"c": arm, "k": arm & known}
        own |= {"y": y * arm, "n": n * arm, "x": past * own["k"], "ky": y * own["k"], "kn": n * own["k"]}
        own |= {"yy": own["y"] * y, "yn": own["y"] * n, "nn": own["n"] * n}
        own |= {"xx": own["x"] * past, "xy": own["x"] * y, "xn": own["x"] * n}
        sums.append({name: _prefix(values, asks) for name, values in own.items()})
    return _effects(sums, ratio=metric.bottom is not None)


def _past(users: Users, metric: ExperimentMetric) -> tuple[Floats, Bools]:
    """Outcome before the experiment and where it is known, as in `experiment.measure`."""
    past = users.columns[f"before_{metric.top}"]
    if metric.bottom is not None:
        bottom = users.columns[f"before_{metric.bottom}"]
        return np.divide(past, bottom, out=np.zeros_like(past), where=bottom > 0), bottom > 0
    if metric.top in {"positives", "value"}:
        return past, users.columns["before_requests"] > 0
    return past, np.ones(past.shape, bool)


def _prefix(values: NDArray[Any], asks: list[int]) -> Floats:
    """(R, A) sums over the first users."""
    blocks = np.add.reduceat(values[:, : asks[-1]].astype(np.float64), [0, *asks[:-1]], axis=1)
    total: Floats = np.cumsum(blocks, axis=1)
    return total


def _effects(sums: list[dict[str, Floats]], ratio: bool) -> Effects:
    """Compute `recloop.monitoring.statistics.effect` from sums of products."""
    with np.errstate(all="ignore"):
        y, n = sums[0]["y"] + sums[1]["y"], sums[0]["n"] + sums[1]["n"]
        pooled = y / n if ratio else np.zeros_like(y)
        mean = np.nan_to_num((sums[0]["x"] + sums[1]["x"]) / (sums[0]["k"] + sums[1]["k"]))
        parts, spread, shared = [], np.zeros_like(y), np.zeros_like(y)
        for own in sums:
            base = own["n"] / own["c"]
            first = (own["y"] - pooled * own["n"]) / base  # sum of V
            second = (own["yy"] - 2 * pooled * own["yn"] + pooled**2 * own["nn"]) / base**2  # sum of V^2
            cross = (
                own["xy"] - mean * own["ky"] - pooled * (own["xn"] - mean * own["kn"])
            ) / base  # sum of (X - mean) V
            apart = own["x"] - mean * own["k"]
            square = own["xx"] - 2 * mean * own["x"] + mean**2 * own["k"]
            parts.append((own["c"], first, second, cross, apart, square))
            spread = spread + square
            shared = shared + cross - first / own["c"] * apart
        theta = np.where(spread > 1e-12, shared / spread, 0.0)
        means, variances = [], []
        for count, first, second, cross, apart, square in parts:
            total = first - theta * apart
            squares = second - 2 * theta * cross + theta**2 * square
            means.append(total / count)
            variances.append((squares - total**2 / count) / (count - 1) / count)
        live = sums[0]["y"] / sums[0]["n"]
        se = np.sqrt(np.maximum(0.0, variances[0] + variances[1]))
        return Effects(live, means[1] - means[0], se, sums[0]["c"], sums[1]["c"])


@dataclass(frozen=True)
class Asked:
    """Results of each analysis of each run, (R, A).

    ``look`` is +1, -1 or 0 from the deciding look on.
    """

    look: NDArray[np.int64]
    sequence: NDArray[np.int64]
    guardrail: Bools
    invalid: Bools
    unproven: Bools
    no_harm: Bools
    enough: Bools
    often: Bools  # a test at full alpha at each planned look, which ignores multiple looks

    @property
    def word(self) -> NDArray[np.int64]:
        """Verdict: +1 better, -1 worse or invalid, 0 none.

        The order is that of `recloop.monitoring.experiment_verdict.decide`.
        """
        statistic = np.where(self.look != 0, self.look, self.sequence)
        statistic = np.where(self.unproven, np.minimum(statistic, 0), statistic)
        return np.where(self.invalid | self.guardrail, -1, statistic)

    @property
    def live(self) -> Bools:
        """True if a promotion to live would pass without a reason."""
        found: Bools = self.enough & self.no_harm & ~self.unproven & (self.word >= 0)
        return found


def asked_at(users: Users, plan: Plan) -> list[int]:
    """Number of users at each analysis: the planned looks, and every `STEP` users."""
    last = users.treated.shape[1]
    return sorted({*(size for size in analysis_sizes(plan) if size <= last), *range(STEP, last + 1, STEP)})


def ask(users: Users, plan: Plan) -> Asked:
    """Compute the verdicts of all runs at every analysis up to the last user."""
    looks = analysis_sizes(plan)
    asks = asked_at(users, plan)
    primary = effects(users, NAMES[plan.metric], asks)
    due = [position for position, size in enumerate(asks) if size in looks]
    reach = np.full(len(asks), math.inf)
    reach[due] = sequential_bounds(tuple(size / plan.users for size in looks), plan.alpha)[: len(due)]
    crossed = np.abs(primary.z) > reach
    look = np.where(crossed, np.sign(primary.delta), 0).astype(np.int64)
    first = np.argmax(crossed, axis=1)
    decided = np.maximum.accumulate(crossed, axis=1)
    look = np.where(decided, np.take_along_axis(look, first[:, None], axis=1), 0)
    low, high = primary.sequence(asks, plan.alpha, plan.users)
    sequence = np.where(low > 0, 1, np.where(high < 0, -1, 0))
    margin = plan.margin * np.abs(primary.live)
    at_look = primary.delta - reach * primary.se > -margin
    newest = np.searchsorted(np.array([asks[position] for position in due]), asks, side="right") - 1
    by_look = np.where(newest >= 0, at_look[:, np.array(due)[np.maximum(newest, 0)]], False) if due else at_look
    guardrail, unproven = np.zeros_like(crossed), np.zeros_like(crossed)
    for metric in METRICS:
        if metric.kind == "guardrail" and users.columns[metric.top].any():
            broken, within = _guarded(users, metric, asks, plan)
            guardrail |= broken
            unproven |= metric.proof & ~within
    return Asked(
        look=look, sequence=sequence, guardrail=guardrail, invalid=_leaks(primary, plan.share), unproven=unproven,
        no_harm=by_look | (low > -margin), enough=np.minimum(primary.n_live, primary.n_candidate) >= EARNED_USERS,
        often=(np.abs(primary.z) > sequential_bounds((1.0,), plan.alpha)[0]) & np.isin(asks, looks),
    )  # fmt: skip


def _guarded(users: Users, metric: ExperimentMetric, asks: list[int], plan: Plan) -> tuple[Bools, Bools]:
    """`Effect.is_worse` and `Effect.is_within` of every analysis."""
    one = effects(users, metric, asks)
    low, high = one.sequence(asks, plan.alpha / GUARDRAILS, plan.users)
    least, most = (low, high) if metric.better > 0 else (-high, -low)
    slack = metric.slack if metric.absolute else metric.slack * np.abs(one.live)
    return most < -slack, least >= -slack


def _leaks(primary: Effects, share: float) -> Bools:
    """True if `sample_ratio` is above its alarm."""
    live, candidate = primary.n_live, primary.n_candidate
    log_e = gammaln(2) - gammaln(2 + live + candidate) + gammaln(1 + live) + gammaln(1 + candidate)
    log_e -= live * math.log(1 - share) + candidate * math.log(share)
    found: Bools = log_e > math.log(SAMPLE_RATIO_ALARM)
    return found


@dataclass(frozen=True)
class Row:
    """Row of the table: a world, a plan, and the number of users."""

    world: World
    plan: Plan
    users: int


def _plan(users: int, looks: int) -> Plan:
    return Plan(
        share=0.5, metric="hit_rate", users=users, looks=looks, margin=0.01, alpha=0.05, salt="simulated", since=0
    )


ROWS: Final = {
    "equal arms, 14 looks": Row(two_arms(0.0), _plan(4_000, 14), 4_000),
    "equal arms, 4 looks": Row(two_arms(0.0), _plan(4_000, 4), 4_000),
    "-10 %, 200 users an arm, plan of 400": Row(two_arms(-0.1), _plan(400, 2), 450),
    "-10 %, 200 users an arm, plan of 4,000": Row(two_arms(-0.1), _plan(4_000, 4), 450),
    "-10 %, to the end of 4,000": Row(two_arms(-0.1), _plan(4_000, 4), 4_000),
    "-5 %, to the end of 4,000": Row(two_arms(-0.05), _plan(4_000, 4), 4_000),
    "+10 %, to the end of 4,000": Row(two_arms(0.1), _plan(4_000, 4), 4_000),
    "fails for the less active: 20 % of later requests": Row(failing(0.2), _plan(4_000, 14), 4_000),
    "fails for the less active: 5 % of later requests": Row(failing(0.05), _plan(4_000, 14), 4_000),
    "-1 % (the margin), to the end of 4,000": Row(two_arms(-0.01), _plan(4_000, 4), 4_000),
}


def simulate(row: Row, runs: int, seed: int) -> dict[str, float]:
    """Compute the share of runs with each result at any analysis."""
    rng = np.random.default_rng(seed)
    ever: dict[str, float] = {}
    for start in range(0, runs, BATCH):
        size = min(BATCH, runs - start)
        users = row.world(rng, size, row.users)
        said = ask(users, row.plan)
        found = {
            "better": said.word > 0, "worse or invalid": said.word < 0, "any verdict": said.word != 0,
            "planned looks": said.look != 0, "confidence sequence": said.sequence != 0, "guardrails": said.guardrail,
            "sample ratio": said.invalid, "live without a reason": said.live, "full alpha at each look": said.often,
        }  # fmt: skip
        if users.columns["unanswered"].any():
            found["delivered: better at the end"] = delivered_better(users, row.plan)
        for name, values in found.items():
            ever[name] = ever.get(name, 0.0) + float(values.any(axis=1).sum())
    return {name: round(count / runs, 4) for name, count in ever.items()}


def delivered_better(users: Users, plan: Plan) -> Bools:
    """(R, 1) bool: a test without users who saw both bundles finds the candidate better."""
    kept = ~(users.treated & (users.columns["unanswered"] > 0))
    found: Bools = (
        effects(users, NAMES[plan.metric], [users.treated.shape[1]], kept).z > sequential_bounds((1.0,), plan.alpha)[0]
    )
    return found


def main() -> None:
    """Simulate every row and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--out", type=Path, default=RESULT)
    words = parser.parse_args()
    asked = ["git", "rev-parse", "HEAD"]
    head = subprocess.run(asked, check=True, capture_output=True, text=True, cwd=RESULT.parent).stdout.strip()
    begin, rows = time.monotonic(), {}
    for number, (name, row) in enumerate(ROWS.items()):
        rows[name] = simulate(row, words.runs, words.seed + number)
        sys.stderr.write(f"{name}: {rows[name]}\n")
    tree = {
        "command": f".venv/bin/python benchmarks/experiments.py --runs {words.runs} --seed {words.seed}", "commit": head,
        "runs": words.runs, "seed": words.seed, "seconds": round(time.monotonic() - begin, 1), "rows": rows,
    }  # fmt: skip
    words.out.write_text(json.dumps(tree, indent=1) + "\n", "utf-8")
    sys.stdout.write(f"wrote {words.out.name}\n")


if __name__ == "__main__":
    main()
