"""Experiment plan, fixed in the release row that starts the experiment.

    plan = Plan.from_config(project.config.release, salt="sasrec-...", since=now)
    evidence = {"experiment": plan.to_evidence()}      # of the row; serving and analysis use Plan.from_row(row)

A changed `recloop.toml` does not change a running experiment; `Plan.differences` names the keys that differ.
"""

from __future__ import annotations

from typing import Final

import msgspec

from recloop.config import Release
from recloop.errors import UserError
from recloop.files import JsonTree
from recloop.storage.control import ReleaseRow

EVIDENCE: Final = "experiment"
"""Key of the plan in the evidence of a release row."""
REFRESH: Final = "refresh_of"
"""Key in the evidence of a row that replaces a bundle by a child of the same recipe: the parent's id.

A refresh of live does not end an experiment. A refresh of the candidate keeps the plan, so that users keep their arm.
"""
MIN_LOOK_USERS: Final = 100
"""Fewest expected users of the smaller arm at the first look, for a normal approximation."""


class Plan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Plan of an experiment: everything besides outcomes that the verdict depends on.

    Attributes:
        share: Share of users whose requests the candidate answers, in (0, 1).
        metric: Name of the primary metric.
        users: Horizon: users of both arms with a closed outcome at the last look.
        looks: Number of planned looks (interim analyses), at equal steps of ``users``.
        margin: Largest relative loss of the primary metric that counts as harmless.
        alpha: Two-sided error of all looks together, and of the confidence sequence.
        salt: Salt of the hash that assigns the arms: ``arm:SALT``.
        since: Start of the experiment, int64 microseconds.
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
    def from_config(cls, settings: Release, salt: str, since: int) -> Plan:
        """Build the plan from the configuration.

        Raises:
            UserError: an arm has no users, or too few before the first look.
        """
        plan = cls(share=settings.experiment_share, salt=salt, since=since, **settings.plan.model_dump())
        if not 0 < plan.share < 1:
            expected = "a share above 0 and below 1, so that each arm has users"
            raise UserError(
                "release.experiment_share", plan.share, expected, "edit release.experiment_share in recloop.toml"
            )
        smaller = min(plan.share, 1 - plan.share)
        if plan.users / plan.looks * smaller < MIN_LOOK_USERS:
            min_users = -(-MIN_LOOK_USERS * plan.looks // smaller)
            expected = f"at least {min_users:.0f} for {plan.looks} looks at a share of {plan.share:g}"
            raise UserError("release.plan.users", plan.users, expected, "edit release.plan in recloop.toml")
        return plan

    @classmethod
    def from_row(cls, row: ReleaseRow) -> Plan:
        """Parse the plan of a release row.

        Raises:
            UserError: the row has no plan, or a plan of another version.
        """
        tree = row.evidence.get(EVIDENCE)
        if tree is None:
            expected = "a plan in the release row; an earlier version of recloop started this experiment"
            raise UserError("experiment", row.bundle, expected, f"recloop reject {row.bundle} --reason 'no plan'")
        try:
            return msgspec.convert(tree, cls)
        except msgspec.ValidationError as error:
            fix = f"recloop reject {row.bundle} --reason 'plan of another version'"
            raise UserError("experiment", row.bundle, f"a plan that this version reads ({error})", fix) from None

    def to_evidence(self) -> JsonTree:
        """Format the plan as JSON for the release row."""
        evidence: JsonTree = msgspec.to_builtins(self)
        return evidence

    def differences(self, settings: Release) -> list[str]:
        """Describe the keys of ``[release]`` that differ from this plan; the plan applies."""
        configured = {"release.experiment_share": settings.experiment_share}
        configured |= {f"release.plan.{name}": value for name, value in settings.plan.model_dump().items()}
        planned = {key: getattr(self, _field(key)) for key in configured}
        return [
            f"{key} = {planned[key]} in this experiment, {value} in recloop.toml"
            for key, value in configured.items()
            if value != planned[key]
        ]


def _field(key: str) -> str:
    return "share" if key == "release.experiment_share" else key.removeprefix("release.plan.")
