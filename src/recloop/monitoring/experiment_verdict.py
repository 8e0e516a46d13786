"""Experiment verdict: a typed record and the rules that decide it.

Order of evaluation (docs/definitions/experiments.md): sample ratio, guardrails, interim analyses, confidence sequence.
The record is used by promote, HTTP, status, report and console.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from recloop.files import JsonTree
from recloop.monitoring.experiment_plan import Plan
from recloop.monitoring.statistics import SAMPLE_RATIO_ALARM

Word = Literal["better", "worse", "inconclusive", "running", "invalid"]
Source = Literal["sample ratio", "guardrail", "look", "sequence", "none"]
Kind = Literal["primary", "secondary", "guardrail"]
HARMFUL: Final = frozenset({"worse", "invalid"})


class Arms(msgspec.Struct, frozen=True):
    """Users with a closed outcome per arm, and users with an open outcome."""

    live: int
    candidate: int
    waiting: int = 0


class SampleRatio(msgspec.Struct, frozen=True):
    """Assigned users per arm against the planned share; ``alarm`` if e > 1,000."""

    counts: dict[str, int]
    share: float
    e: float
    alarm: bool


class InterimAnalysis(msgspec.Struct, frozen=True, kw_only=True):
    """Interim analysis (planned look) of the primary metric over the first users.

    ``low`` and ``high`` are the repeated confidence interval delta +- bound * se (Jennison and Turnbull, "Interim
    analyses: the repeated confidence interval approach", JRSS B 1989). All looks together miss the true value with a
    probability of at most alpha.
    """

    users: int
    share: float
    live: float
    delta: float
    low: float
    high: float
    z: float | None
    bound: float
    crossed: bool


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One metric over all users with a closed outcome; None for NaN.

    Attributes:
        low, high: Interval for a single analysis at a fixed time; for reference only, not used by the verdict.
        sequence_low, sequence_high: Confidence sequence, valid at any time; None below 200 users per arm.
        worse: True if the whole confidence sequence is a loss beyond the metric's slack.
        unproven: True if verdict better needs the whole sequence within the slack and it is not.
    """

    kind: Kind
    better: Literal["higher", "lower"]
    live: float | None
    candidate: float | None
    delta: float | None
    se: float | None
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None = None
    relative: float | None
    relative_low: float | None
    relative_high: float | None
    sequence_low: float | None
    sequence_high: float | None
    reduction: float | None
    worse: bool
    unproven: bool = False


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Result of `decide`: verdict, source, reason and evidence of no harm.

    Attributes:
        verdict: ``better``, ``worse``, ``inconclusive`` (after the last look), ``running`` (before it), ``invalid``.
        decided_by: The procedure that gave the verdict.
        why: Reason for operators.
        no_harm: True if the last look or the sequence rules out a loss of the primary metric above the margin.
        loss: Largest relative loss of the primary metric not ruled out; negative for a sure gain; None if unknown.
        needed: Estimated users for an equal candidate to rule out the margin; None if unknown.
    """

    verdict: Word
    decided_by: Source
    why: str
    no_harm: bool
    loss: float | None
    needed: int | None


class Verdict(Finding, frozen=True, kw_only=True):
    """State of an experiment: finding, plan, users, metrics and interim analyses.

    Attributes:
        differs: Configuration keys that differ from the plan; the plan applies.
        since, until, now: int64 microseconds; ``until`` is None while the experiment runs.
    """

    bundle: str
    since: int
    until: int | None
    now: int
    plan: Plan
    differs: list[str]
    users: Arms
    sample_ratio: SampleRatio
    metrics: dict[str, Measured]
    looks: list[InterimAnalysis]

    def to_json(self) -> JsonTree:
        """Format the record as JSON."""
        tree: JsonTree = msgspec.to_builtins(self)
        return tree

    def lines(self) -> list[str]:
        """Format the verdict for a terminal: one line, and one per key in ``differs``."""
        return [f"experiment of {self.bundle}: {self.verdict}: {self.why}", *self.differs]


def decide(
    plan: Plan, ratio: SampleRatio, metrics: Mapping[str, Measured], looks: Sequence[InterimAnalysis]
) -> Finding:
    """Decide the verdict from sample ratio, metrics and interim analyses so far."""
    verdict, source, explanation = _decide(plan, ratio, metrics, looks)
    unproven = next((name for name, measured in metrics.items() if measured.unproven), "")
    if verdict == "better" and unproven:
        verdict = _undecided(plan, looks)
        source = "none"
        explanation = f"{explanation}, but guardrail {unproven} may be above its slack"
    loss = _loss(plan, metrics, looks)
    no_harm = verdict not in HARMFUL and loss is not None and loss < plan.margin and not unproven
    needed = None if no_harm else _needed(plan, looks)
    if verdict in {"running", "inconclusive"}:
        explanation = f"{explanation}; {_margin_note(plan, loss, needed)}"
    return Finding(verdict=verdict, decided_by=source, why=explanation, no_harm=no_harm, loss=loss, needed=needed)


def _decide(
    plan: Plan, ratio: SampleRatio, metrics: Mapping[str, Measured], looks: Sequence[InterimAnalysis]
) -> tuple[Word, Source, str]:
    if ratio.alarm:
        figures = f"e = {ratio.e:.3g}, alarm above {SAMPLE_RATIO_ALARM:,.0f}"
        explanation = f"the arms differ from their planned shares of users ({figures})"
        return "invalid", "sample ratio", explanation
    for name, measured in metrics.items():
        if measured.kind == "guardrail" and measured.worse:
            explanation = (
                f"guardrail {name}: {_figure(measured.live)} in live, {_figure(measured.candidate)} in the candidate"
            )
            return "worse", "guardrail", f"{explanation}; its whole confidence sequence is a loss"
    for look in looks:
        if look.crossed:
            verdict: Word = "better" if look.delta > 0 else "worse"
            passed = f"z {look.z or 0.0:+.2f} crossed the bound {look.bound:.2f}"
            return verdict, "look", f"{plan.metric}: {passed} at the planned look of {look.users:,} users"
    primary = metrics.get(plan.metric)
    if primary is not None and primary.sequence_low is not None and primary.sequence_high is not None:
        low, high = primary.sequence_low, primary.sequence_high
        if low > 0 or high < 0:
            explanation = f"{plan.metric}: the confidence sequence {low:+.4g} to {high:+.4g} excludes 0"
            return "better" if low > 0 else "worse", "sequence", explanation
    progress = f"{len(looks)} of {plan.looks} planned looks done, none crossed its bound"
    return _undecided(plan, looks), "none", progress


def _undecided(plan: Plan, looks: Sequence[InterimAnalysis]) -> Word:
    return "running" if len(looks) < plan.looks else "inconclusive"


def _loss(plan: Plan, metrics: Mapping[str, Measured], looks: Sequence[InterimAnalysis]) -> float | None:
    """Largest relative loss of the primary metric not ruled out by look or sequence."""
    lows = [look.low / abs(look.live) for look in looks[-1:] if look.live]
    primary = metrics.get(plan.metric)
    if primary is not None and primary.sequence_low is not None and primary.live:
        lows.append(primary.sequence_low / abs(primary.live))
    return -max(lows) if lows else None


def _needed(plan: Plan, looks: Sequence[InterimAnalysis]) -> int | None:
    """Users for an interval around 0 within the margin: n * (half width / margin)^2."""
    if not looks or not looks[-1].live:
        return None
    look = looks[-1]
    users = look.users * ((look.high - look.low) / 2 / (plan.margin * abs(look.live))) ** 2
    return math.ceil(float(f"{users:.1e}")) if math.isfinite(users) else None  # two digits, as for an estimate


def _margin_note(plan: Plan, loss: float | None, needed: int | None) -> str:
    if loss is not None and loss < plan.margin:
        return f"a loss of more than {plan.margin:.2g} of {plan.metric} is ruled out"
    loss_text = (
        "no look is done yet" if loss is None else f"a relative loss of {loss:.2g} of {plan.metric} is not ruled out"
    )
    note = f"{loss_text}, margin {plan.margin:.2g}"
    return note if needed is None else f"{note} (an equal candidate needs about {needed:,} users)"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
