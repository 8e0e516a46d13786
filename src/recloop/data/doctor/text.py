"""Terminal rendering of the doctor's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import rich.console
import rich.table
import rich.text

from recloop.data.doctor.checks import LogChecks
from recloop.data.doctor.profile import LogProfile
from recloop.data.doctor.report import Report
from recloop.data.doctor.warnings import percent

BLOCKS: Final = " ▁▂▃▄▅▆▇█"
SPARK_WIDTH: Final = 60
VERDICT_STYLES: Final = {"little": "yellow", "not enough": "red"}


def render(log_report: Report) -> rich.console.Group:
    """Render a report for the terminal."""
    table = rich.table.Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("read", f"{log_report.read:,}", "rows")
    table.add_row("kept", f"{log_report.kept:,}", "")
    for rule, rows in log_report.removed.items():
        table.add_row("removed", f"{rows:,}", f"by {rule}")
    if log_report.returns.rows:
        returns = log_report.returns
        table.add_row("returns", f"{returns.rows:,}", f"of the kept rows; they undo {returns.undone:,} others")
    table.add_row("rejected", f"{log_report.rejected:,}", "could not be read" if log_report.rejected else "")
    table.add_row("users", f"{log_report.users:,}", "")
    if log_report.guests.rows:
        table.add_row(
            "guests", f"{log_report.guests.baskets:,}", f"baskets without a user ({log_report.guests.rows:,} rows)"
        )
    table.add_row("items", f"{log_report.items:,}", "")
    table.add_row("moments", f"{log_report.moments:,}", "rows of one user at one time")
    table.add_row("span", f"{log_report.span.days:,.0f} days", f"{log_report.span.first} .. {log_report.span.last}")
    table.add_row("repeats", percent(log_report.repeats), "of positive acts: the user had the item before")
    if len(log_report.event_types) > 1:
        for name, facts in log_report.event_types.items():
            table.add_row("type", f"{facts.rows:,}", f"{name}: {log_report.event_classes[name]}")
    lines: list[Any] = [rich.text.Text(log_report.info), table]
    if log_report.checks is not None:
        lines += _checks(log_report.checks)
    lines += [rich.text.Text(f"! {warning}", style="yellow") for warning in log_report.warnings]
    lines += [rich.text.Text(f"- {note}", style="dim") for note in log_report.notes]
    return rich.console.Group(*lines)


def _checks(checks: LogChecks) -> list[Any]:
    blocks: list[Any] = []
    if checks.profile is not None:
        blocks += ["", _profile(checks.profile), *map(rich.text.Text, _shares(checks.profile))]
    enough = ", ".join(job.name for job in checks.jobs if job.verdict == "enough")
    blocks += ["", rich.text.Text.assemble(("enough for ", "bold"), (enough or "nothing yet", "green"))]
    lacking = [job for job in checks.jobs if job.verdict != "enough"]
    if lacking:
        table = rich.table.Table(box=None, pad_edge=False)
        for column in ("not yet", "verdict", "has", "needs", "meanwhile"):
            table.add_column(column, overflow="fold")
        for job in lacking:
            verdict = rich.text.Text(job.verdict, style=VERDICT_STYLES[job.verdict])
            table.add_row(job.name, verdict, *map(rich.text.Text, (job.has, job.needs, job.meanwhile)))
        blocks.append(table)
    return [*blocks, ""]


def _profile(profile: LogProfile) -> rich.table.Table:
    table = rich.table.Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(no_wrap=True)
    table.add_column(style="dim")
    table.add_row("per day", _sparkline(profile.per_day), f"at most {max(profile.per_day):,} rows a day")
    table.add_row("per hour", _sparkline(profile.per_hour), f"0 to 23 h, {profile.timezone}")
    return table


def _shares(profile: LogProfile) -> tuple[str, str]:
    """Lines of the lengths of histories and of the popularity of items."""
    users = ", ".join(f"{size}: {count:,}" for size, count in profile.histories.items() if count)
    shares = ", ".join(f"{name} of items {percent(share)}" for name, share in profile.top_share.items())
    return (
        f"users by positive rows: {users}",
        f"share of positive rows: {shares}; {profile.single_items:,} items have one row",
    )


def _sparkline(counts: Sequence[int]) -> str:
    """One character per bin; several days share a bin in a long log."""
    width = -(-len(counts) // SPARK_WIDTH)
    bins = [sum(counts[start : start + width]) for start in range(0, len(counts), width)]
    highest = max(1, *bins)
    return "".join(BLOCKS[-(-count * (len(BLOCKS) - 1) // highest)] for count in bins)
