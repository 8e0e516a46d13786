"""Console panels: status, list health, shadow, experiment, releases and one user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from nicegui import ui

from recloop.errors import Refused, printable
from recloop.monitoring.experiment_verdict import Verdict
from recloop.monitoring.statistics import SAMPLE_RATIO_ALARM
from recloop.monitoring.summary import Windows
from recloop.records import utc_minute

HEALTH_LABELS: Final = {
    "entropy": "entropy, 0 to 1", "long_tail_share": "long-tail share", "cold_coverage": "cold-start coverage",
    "coverage": "coverage",
}  # fmt: skip
AGREEMENT_LABELS: Final = {
    "overlap@10": "overlap@10, 0 to 1", "rbo": "RBO, p = 0.9, 0 to 1", "tau_b": "tau-b, -1 to 1",
    "percentile": "percentile of live's first 10, 0 to 1",
}  # fmt: skip
METRIC_LABELS: Final = {
    "hit_rate": "hit rate", "clicks_per_request": "clicks per request",
    "positives_from_lists": "positives from lists per user", "value_from_lists": "value from lists per user",
    "positives": "positives per user", "dislikes": "dislikes per user", "latency_us_per_request": "response time, µs",
    "unanswered": "requests without a candidate list",
}  # fmt: skip


def overview(status: Mapping[str, Any]) -> None:
    """Show health, the live bundle, and the bundles in shadow and experiment."""
    healthy = not status["degraded"]
    with ui.row().classes("items-center gap-x-6 gap-y-2"):
        text = "healthy" if healthy else "degraded: " + ", ".join(status["degraded"])
        ui.badge(text, color="green" if healthy else "red").props("data-testid=well")
        ui.label(f"live: {status['live']}").props("data-testid=live").classes("break-all")
        for state in ("shadow", "experiment"):
            ui.label(f"{state}: {status[state] or 'none'}").classes("break-all")
        ui.label(last_verification(status["verify"])).props("data-testid=verify")


def last_verification(verification: Mapping[str, int] | None) -> str:
    """Summarize the last `recloop verify`."""
    if verification is None:
        return "verify: not run yet"
    return f"verify: {verification['unexplained']:,} of {verification['checked']:,} with an unexplained difference, {utc_minute(verification['at'])} UTC"


def health(windows: Windows) -> None:
    """Show list health over the last hour, day and week."""
    rows = [
        [
            window,
            variant,
            placement,
            f"{numbers['requests']:,}",
            f"{numbers['events']:,}",
            *_health(numbers),
            answered_by(numbers),
        ]
        for window, variants in windows.items()
        for variant, placements in variants.items()
        for placement, numbers in placements.items()
    ]
    _table(
        "Health of the lists",
        ["window", "variant", "placement"],
        ["requests", "events", *HEALTH_LABELS.values(), "answered by"],
        rows,
        wide=("answered by",),
    )


def answered_by(numbers: Mapping[str, Any]) -> str:
    """Name the bundles of these numbers, with request counts if there are several."""
    bundles: Mapping[str, int] = numbers["bundles"]
    if len(bundles) == 1:
        return next(iter(bundles))
    return ", ".join(f"{name} ({count:,})" for name, count in bundles.items())


def releases(moves: Sequence[Mapping[str, Any]]) -> None:
    """Show the release table, newest move first."""
    columns = ["generation", "at (UTC)", "bundle", "from", "to", "by", "reason"]
    rows = [
        [
            move["generation"],
            utc_minute(move["at"]),
            move["bundle"],
            move["from"],
            move["to"],
            move["by"],
            printable(move["reason"]),
        ]
        for move in reversed(moves)
    ]
    _table("Releases, newest first", columns, [], rows, wide=("reason",))


def shadow(report: Mapping[str, Any]) -> None:
    """Show a shadow candidate's agreement with live, noise floor and list health."""
    replica = report["replica"]
    latency = report["latency"]
    equality = (
        "equal lists each time" if not replica["different"] else f"a DIFFERENT list {replica['different']:,} times"
    )
    ui.label(f"candidate {report['candidate']}, live {report['live']}").classes("break-all")
    ui.label(
        f"{report['requests']:,} requests of {report['users']:,} users. Live, scored again {replica['requests']:,} times, "
        f"gave {equality}. Time per list: live {_millis(latency['live'])}, candidate {_millis(latency['candidate'])}."
    ).props("data-testid=replica")
    noise = report["noise"] or {}
    rows = [
        [label, *_interval(report["agreement"][name]), *_interval(noise.get(name))]
        for name, label in AGREEMENT_LABELS.items()
    ]
    columns = ["agreement", "95 % CI", "noise floor (live with another seed)", "95 % CI"]
    _table("", ["measure"], columns, rows)
    health_rows = [[arm, *_health(report["shown"][arm])] for arm in ("live", "candidate")]
    _table("", ["lists of these requests"], list(HEALTH_LABELS.values()), health_rows)


def experiment(verdict: Verdict) -> None:
    """Show verdict, plan, interim analyses, sample ratio and metrics of both arms."""
    users = verdict.users
    ratio = verdict.sample_ratio
    plan = verdict.plan
    ui.label(f"{verdict.verdict}: {verdict.why}").props("data-testid=verdict").classes("font-bold")
    ui.label(
        f"Plan, fixed at the start: {plan.metric} over {plan.users:,} users, {plan.looks} interim analyses, "
        f"{plan.share:.0%} of users, margin {plan.margin:.2g}. "
        f"No harm above the margin: {'shown' if verdict.no_harm else 'not shown'}."
    ).props("data-testid=plan")
    for difference in verdict.differs:
        ui.label(f"The plan applies: {difference}").props("data-testid=differs").classes("text-negative")
    ui.label(
        f"Users with a completed 24 h window: live {users.live:,}, candidate {users.candidate:,}; open "
        f"{users.waiting:,}. Sample ratio: {ratio.counts['live']:,} to {ratio.counts['candidate']:,}, planned "
        f"{1 - ratio.share:.0%} to {ratio.share:.0%}, e = {_number(ratio.e)}, alarm above {SAMPLE_RATIO_ALARM:,.0f}: "
        f"{'ALARM' if ratio.alarm else 'none'}."
    ).props("data-testid=ratio")
    rows = [
        [METRIC_LABELS.get(name, name), metric.kind, _number(metric.live), _number(metric.candidate), _signed(metric.delta),
         _range(metric.sequence_low, metric.sequence_high)]
        for name, metric in verdict.metrics.items()
    ]  # fmt: skip
    _table("", ["metric", "kind"], ["live", "candidate", "difference", "confidence sequence"], rows)
    looks = [
        [f"{look.users:,}", _signed(look.delta), _range(look.low, look.high), _signed(look.z),
         _number(look.bound)]
        for look in verdict.looks
    ]  # fmt: skip
    if looks:
        _table("", ["interim analysis, users"], ["difference", "repeated CI", "z", "bound"], looks)


def refused(error: Refused) -> None:
    """Show a refused move: gate, number and threshold."""
    row = [error.gate, printable(error.number), str(error.threshold), error.reason]
    with ui.column().classes("w-full gap-1").props("data-testid=refused"):
        _table(
            "Refused; nothing was changed",
            ["gate", "number", "threshold", "reason"],
            [],
            [row],
            wide=("threshold", "reason"),
        )


def user_panel(panel: Mapping[str, Any]) -> None:
    """Show a user's facts, current list with sources, and history."""
    ui.label(panel["facts"]).props("data-testid=facts")
    with ui.row().classes("w-full items-start gap-8"):
        with ui.column().classes("boxed").props("data-testid=list"):
            _table("List now", ["#", "item", "source"], ["score"], panel["list"])
        with ui.column().classes("boxed").props("data-testid=history"):
            rows = [[utc_minute(timestamp), item] for timestamp, item in panel["history"]]
            _table("History, newest first", ["at (UTC)", "item"], [], rows)


def _table(
    title: str, columns: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[Any]], wide: Sequence[str] = ()
) -> None:
    """Draw a scrollable table; ``numbers`` are right-aligned, after ``columns``."""
    headings = [*columns, *numbers]
    with ui.column().classes("boxed gap-1"):
        if title:
            ui.label(title).classes("text-lg font-bold")
        ui.table(
            columns=[
                {"name": str(n), "label": heading, "field": str(n), "align": "left" if n < len(columns) else "right",
                 "classes": "wide" if heading in wide else ""}
                for n, heading in enumerate(headings)
            ],
            rows=[{"id": index, **{str(n): cell for n, cell in enumerate(row)}} for index, row in enumerate(rows)],
            row_key="id",
        ).classes("max-w-full").props("dense flat bordered")  # fmt: skip


def _health(numbers: Mapping[str, Any]) -> list[str]:
    return [_number(numbers["entropy"]), *(_share(numbers[name]) for name in HEALTH_LABELS if name != "entropy")]


def _interval(estimate: Mapping[str, float | None] | None) -> tuple[str, str]:
    if estimate is None or estimate["value"] is None:
        return "-", "-"
    return _number(estimate["value"]), f"{_number(estimate['low'])} to {_number(estimate['high'])}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{'+' if value >= 0 else ''}{_number(value)}"


def _range(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{_signed(low)} to {_signed(high)}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}".replace("%", " %")


def _millis(latency_us: float | None) -> str:
    return "-" if latency_us is None else f"{latency_us / 1_000:.1f} ms"
