"""Experiment analysis: outcomes of the users of two random arms.

Definitions: docs/definitions/experiments.md.

    verdict = experiment.analyze(project)     # of the newest experiment

Users are analyzed in their assigned arm, whichever bundle answered. Only interim analyses and the confidence sequence
decide. `recloop.monitoring.attribution` defines outcomes, `recloop.monitoring.statistics` the formulas,
`recloop.monitoring.experiment_verdict` the order of evaluation, and `recloop.monitoring.experiment_plan` the plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
import numpy as np
import polars as pl

from recloop.errors import UserError
from recloop.evaluation.bootstrap import holm, plain
from recloop.features.labels import EventLabeler
from recloop.monitoring.attribution import ARMS, COVARIATE_PERIOD, REQUEST_COLUMNS, joined, request_outcomes
from recloop.monitoring.experiment_plan import EVIDENCE, REFRESH, Plan
from recloop.monitoring.experiment_verdict import (
    Arms,
    Finding,
    InterimAnalysis,
    Kind,
    Measured,
    SampleRatio,
    Verdict,
    decide,
)
from recloop.monitoring.statistics import SAMPLE_RATIO_ALARM, Effect, Floats, effect, sample_ratio, sequential_bounds
from recloop.project import Project
from recloop.records import DAY, EVENT_SCHEMA, RECEIVED_AT, RULE, TIMESTAMP
from recloop.storage import releases
from recloop.storage.control import ReleaseRow
from recloop.storage.identities import Identities


@dataclass(frozen=True)
class ExperimentMetric:
    """Metric of an experiment: the mean of ``top`` per user, or ``top`` / ``bottom``.

    ``better`` is -1 if lower is better. A guardrail is broken if its whole confidence sequence is a loss above
    ``slack``. The slack is relative to live or, if ``absolute``, in the metric's unit. With ``proof``, the verdict
    ``better`` requires the whole sequence within the slack.
    """

    name: str
    kind: Kind
    top: str
    bottom: str | None = None
    better: int = 1
    slack: float = 0.0
    absolute: bool = False
    proof: bool = False


METRICS: Final = (
    ExperimentMetric("hit_rate", "secondary", "hits", "requests"),
    ExperimentMetric("clicks_per_request", "secondary", "clicks", "requests"),
    ExperimentMetric("positives_from_lists", "secondary", "positives"),
    ExperimentMetric("value_from_lists", "secondary", "value"),
    ExperimentMetric("positives", "guardrail", "all_positives"),
    ExperimentMetric("dislikes", "guardrail", "dislikes", better=-1),
    ExperimentMetric("latency_us_per_request", "guardrail", "latency_us", "requests", better=-1, slack=0.2),
    ExperimentMetric(
        "unanswered", "guardrail", "unanswered", "requests", better=-1, slack=0.01, absolute=True, proof=True
    ),
)
"""All metrics; the plan names the primary one.

``hit_rate``: requests with an event credited to their list. ``positives``: includes events that are not credited to a
list. ``unanswered``: requests that live answered because the candidate could not.
"""
GUARDRAILS: Final = sum(metric.kind == "guardrail" for metric in METRICS)


class Period(NamedTuple):
    """One experiment: candidate, its release row, plan and end (None while running)."""

    bundle: str
    row: ReleaseRow
    plan: Plan
    until: int | None


def analyze(project: Project, bundle: str = "", *, now: int | None = None) -> Verdict:
    """Analyze a bundle's experiment.

    Args:
        bundle: The candidate; empty for the one that entered an experiment last.
        now: int64 microseconds; None for the newest decision or received row.

    Raises:
        UserError: the bundle was never in an experiment, or its row has no plan.
        BundleError: the bundle's files differ from the registered ones.
    """
    control = project.open_control()
    bundle, _, plan, until = period(control.releases(), bundle)
    candidate = project.load_bundle(bundle)
    with project.open_decisions() as store, project.open_log() as log:
        data_since = data_start(plan)
        requests = store.answers(list(REQUEST_COLUMNS), data_since, until)
        newest = store.newest_served_at()
        archive = project.open_archive()
        log_rows = log.events(after=archive.watermark).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
        in_period = pl.col(TIMESTAMP) >= data_since
        rows = pl.concat([archive.matching(in_period), log_rows.filter(in_period)])
        first_users = Identities(log.identities()).first_users()
    requests, rows = joined(requests, rows, first_users)
    if now is None:
        now = max([plan.since, newest or 0, *log_rows.select(pl.max(RECEIVED_AT).fill_null(0)).to_series()])
    now = now if until is None else min(now, until)  # an outcome that is open at the end stays open
    users = request_outcomes(requests, EventLabeler.from_spec(candidate.spec).label(rows), plan.since, now)
    differs = plan.differences(project.config.release)
    return evaluate(users, plan, bundle=bundle, until=until, now=now, differs=differs)


def current(project: Project) -> Verdict | None:
    """Analyze the running experiment; None without one.

    Raises:
        UserError, BundleError: see `analyze`.
    """
    experiments = releases.read_state(project.open_control()).rows_in("experiment")
    return analyze(project, experiments[0].bundle) if experiments else None


def data_start(plan: Plan) -> int:
    """Start of the data that an analysis reads, CUPED included; int64 microseconds."""
    return plan.since - COVARIATE_PERIOD - DAY


def current_verdict(project: Project) -> tuple[Verdict | None, str]:
    """Return `current`, or its error as text; None and empty without an experiment."""
    try:
        return current(project), ""
    except UserError as error:
        return None, str(error)


def period(rows: Sequence[ReleaseRow], bundle: str) -> Period:
    """Find a bundle's newest experiment.

    Raises:
        UserError: the bundle was never in an experiment, or its row has no plan.
    """
    starts = [row for row in rows if row.to == "experiment" and bundle in {"", row.bundle}]
    if not starts:
        fix = "recloop promote BUNDLE --to experiment"
        raise UserError("bundle", bundle or "none", "a bundle that is or was in an experiment", fix)
    plan = Plan.from_row(starts[-1])
    # A refresh of the candidate keeps the plan, so the experiment has one row per bundle.
    experiment_rows = [
        row for row in rows if row.to == "experiment" and row.evidence.get(EVIDENCE) == plan.to_evidence()
    ]
    names = {row.bundle for row in experiment_rows}
    newest = experiment_rows[-1]
    ends = [
        row.at
        for row in rows
        if row.generation > experiment_rows[0].generation
        and (_moves_live(row) or (row.bundle in names and row.generation > newest.generation))
    ]
    return Period(newest.bundle, newest, plan, min(ends, default=None))


def _moves_live(row: ReleaseRow) -> bool:
    """Return True if a bundle of another recipe became live, which ends experiments."""
    return row.to == "live" and not row.evidence.get(REFRESH)


@dataclass(frozen=True)
class Table:
    """Outcome columns, one value per user in order of entry: each (U,)."""

    treated: np.ndarray
    columns: dict[str, Floats]

    @classmethod
    def from_outcomes(cls, entered: pl.DataFrame) -> Table:
        """Select the columns that `METRICS` name from `request_outcomes`."""
        names = {name for metric in METRICS for name in (metric.top, metric.bottom) if name} | {"requests"}
        columns = {
            name: entered[name].to_numpy().astype(np.float64)
            for column in sorted(names)
            for name in (column, f"before_{column}")
        }
        return cls((entered["arm"] == "candidate").to_numpy(), columns)

    def first(self, users: int) -> Table:
        """Select the first users to enter."""
        return Table(self.treated[:users], {name: values[:users] for name, values in self.columns.items()})

    @property
    def arms(self) -> Arms:
        """Number of users in each arm."""
        treated = int(self.treated.sum())
        return Arms(live=len(self.treated) - treated, candidate=treated)


def evaluate(
    users: pl.DataFrame,
    plan: Plan,
    *,
    bundle: str = "",
    until: int | None = None,
    now: int = 0,
    differs: Sequence[str] = (),
) -> Verdict:
    """Decide the verdict from `request_outcomes`.

    It is ``running`` until both arms have outcomes.
    """
    counts = {arm: int((users["arm"] == arm).sum()) for arm in ARMS}
    e = sample_ratio([counts[arm] for arm in ARMS], [1 - plan.share, plan.share])
    ratio = SampleRatio(counts, plan.share, plain(e) or 0.0, e > SAMPLE_RATIO_ALARM)
    table = Table.from_outcomes(users.filter(~pl.col("waiting")))
    arms = table.arms
    has_both_arms = bool(arms.live and arms.candidate)
    metrics = measure_all(table, plan) if has_both_arms else {}
    looks = interim_analyses(table, plan) if has_both_arms else []
    finding: Finding = decide(plan, ratio, metrics, looks)
    return Verdict(
        bundle=bundle, since=plan.since, until=until, now=now, plan=plan, differs=list(differs),
        users=Arms(arms.live, arms.candidate, int(users["waiting"].sum())), sample_ratio=ratio, metrics=metrics,
        looks=looks, **msgspec.structs.asdict(finding),
    )  # fmt: skip


def measure_all(table: Table, plan: Plan) -> dict[str, Measured]:
    """Measure each metric present in the log; secondary ones with Holm-adjusted p."""
    measured: dict[str, Measured] = {}
    for metric in METRICS:
        if table.columns[metric.top].any():
            kind: Kind = "primary" if metric.name == plan.metric else metric.kind
            measured[metric.name] = _measure(measure(table, metric), metric, kind, plan)
    secondary = [name for name, metric_result in measured.items() if metric_result.kind == "secondary"]
    adjusted = holm([1.0 if (p := measured[name].p) is None else p for name in secondary])
    for name, p in zip(secondary, adjusted, strict=True):
        measured[name] = msgspec.structs.replace(measured[name], p_holm=plain(p))
    return measured


def _measure(arm_difference: Effect, metric: ExperimentMetric, kind: Kind, plan: Plan) -> Measured:
    alpha = plan.alpha / GUARDRAILS if kind == "guardrail" else plan.alpha
    low, high = arm_difference.interval(alpha)
    always_low, always_high = arm_difference.sequence(alpha, plan.users)
    base = abs(arm_difference.live) or math.nan
    return Measured(
        kind=kind,
        better="higher" if metric.better > 0 else "lower",
        live=plain(arm_difference.live),
        candidate=plain(arm_difference.candidate),
        delta=plain(arm_difference.delta),
        se=plain(arm_difference.se),
        low=plain(low),
        high=plain(high),
        p=plain(arm_difference.p),
        relative=plain(arm_difference.delta / base),
        relative_low=plain(low / base),
        relative_high=plain(high / base),
        sequence_low=plain(always_low),
        sequence_high=plain(always_high),
        reduction=plain(arm_difference.reduction),
        worse=arm_difference.is_worse(metric.better, metric.slack, metric.absolute, alpha, plan.users),
        unproven=metric.proof
        and not arm_difference.is_within(metric.better, metric.slack, metric.absolute, alpha, plan.users),
    )


def measure(table: Table, metric: ExperimentMetric) -> Effect:
    """Estimate the effect on one metric, with CUPED on the 14 days before."""
    columns = table.columns
    past = columns[f"before_{metric.top}"]
    if metric.bottom is not None:
        bottom = columns[f"before_{metric.bottom}"]
        past = np.divide(past, bottom, out=np.full(len(past), math.nan), where=bottom > 0)
    elif metric.top in {"positives", "value"}:  # undefined for users without a list in that period
        past = np.where(columns["before_requests"] > 0, past, math.nan)
    bottoms = None if metric.bottom is None else columns[metric.bottom]
    return effect(columns[metric.top], table.treated, bottoms, past)


def analysis_sizes(plan: Plan) -> list[int]:
    """Planned number of users at each interim analysis."""
    return [math.ceil(plan.users * (j + 1) / plan.looks) for j in range(plan.looks)]


def interim_analyses(table: Table, plan: Plan) -> list[InterimAnalysis]:
    """Compute the planned looks that are due.

    Look j covers the first ``j / looks`` of the planned users to enter. It depends on these users alone, so a later
    analysis gives the same look.
    """
    metric = next(metric for metric in METRICS if metric.name == plan.metric)
    sizes = analysis_sizes(plan)
    analyses = []
    for size, bound in zip(
        sizes, sequential_bounds(tuple(size / plan.users for size in sizes), plan.alpha), strict=True
    ):
        entered = table.first(size)
        arms = entered.arms
        if arms.live + arms.candidate < size or not (arms.live and arms.candidate):
            break
        arm_difference = measure(entered, metric)
        reach = bound * arm_difference.se
        analyses.append(
            InterimAnalysis(
                users=size,
                share=size / plan.users,
                live=arm_difference.live,
                delta=arm_difference.delta,
                low=arm_difference.delta - reach,
                high=arm_difference.delta + reach,
                z=plain(arm_difference.z),
                bound=bound,
                crossed=abs(arm_difference.z) > bound,
            )
        )
    return analyses
