"""The requirement of a shadow in requests and days: by hand and from stored decisions."""

from __future__ import annotations

import pytest

from recloop.monitoring.shadow_requirement import Requirement, shadow_requirement
from recloop.project import Project


@pytest.mark.parametrize(
    ("scored", "share", "per_day", "days", "said"),
    [
        (0, 0.01, 500.0, 20.0, "at 500 requests a day and 1 %: 20 days; set release.shadow_share"),
        (50, 0.25, 500.0, 0.4, "at 500 requests a day and 25 %: 10 hours"),
        (0, 0.005, 40.0, 500.0, "at 40 requests a day and 0.5 %: 500 days"),
        (0, 0.01, 0.0, None, "no request was answered"),
        (100, 0.01, 0.0, 0.0, "100 requests scored, 100 needed"),
    ],
)
def test_requirement_names_requests_and_days(
    scored: int, share: float, per_day: float, days: float | None, said: str
) -> None:
    need = Requirement(scored, 100, share, per_day)
    assert need.days == (None if days is None else pytest.approx(days))
    assert said in str(need)
    assert need.to_json()["text"] == str(need)


def test_shadow_requirement_without_requests_has_no_days(project: Project) -> None:
    need = shadow_requirement(project, "none", 100)
    assert (need.scored, need.per_day, need.days) == (0, 0.0, None)
