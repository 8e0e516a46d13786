"""True effect of an experiment: both arms' lists for the same requests.

An experiment compares users of one arm with users of the other. Here each request of every entered user is evaluated
for both arms: the shown list, and the other bundle's list from the same state (as `recloop verify` rebuilds it).
`BrowsingSimulator.expected` gives the expected outcome of each list. The difference over the requests of the first 24
hours is the quantity that the experiment's interval estimates, without sampling noise. Later states within these hours
remain those of the shown lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from recloop.monitoring import experiment
from recloop.monitoring.attribution import OUTCOME_PERIOD
from recloop.monitoring.experiment_verdict import Measured, Verdict
from recloop.monitoring.verify import DecisionReplayer
from recloop.project import Project
from recloop.records import Decision, Query
from recloop.release.assignment import LIVE
from recloop.simulation.browsing import BrowsingSimulator

METRICS: Final = {"hit_rate": "hit", "clicks_per_request": "click"}
"""Experiment metrics with a known truth, and their name in the simulator."""


@dataclass(frozen=True)
class TrueEffect:
    """True mean of a metric over the requests under each bundle."""

    live: float
    candidate: float
    requests: int

    @property
    def delta(self) -> float:
        return self.candidate - self.live


def compared(
    world: BrowsingSimulator, project: Project, bundle: str
) -> tuple[Verdict, dict[str, TrueEffect], list[str]]:
    """Return an experiment's verdict, the true effects, and both as lines.

    A 95 % CI misses the truth one time in twenty. The confidence sequence is wider, is valid at any time, and must
    contain the truth.

    Raises:
        AssertionError: the confidence sequence does not contain the truth.
    """
    found = experiment.analyze(project, bundle)
    known = truth(world, project, found)
    users, ratio, plan = found.users, found.sample_ratio, found.plan
    lines = [
        f"plan: {plan.metric} over {plan.users:,} users, {plan.looks} looks, margin {plan.margin:g}",
        f"{users.live} users of live, {users.candidate} of the candidate, {users.waiting} with an open 24 h window",
        f"sample ratio e = {ratio.e:.3g}, alarm above 1000: {'ALARM' if ratio.alarm else 'none'}",
    ]
    for name, one in found.metrics.items():
        lines.append(
            f"{one.kind} {name}: live {one.live:.4g}, candidate {one.candidate:.4g}, difference "
            f"{one.delta:+.4g} (95 % CI {one.low:+.4g} to {one.high:+.4g})"
        )
        if name in known:
            lines.append(f"  true effect: {truth_line(known[name], one)}")
    lines.append(f"verdict: {found.verdict}: {found.why}")
    for name in METRICS:
        one = found.metrics[name]
        if one.sequence_low is None or one.sequence_high is None:
            raise AssertionError(f"{name}: too few users for the confidence sequence")
        if not one.sequence_low <= known[name].delta <= one.sequence_high:
            raise AssertionError(f"{name}: the true effect {known[name].delta:+.4g} is outside the confidence sequence")
    return found, known, lines


def truth_line(known: TrueEffect, one: Measured) -> str:
    """Format a true difference and the intervals that contain it."""
    inside = _holds(one.low, known.delta, one.high)
    always = _holds(one.sequence_low, known.delta, one.sequence_high)
    return (
        f"{known.delta:+.4g} ({known.live:.4g} to {known.candidate:.4g}, both lists for the same {known.requests} requests): "
        f"{'inside' if inside else 'OUTSIDE'} the CI, {'inside' if always else 'OUTSIDE'} the confidence sequence "
        f"({_signed(one.sequence_low)} to {_signed(one.sequence_high)})"
    )


def _holds(low: float | None, value: float, high: float | None) -> bool:
    return low is not None and high is not None and low <= value <= high


def _signed(value: float | None) -> str:
    return "none" if value is None else f"{value:+.4g}"


def truth(world: BrowsingSimulator, project: Project, found: Verdict) -> dict[str, TrueEffect]:
    """Return the true effect for each metric of `METRICS`.

    Args:
        found: The result of `recloop.monitoring.experiment.analyze`.
    """
    with project.open_decisions() as store, project.open_log() as log:
        rows = [one for one in store.rows(since=found.since, until=found.until) if one.role == "answer"]
        asked = sorted(entered(rows, found.now), key=lambda one: one.as_of_seq)
        live = next(one.bundle for one in asked if one.variant == LIVE)
        replayer = DecisionReplayer(project, log, asked)
        values = {name: np.zeros((len(asked), 2)) for name in METRICS}
        for number, one in enumerate(asked):
            shown, other = (0, live) if one.bundle == found.bundle else (1, found.bundle)
            lists = {1 - shown: one.items, shown: _list(replayer, one, other)}
            for side, items in lists.items():
                expected = world.expected(one.user_id, items, one.served_at)
                for name, ours in METRICS.items():
                    values[name][number, side] = expected[ours]
    means = {name: table.mean(axis=0) for name, table in values.items()}
    return {name: TrueEffect(float(one[0]), float(one[1]), len(asked)) for name, one in means.items()}


def entered(decisions: Sequence[Decision], now: int) -> list[Decision]:
    """Return requests in the first 24 hours of users whose 24 hours ended by ``now``."""
    first: dict[str, int] = {}
    for one in sorted(decisions, key=lambda one: one.served_at):
        first.setdefault(one.user_id, one.served_at)
    return [one for one in decisions if one.served_at < first[one.user_id] + OUTCOME_PERIOD <= now]


def _list(replayer: DecisionReplayer, decision: Decision, bundle: str) -> list[str]:
    """Return the list of another bundle for the same request."""
    recommender, states = replayer.context_for(decision, bundle)
    query = Query(
        user_id=decision.user_id, now=decision.served_at, n=decision.n, placement=decision.placement,
        request_id=decision.request_id,
    )  # fmt: skip
    return recommender.recommend(states, [query], with_inputs=False)[0].items
