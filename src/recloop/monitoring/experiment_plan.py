"""The plan of an experiment, fixed in the release row that starts it.

    plan = Plan.of(project.config.release, salt="sasrec-...", since=now)
    evidence = {"experiment": plan.to_evidence()}      # of the row; serving and analysis read it back: Plan.from_row(row)

A changed `recloop.toml` does not change a running experiment; `Plan.differences` names the keys that differ.
"""

from __future__ import annotations

from typing import Final

import msgspec

from recloop.config import Release
from recloop.errors import UserError
from recloop.json_object import JsonTree
from recloop.storage.control import ReleaseRow

EVIDENCE: Final = "experiment"
"""Key of the plan in the evidence of a release row."""
REFRESH: Final = "refresh_of"
"""Key in the evidence of a row that replaces a bundle by a child of the same recipe: the id of the parent. Such a move of live
ends no experiment; such a move of the candidate carries the plan of its parent's row, so that no user moves."""
MIN_LOOK_USERS: Final = 100
"""Expected users of the smaller arm at the first look: a look rests on a normal limit."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that the verdict of an experiment depends on besides the users' outcomes.

    Attributes:
        share: Share of the users whose requests the candidate answers, in (0, 1).
        metric: Name of the primary metric.
        users: Horizon: users of both arms with a closed outcome at the last look.
        looks: Number of planned looks, at equal steps of ``users``.
        margin: Largest relative loss of the primary metric that counts as no harm.
        alpha: Two-sided error of all looks together, and of the confidence sequence.
        salt: Of the hash that draws the arms: ``arm:SALT``.
        since: int64 microseconds; requests from then on belong to the experiment.
    """

    share: float
    metric: str
    users: int
    looks: int
    margin: float
    alpha: float
    salt: str
    since: int

    @classmethod
    def of(cls, settings: Release, salt: str, since: int) -> Plan:
        """The plan that the configuration asks for now.

        Raises:
            UserError: an arm gets no user, or too few users before the first look.
        """
        plan = cls(share=settings.experiment, salt=salt, since=since, **settings.plan.model_dump())
        if not 0 < plan.share < 1:
            expected = "a share above 0 and below 1: each arm needs users"
            raise UserError("release.experiment", plan.share, expected, "edit release.experiment in recloop.toml")
        smaller = min(plan.share, 1 - plan.share)
        if plan.users / plan.looks * smaller < MIN_LOOK_USERS:
            least = -(-MIN_LOOK_USERS * plan.looks // smaller)
            expected = f"at least {least:.0f} for {plan.looks} looks at a share of {plan.share:g}"
            raise UserError("release.plan.users", plan.users, expected, "edit release.plan in recloop.toml")
        return plan

    @classmethod
    def from_row(cls, row: ReleaseRow) -> Plan:
        """The plan in a release row.

        Raises:
            UserError: the row holds none, or another version's.
        """
        found = row.evidence.get(EVIDENCE)
        if found is None:
            expected = "an experiment whose release row holds its plan; an earlier version started this one"
            raise UserError("experiment", row.bundle, expected, f"recloop refuse {row.bundle} --reason 'no plan'")
        try:
            return msgspec.convert(found, cls)
        except msgspec.ValidationError as error:
            fix = f"recloop refuse {row.bundle} --reason 'plan of another version'"
            raise UserError("experiment", row.bundle, f"a plan that this version reads ({error})", fix) from None

    def to_evidence(self) -> JsonTree:
        """The plan as JSON, for the release row."""
        found: JsonTree = msgspec.to_builtins(self)
        return found

    def differences(self, settings: Release) -> list[str]:
        """The keys of ``[release]`` that differ from this plan, each with both values; the plan holds."""
        wanted = {"release.experiment": settings.experiment}
        wanted |= {f"release.plan.{name}": value for name, value in settings.plan.model_dump().items()}
        planned = {key: getattr(self, _field(key)) for key in wanted}
        return [
            f"{key} = {planned[key]} in this experiment, {value} in recloop.toml"
            for key, value in wanted.items()
            if value != planned[key]
        ]


def _field(key: str) -> str:
    return "share" if key == "release.experiment" else key.removeprefix("release.plan.")
