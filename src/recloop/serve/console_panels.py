"""The panels of the console: what stands, health, shadow, experiment, releases, a refusal, a person, each drawn from plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from nicegui import ui

from recloop.errors import Refused, printable
from recloop.monitoring.experiment_verdict import Verdict
from recloop.monitoring.statistics import ALARM
from recloop.monitoring.summary import Windows
from recloop.records import utc_minute

HEALTH: Final = {
    "entropy": "entropy, 0 to 1", "long_tail_share": "long-tail share", "cold_coverage": "cold-start coverage",
    "coverage": "coverage",
}  # fmt: skip
MEASURES: Final = {
    "overlap@10": "overlap@10, 0 to 1", "rbo": "RBO, p = .9, 0 to 1", "tau_b": "tau-b, -1 to 1",
    "percentile": "percentile of live's first 10, 0 to 1",
}  # fmt: skip
METRICS: Final = {
    "hit_rate": "hit rate", "clicks_per_request": "clicks a request", "positives_from_lists": "positives from lists, a user",
    "value_from_lists": "value from lists, a user", "positives": "positives, a user", "dislikes": "dislikes, a user",
    "micros_per_request": "time of an answer, µs", "unanswered": "requests the candidate could not answer",
}  # fmt: skip


def standing(status: Mapping[str, Any]) -> None:
    """Is it well, what is live, what is tried."""
    well = not status["degraded"]
    with ui.row().classes("items-center gap-x-6 gap-y-2"):
        said = "well" if well else "degraded: " + ", ".join(status["degraded"])
        ui.badge(said, color="green" if well else "red").props("data-testid=well")
        ui.label(f"live: {status['live']}").props("data-testid=live").classes("break-all")
        for state in ("shadow", "experiment"):
            ui.label(f"in the {state}: {status[state] or 'nothing'}").classes("break-all")
        ui.label(proof(status["verify"])).props("data-testid=verify")


def proof(found: Mapping[str, int] | None) -> str:
    """The last `recloop verify` in a few words."""
    if found is None:
        return "verify: not run yet"
    return f"verify: {found['unexplained']:,} of {found['checked']:,} differ unexplained, {utc_minute(found['at'])} UTC"


def health(windows: Windows) -> None:
    """The lists of the last hour, day and week."""
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
        ["requests", "events", *HEALTH.values(), "answered by"],
        rows,
        wide=("answered by",),
    )


def answered_by(numbers: Mapping[str, Any]) -> str:
    """The bundles behind these numbers, with their requests where there are several."""
    bundles: Mapping[str, int] = numbers["bundles"]
    if len(bundles) == 1:
        return next(iter(bundles))
    return ", ".join(f"{name} ({count:,})" for name, count in bundles.items())


def releases(moves: Sequence[Mapping[str, Any]]) -> None:
    """The release table, newest move first."""
    columns = ["generation", "at (UTC)", "bundle", "from", "to", "by", "reason"]
    rows = [
        [
            one["generation"],
            utc_minute(one["at"]),
            one["bundle"],
            one["from"],
            one["to"],
            one["by"],
            printable(one["reason"]),
        ]
        for one in reversed(moves)
    ]
    _table("Releases, newest first", columns, [], rows, wide=("reason",))


def shadow(found: Mapping[str, Any]) -> None:
    """How a candidate agrees with live, beside the noise floor, and what both show."""
    twin, latency = found["twin"], found["latency"]
    same = "the same list each time" if not twin["different"] else f"ANOTHER list {twin['different']:,} times"
    ui.label(f"candidate {found['candidate']} beside live {found['live']}").classes("break-all")
    ui.label(
        f"{found['requests']:,} requests of {found['users']:,} users. Live, asked again {twin['requests']:,} times, gave "
        f"{same}. A list takes {_millis(latency['live'])} from live, {_millis(latency['candidate'])} from the candidate."
    ).props("data-testid=twin")
    noise = found["noise"] or {}
    rows = [
        [said, *_interval(found["agreement"][name]), *_interval(noise.get(name))] for name, said in MEASURES.items()
    ]
    columns = ["agreement", "95 % interval", "noise floor (live by another seed)", "95 % interval"]
    _table("", ["measure"], columns, rows)
    both = [[arm, *_health(found["shown"][arm])] for arm in ("live", "candidate")]
    _table("", ["shown over these requests"], list(HEALTH.values()), both)


def experiment(found: Verdict) -> None:
    """The verdict, the plan, the looks taken, the sample ratio and every metric of both arms."""
    users, ratio, plan = found.users, found.sample_ratio, found.plan
    ui.label(f"{found.verdict}: {found.why}").props("data-testid=verdict").classes("font-bold")
    ui.label(
        f"Plan, fixed at the start: {plan.metric} over {plan.users:,} users, {plan.looks} looks, {plan.share:.0%} of the users, "
        f"margin {plan.margin:.2g}. No harm above the margin: {'shown' if found.no_harm else 'not shown'}."
    ).props("data-testid=plan")
    for line in found.differs:
        ui.label(f"The plan holds: {line}").props("data-testid=differs").classes("text-negative")
    ui.label(
        f"Users whose 24 h are over: live {users.live:,}, candidate {users.candidate:,}; {users.waiting:,} wait. "
        f"Sample ratio: {ratio.counts['live']:,} to {ratio.counts['candidate']:,} where {1 - ratio.share:.0%} to "
        f"{ratio.share:.0%} was asked for, e = {_number(ratio.e)}, alarm above {ALARM:,.0f}: "
        f"{'ALARM' if ratio.alarm else 'none'}."
    ).props("data-testid=ratio")
    rows = [
        [METRICS.get(name, name), one.kind, _number(one.live), _number(one.candidate), _signed(one.delta),
         _range(one.sequence_low, one.sequence_high)]
        for name, one in found.metrics.items()
    ]  # fmt: skip
    _table("", ["metric", "kind"], ["live", "candidate", "difference", "confidence sequence"], rows)
    looks = [
        [f"{look.users:,}", _signed(look.delta), _range(look.low, look.high), _signed(look.z),
         _number(look.bound)]
        for look in found.looks
    ]  # fmt: skip
    if looks:
        _table("", ["planned look, users"], ["difference", "repeated interval", "z", "bound"], looks)


def refused(error: Refused) -> None:
    """A move that was not made: the gate, its number, its threshold."""
    row = [error.gate, printable(error.number), str(error.threshold), error.reason]
    with ui.column().classes("w-full gap-1").props("data-testid=refused"):
        _table(
            "Refused; nothing has moved", ["gate", "number", "threshold", "why"], [], [row], wide=("threshold", "why")
        )


def person(found: Mapping[str, Any]) -> None:
    """What is known of a person, the list they would get now with the source of each item, and their history."""
    ui.label(found["facts"]).props("data-testid=facts")
    with ui.row().classes("w-full items-start gap-8"):
        with ui.column().classes("boxed").props("data-testid=list"):
            _table("List now", ["#", "item", "source"], ["score"], found["list"])
        with ui.column().classes("boxed").props("data-testid=history"):
            rows = [[utc_minute(at), item] for at, item in found["history"]]
            _table("History, newest first", ["at (UTC)", "item"], [], rows)


def _table(
    title: str, columns: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[Any]], wide: Sequence[str] = ()
) -> None:
    """A table that scrolls in its own box; ``numbers`` are columns too, to the right of the others and right-aligned."""
    heads = [*columns, *numbers]
    with ui.column().classes("boxed gap-1"):
        if title:
            ui.label(title).classes("text-lg font-bold")
        ui.table(
            columns=[
                {"name": str(n), "label": head, "field": str(n), "align": "left" if n < len(columns) else "right",
                 "classes": "wide" if head in wide else ""}
                for n, head in enumerate(heads)
            ],
            rows=[{"id": place, **{str(n): cell for n, cell in enumerate(row)}} for place, row in enumerate(rows)],
            row_key="id",
        ).classes("max-w-full").props("dense flat bordered")  # fmt: skip


def _health(numbers: Mapping[str, Any]) -> list[str]:
    return [_number(numbers["entropy"]), *(_share(numbers[name]) for name in HEALTH if name != "entropy")]


def _interval(one: Mapping[str, float | None] | None) -> tuple[str, str]:
    if one is None or one["value"] is None:
        return "-", "-"
    return _number(one["value"]), f"{_number(one['low'])} to {_number(one['high'])}"


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


def _millis(micros: float | None) -> str:
    return "-" if micros is None else f"{micros / 1_000:.1f} ms"
