"""The experiment: two arms, users at random, and what they did with the lists they got (definitions, section 9).

    found = experiment.compare(project, planned=4_000)     # verdict, metrics, looks, sample ratio, guardrails

Planned looks decide; the confidence sequence beside each number may be looked at any time. What counts for whom is said
in `recloop.watch.outcomes`, the formulas in `recloop.watch.effects`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import polars as pl

from recloop import bundle as bundles
from recloop.backends import open_control, open_decisions, open_log
from recloop.backends.archive import Archive
from recloop.backends.control import ReleaseRow
from recloop.config import Project
from recloop.errors import UserError
from recloop.features.signal import Signal
from recloop.intervals import holm, plain
from recloop.records import (
    DAY,
    EVENT_SCHEMA,
    RECEIVED_AT,
    RULE,
    TIMESTAMP,
)
from recloop.watch.effects import ALARM, ALPHA, Effect, bounds, effect, sample_ratio
from recloop.watch.outcomes import ARMS, BEFORE, outcomes


@dataclass(frozen=True)
class Metric:
    """One number of the table: ``top`` a user, divided by ``bottom`` where it is a ratio; ``better`` -1: less is.

    A guardrail is broken when all of its interval is a relative loss of more than ``slack``.
    """

    name: str
    kind: Literal["primary", "secondary", "guardrail"]
    top: str
    bottom: str | None = None
    better: int = 1
    slack: float = 0.0


METRICS: Final = (
    Metric("hit_rate", "primary", "hits", "requests"),
    Metric("clicks_per_request", "secondary", "clicks", "requests"),
    Metric("positives_from_lists", "secondary", "positives"),
    Metric("value_from_lists", "secondary", "value"),
    Metric("positives", "guardrail", "all_positives"),
    Metric("dislikes", "guardrail", "dislikes", better=-1),
    Metric("micros_per_request", "guardrail", "micros", "requests", better=-1, slack=0.2),
)
"""``hit_rate``: requests with an event credited to their list; ``positives`` counts those that no list is credited with too."""


def compare(
    project: Project,
    bundle: str = "",
    *,
    planned: int | None = None,
    looks: int = 4,
    share: float | None = None,
    now: int | None = None,
) -> dict[str, Any]:
    """The two arms of a bundle's experiment.

    Args:
        bundle: The candidate; empty: the one that entered an experiment last.
        planned: Users of both arms at which it ends; None: it ends now, one look.
        looks: Planned looks, at equal steps of ``planned``.
        share: Of the users who get the candidate; None: ``release.experiment``.
        now: int64 microseconds; None: the newest decision or row received.

    Raises:
        UserError: this bundle was never in an experiment, or an arm has no user yet.
        BundleError: its bytes are no longer what was registered.
    """
    control = open_control(project.config.stores.control, project.root)
    row, until = period(control.releases(), bundle)
    own = bundles.load(project.bundles / row.bundle, row.sha256)
    store = open_decisions(project.config.stores.decisions, project.root)
    log = open_log(project.config.stores.log, project.root)
    try:
        decisions = [one for one in store.rows(since=row.at - BEFORE - DAY, until=until) if one.role == "answer"]
        newest = store.rows(last=1)
        archive = Archive(project.data)
        later = log.events(after=archive.watermark).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
        rows = pl.concat([archive.events(), later]).filter(pl.col(TIMESTAMP) >= row.at - BEFORE - DAY)
    finally:
        store.close()
        log.close()
    if now is None:
        now = max([row.at, *(one.at for one in newest), *later[RECEIVED_AT].to_list()])
    users = outcomes(decisions, Signal.of(own.spec).label(rows), row.at, now)
    found = judge(users, project.config.release.experiment if share is None else share, planned, looks)
    return {"bundle": row.bundle, "since": row.at, "until": until, "now": now, **found}


def period(rows: Sequence[ReleaseRow], bundle: str) -> tuple[ReleaseRow, int | None]:
    """The row that began a bundle's newest experiment, and when it ended; None: it runs.

    Raises:
        UserError: there was none.
    """
    began = [row for row in rows if row.to == "experiment" and bundle in {"", row.bundle}]
    if not began:
        try_ = "recloop promote BUNDLE --to experiment"
        raise UserError("bundle", bundle or "none", "a bundle that is or was in an experiment", try_)
    row = began[-1]
    # Whatever moves live or this bundle ends it: from then on the arms are not what they were.
    ended = [later.at for later in rows if later.generation > row.generation and _ends(later, row.bundle)]
    return row, min(ended, default=None)


def _ends(row: ReleaseRow, bundle: str) -> bool:
    return row.bundle == bundle or row.to == "live"


def judge(users: pl.DataFrame, share: float, planned: int | None = None, looks: int = 4) -> dict[str, Any]:
    """The verdict over the table of `outcomes`.

    ``verdict``: ``invalid`` (the arms did not get their shares), ``worse`` or ``better`` (the primary metric passed a planned
    look's bound, or a guardrail's whole interval is a loss at alpha / number of guardrails), ``running`` (looks are left),
    ``cannot tell``.

    Raises:
        UserError: an arm without a user whose outcome is closed.
    """
    seen = {arm: int((users["arm"] == arm).sum()) for arm in ARMS}
    e = sample_ratio([seen[arm] for arm in ARMS], [1 - share, share])
    entered = users.filter(~pl.col("waiting") & ~pl.col("crossed"))
    count = {arm: int((entered["arm"] == arm).sum()) for arm in ARMS}
    for arm in ARMS:
        if not count[arm]:
            raise UserError(arm, "no user", "users in both arms whose 24 hours are over", "recloop status")
    guards = [one for one in METRICS if one.kind == "guardrail"]
    table: dict[str, dict[str, Any]] = {}
    for one in METRICS:
        if not (entered[one.top] != 0).any():
            continue  # this log has none of it
        alpha = ALPHA / len(guards) if one.kind == "guardrail" else ALPHA
        better = "higher" if one.better > 0 else "lower"
        table[one.name] = {
            "kind": one.kind,
            "better": better,
            **measure(entered, one).to_json(alpha, one.better, one.slack),
        }
    secondary = [name for name, one in table.items() if one["kind"] == "secondary"]
    adjusted = holm([1.0 if table[name]["p"] is None else table[name]["p"] for name in secondary])
    for name, p in zip(secondary, adjusted, strict=True):
        table[name]["p_holm"] = plain(p)
    taken = take_looks(entered, planned, looks)
    verdict, why = decide(taken, table, e, planned is not None and len(taken) < looks)
    return {
        "users": {**count, "waiting": int(users["waiting"].sum()), "crossed": int(users["crossed"].sum())},
        "sample_ratio": {"counts": seen, "share": share, "e": plain(e), "alarm": e > ALARM},
        "metrics": table,
        "looks": taken,
        "verdict": verdict,
        "why": why,
    }


def measure(entered: pl.DataFrame, metric: Metric) -> Effect:
    """The effect on one metric, with CUPED by the same number of the 14 days before."""

    def column(name: str) -> np.ndarray:
        return entered[name].to_numpy().astype(np.float64)

    asked = column("before_requests")
    past = column(f"before_{metric.top}")
    if metric.bottom is not None:
        bottom = column(f"before_{metric.bottom}")
        past = np.divide(past, bottom, out=np.full(len(past), math.nan), where=bottom > 0)
    elif metric.top in {"positives", "value"}:  # credited to a list: who saw none has no past of it
        past = np.where(asked > 0, past, math.nan)
    bottoms = None if metric.bottom is None else column(metric.bottom)
    return effect(column(metric.top), (entered["arm"] == "candidate").to_numpy(), bottoms, past)


def take_looks(entered: pl.DataFrame, planned: int | None, looks: int) -> list[dict[str, Any]]:
    """The planned looks that are due: look j is over the first j / looks of the planned users to enter.

    So a look is the same whenever it is taken, and nobody has to remember the earlier ones.
    """
    sizes = [len(entered)] if planned is None else [math.ceil(planned * (j + 1) / looks) for j in range(looks)]
    found = []
    for size, bound in zip(sizes, bounds([size / sizes[-1] for size in sizes]), strict=True):
        first = entered.head(size)
        if len(first) < size or first["arm"].n_unique() < len(ARMS):
            break
        one = measure(first, METRICS[0])
        reach = bound * one.se
        found.append(
            {
                "users": size, "share": plain(size / sizes[-1]), "delta": plain(one.delta),
                "low": plain(one.delta - reach), "high": plain(one.delta + reach), "z": plain(one.z),
                "bound": plain(bound), "crossed": abs(one.z) > bound,
            }
        )  # fmt: skip
    return found


def decide(
    taken: Sequence[Mapping[str, Any]], table: Mapping[str, Mapping[str, Any]], e: float, left: bool
) -> tuple[str, str]:
    """The verdict and its reason, from looks, metrics and the sample ratio."""
    if e > ALARM:
        return "invalid", f"the arms did not get their shares of the users (e = {e:.3g}): find out why first"
    for name, one in table.items():
        if taken and one["kind"] == "guardrail" and one["worse"]:
            return (
                "worse",
                f"guardrail {name}: {one['live']:.4g} became {one['candidate']:.4g}, all of its interval a loss",
            )
    for look in taken:
        if look["crossed"]:
            which = "better" if look["delta"] > 0 else "worse"
            return which, f"{METRICS[0].name}: z {look['z']:+.2f} passed {look['bound']:.2f} at {look['users']:,} users"
    if left:
        return "running", f"{len(taken)} looks taken, none passed its bound"
    return "cannot tell", "no look passed its bound"
