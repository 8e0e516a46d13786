"""HTML page of ``recloop doctor --out FILE``.

One file with pictures as inline SVG; it loads nothing from other hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Final

from markupsafe import Markup, escape

from recloop.data.doctor.profile import LogProfile
from recloop.data.doctor.report import Report
from recloop.data.doctor.warnings import percent
from recloop.files import replace_file
from recloop.html import load_template

PAGE: Final = "page.html"
MAX_BARS: Final = 120  # a longer log has several days in a bar
WIDTH: Final = 720  # user units of a picture; the page scales it
HEIGHT: Final = 180
LABEL_WIDTH: Final = 50
MARGIN: Final = (8, 8, 34, 52)  # top, right, bottom, left


def write_page(log_report: Report, title: str, file: Path) -> None:
    """Write the page of a report with checks."""
    replace_file(file, page(log_report, title))


def page(log_report: Report, title: str) -> str:
    """Render the page; equal reports give identical bytes."""
    template = load_template(Path(__file__).parent / PAGE, {"percent": percent, "amount": "{:,}".format})
    checks = log_report.checks
    profile = None if checks is None else checks.profile
    return template.render(
        report=log_report,
        checks=checks,
        profile=profile,
        title=title,
        pictures=[] if profile is None else pictures(profile),
    )


def pictures(profile: LogProfile) -> list[tuple[str, Markup, str]]:
    """Title, picture and sentence of each chart."""
    counts, labels, days = _binned(profile)
    unit = "day" if days == 1 else f"{days} days"
    empty = f"{profile.empty_days:,} days have no event." if profile.empty_days else "Every day has events."
    hours = [f"{hour} h" for hour in range(24)]
    busiest = profile.per_hour.index(max(profile.per_hour))
    users = profile.histories
    n_users = max(1, sum(users.values()))
    top_tenth = percent(profile.top_share["10 %"])
    return [
        (
            f"Events per {unit}",
            bars(counts, labels, f"rows per {unit}", every=max(1, len(counts) // 6)),
            f"{empty} A fall to a lower level often means that a tracker was changed.",
        ),
        (
            "Events by hour",
            bars(profile.per_hour, hours, "rows by hour of the day", every=4),
            f"Hours in {profile.timezone}; the busiest starts at {busiest} h. A peak at night often means a wrong time zone.",
        ),
        (
            "Length of histories",
            bars(list(users.values()), list(users), "users by number of positive rows"),
            f"{percent(users['1'] / n_users)} of users have one positive row: nothing is known before it.",
        ),
        (
            "Most frequent items",
            named_bars(profile.top_items),
            f"The most frequent tenth of items has {top_tenth} of the positive rows; {profile.single_items:,} items have one.",
        ),
    ]


def named_bars(counts: Sequence[tuple[str, int]]) -> Markup:
    """Horizontal bars with a name and a number each, as an HTML list."""
    highest = max((count for _, count in counts), default=1)
    lines = [
        f'<li><span>{escape(name)}</span><span>{count:,}</span><i style="width: {100 * count / highest:.1f}%"></i></li>'
        for name, count in counts
    ]
    return Markup(f'<ul class="bars">{"".join(lines)}</ul>')  # noqa: S704 - names are escaped above


def _binned(profile: LogProfile) -> tuple[list[int], list[str], int]:
    """Rows per bin, label of each bin, and days in a bin."""
    days = -(-len(profile.per_day) // MAX_BARS)
    first = date.fromisoformat(profile.first_day)
    starts = range(0, len(profile.per_day), days)
    counts = [sum(profile.per_day[start : start + days]) for start in starts]
    return counts, [(first + timedelta(days=start)).isoformat() for start in starts], days


def bars(counts: Sequence[int], labels: Sequence[str], title: str, every: int = 1) -> Markup:
    """Bar chart as inline SVG; the numbers show on hover.

    Args:
        every: Bars from one label to the next.
    """
    top, right, bottom, left = MARGIN
    inner_width, inner_height = WIDTH - left - right, HEIGHT - top - bottom
    highest = max(1, *counts)
    step = inner_width / max(1, len(counts))
    shapes = []
    for number, (count, label) in enumerate(zip(counts, labels, strict=True)):
        height = inner_height * count / highest
        x, y = left + number * step, top + inner_height - height
        shapes.append(
            f'<rect x="{x + step * 0.1:.1f}" y="{y:.1f}" width="{step * 0.8:.1f}" height="{height:.1f}">'
            f"<title>{escape(label)}: {count:,}</title></rect>"
        )
        if number % every == 0 and (every == 1 or x < WIDTH - LABEL_WIDTH):
            shapes.append(f'<text x="{x + step / 2:.1f}" y="{HEIGHT - 14}" text-anchor="middle">{escape(label)}</text>')
    base = top + inner_height
    axis = (
        f'<line x1="{left}" y1="{base}" x2="{WIDTH - right}" y2="{base}"/>'
        f'<line class="grid" x1="{left}" y1="{top}" x2="{WIDTH - right}" y2="{top}"/>'
        f'<text x="{left - 6}" y="{top + 9}" text-anchor="end">{highest:,}</text>'
        f'<text x="{left - 6}" y="{base}" text-anchor="end">0</text>'
    )
    body = "".join(shapes)
    return Markup(  # noqa: S704 - labels are escaped above
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{axis}{body}</svg>'
    )
