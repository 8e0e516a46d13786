"""Shadow requirement: requests needed and estimated days at recent traffic."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Final

from recloop.files import JsonTree
from recloop.project import Project
from recloop.records import DAY

TRAFFIC_PERIOD: Final = 7 * DAY
"""Microseconds of traffic before the newest response that the estimate uses."""


@dataclass(frozen=True)
class Requirement:
    """Requirement of a bundle in shadow.

    Attributes:
        scored, needed: Requests scored so far, and requests required for an experiment.
        share: Share of users in shadow, `release.shadow_share`.
        per_day: Answered requests per day in the last week of traffic; 0 without traffic.
    """

    scored: int
    needed: int
    share: float
    per_day: float

    @property
    def days(self) -> float | None:
        """Estimated days until met; 0 if met; None (never) without traffic or share."""
        remaining = max(0, self.needed - self.scored)
        rate = self.per_day * self.share
        return remaining / rate if rate else (0.0 if not remaining else None)

    def to_json(self) -> JsonTree:
        """Format for ``recloop status --json`` and the evidence of a move to shadow."""
        days = self.days
        tree = {**asdict(self), "per_day": round(self.per_day, 1), "days": None if days is None else round(days, 2)}
        return {**tree, "text": str(self)}

    def __str__(self) -> str:
        if self.scored >= self.needed:
            return f"{self.scored:,} requests scored, {self.needed:,} needed"
        lead = f"{self.needed:,} requests needed, {self.scored:,} scored"
        if not self.per_day:
            return f"{lead}; no estimate yet: no request was answered"
        days = self.days
        time = "never" if days is None else f"{days * 24:.0f} hours" if days < 2 else f"{math.ceil(days):,} days"
        share = f"{100 * self.share:g} %"
        return f"{lead}; at {self.per_day:,.0f} requests a day and {share}: {time}; set release.shadow_share"


def shadow_requirement(project: Project, bundle: str, needed: int) -> Requirement:
    """Estimate a bundle's shadow requirement from the decisions of the last week."""
    with project.open_decisions() as store:
        count, first, last = store.traffic(TRAFFIC_PERIOD)
        days = max(last - first, DAY // 24) / DAY
        return Requirement(store.shadow_requests(bundle), needed, project.config.release.shadow_share, count / days)
