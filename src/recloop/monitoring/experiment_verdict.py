"""The verdict of an experiment: one typed record that promote, REST, status, report and console read.

Order of evaluation (definitions, section 9): sample ratio, guardrails, planned looks, confidence sequence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from recloop.json_object import JsonTree
from recloop.monitoring.experiment_plan import Plan
from recloop.monitoring.statistics import ALARM

Word = Literal["better", "worse", "inconclusive", "running", "invalid"]
Source = Literal["sample ratio", "guardrail", "look", "sequence", "none"]
Kind = Literal["primary", "secondary", "guardrail"]
HARMFUL: Final = frozenset({"worse", "invalid"})


class Arms(msgspec.Struct, frozen=True):
    """Users of each arm whose outcome is closed, and users whose outcome is still open."""

    live: int
    candidate: int
    waiting: int = 0


class SampleRatio(msgspec.Struct, frozen=True):
    """Assigned users of each arm against the planned share; ``alarm``: e above 1,000."""

    counts: dict[str, int]
    share: float
    e: float
    alarm: bool


class InterimAnalysis(msgspec.Struct, frozen=True, kw_only=True):
    """A planned look: the primary metric over the first ``users`` to enter.

    ``low`` and ``high`` form the repeated confidence interval delta +- bound * se (Jennison and Turnbull, "Interim analyses: the
    repeated confidence interval approach", JRSS B 1989): all looks together miss the truth with probability alpha at most.
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
    """One metric over all users whose outcome is closed; null: not a number.

    Attributes:
        low, high: Interval for a single look at a time fixed before; for reference, no verdict reads it.
        sequence_low, sequence_high: Confidence sequence, valid at any time; null below 200 users an arm.
        worse: All of the confidence sequence is a loss beyond the metric's slack.
        unproven: A good verdict needs all of the confidence sequence within the slack, and it is not.
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
    """What `decide` found: the verdict, its source and reason, and what is known of harm.

    Attributes:
        verdict: ``better``, ``worse``, ``inconclusive`` (all looks taken), ``running`` (looks are left), ``invalid``.
        decided_by: The procedure that gave the verdict.
        no_harm: A loss of the primary metric above the margin is ruled out, by the last look taken or by the sequence.
        loss: Largest relative loss of the primary metric that is not ruled out; negative: a sure gain; null: unknown.
        needed: Users at which a candidate equal to live would rule the margin out, by the width seen so far; null: unknown.
    """

    verdict: Word
    decided_by: Source
    why: str
    no_harm: bool
    loss: float | None
    needed: int | None


class Verdict(Finding, frozen=True, kw_only=True):
    """The state of an experiment: a finding, and the plan, users, metrics and looks that it is from.

    Attributes:
        differs: Keys of the configuration that differ from the plan; the plan holds.
        since, until, now: int64 microseconds; ``until`` null: the experiment runs.
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
        """The record as JSON."""
        found: JsonTree = msgspec.to_builtins(self)
        return found

    def lines(self) -> list[str]:
        """The verdict for a terminal: one line, and one for each key of the configuration that differs from the plan."""
        return [f"experiment of {self.bundle}: {self.verdict}: {self.why}", *self.differs]


def decide(
    plan: Plan, ratio: SampleRatio, metrics: Mapping[str, Measured], looks: Sequence[InterimAnalysis]
) -> Finding:
    """The verdict from the sample ratio, the metrics of all users so far and the planned looks taken."""
    word, source, why = _decide(plan, ratio, metrics, looks)
    unproven = next((name for name, one in metrics.items() if one.unproven), "")
    if word == "better" and unproven:
        word, source, why = _undecided(plan, looks), "none", f"{why}, but guardrail {unproven} may be above its slack"
    loss = _loss(plan, metrics, looks)
    no_harm = word not in HARMFUL and loss is not None and loss < plan.margin and not unproven
    needed = None if no_harm else _needed(plan, looks)
    if word in {"running", "inconclusive"}:
        why = f"{why}; {_margin_note(plan, loss, needed)}"
    return Finding(verdict=word, decided_by=source, why=why, no_harm=no_harm, loss=loss, needed=needed)


def _decide(
    plan: Plan, ratio: SampleRatio, metrics: Mapping[str, Measured], looks: Sequence[InterimAnalysis]
) -> tuple[Word, Source, str]:
    if ratio.alarm:
        why = f"the arms did not get their shares of the users (e = {ratio.e:.3g}, alarm above {ALARM:,.0f})"
        return "invalid", "sample ratio", why
    for name, one in metrics.items():
        if one.kind == "guardrail" and one.worse:
            why = f"guardrail {name}: {_figure(one.live)} in live, {_figure(one.candidate)} in the candidate"
            return "worse", "guardrail", f"{why}, all of its confidence sequence is a loss"
    for look in looks:
        if look.crossed:
            word: Word = "better" if look.delta > 0 else "worse"
            passed = f"z {look.z or 0.0:+.2f} passed the bound {look.bound:.2f}"
            return word, "look", f"{plan.metric}: {passed} at the planned look of {look.users:,} users"
    primary = metrics.get(plan.metric)
    if primary is not None and primary.sequence_low is not None and primary.sequence_high is not None:
        low, high = primary.sequence_low, primary.sequence_high
        if low > 0 or high < 0:
            why = f"{plan.metric}: the confidence sequence {low:+.4g} to {high:+.4g} excludes 0"
            return "better" if low > 0 else "worse", "sequence", why
    taken = f"{len(looks)} of {plan.looks} planned looks taken, none passed its bound"
    return _undecided(plan, looks), "none", taken


def _undecided(plan: Plan, looks: Sequence[InterimAnalysis]) -> Word:
    return "running" if len(looks) < plan.looks else "inconclusive"


def _loss(plan: Plan, metrics: Mapping[str, Measured], looks: Sequence[InterimAnalysis]) -> float | None:
    """The largest relative loss of the primary metric that neither the last look nor the sequence rules out."""
    lows = [look.low / abs(look.live) for look in looks[-1:] if look.live]
    primary = metrics.get(plan.metric)
    if primary is not None and primary.sequence_low is not None and primary.live:
        lows.append(primary.sequence_low / abs(primary.live))
    return -max(lows) if lows else None


def _needed(plan: Plan, looks: Sequence[InterimAnalysis]) -> int | None:
    """Users n * (half width / margin)^2: an interval of that many users around 0 ends at the margin."""
    if not looks or not looks[-1].live:
        return None
    look = looks[-1]
    needed = look.users * ((look.high - look.low) / 2 / (plan.margin * abs(look.live))) ** 2
    return math.ceil(float(f"{needed:.1e}")) if math.isfinite(needed) else None  # two digits: it is an estimate


def _margin_note(plan: Plan, loss: float | None, needed: int | None) -> str:
    if loss is not None and loss < plan.margin:
        return f"a loss of more than {plan.margin:.2g} of {plan.metric} is ruled out"
    seen = (
        "no look was taken yet" if loss is None else f"a relative loss of {loss:.2g} of {plan.metric} is not ruled out"
    )
    note = f"{seen}, margin {plan.margin:.2g}"
    return note if needed is None else f"{note} (an equal candidate needs about {needed:,} users)"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
