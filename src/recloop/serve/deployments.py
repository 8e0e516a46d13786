"""The bundles in service: live, the candidate of an experiment, those in the shadow; loaded beside, then switched.

What the control store says is compared with what is loaded; only what changed is loaded, off the event loop. A
registered bundle is checked and noted as such; one that fails is refused with the reason, and what served goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from recloop.bundle import Bundle
from recloop.errors import BundleError, Refused, UserError
from recloop.features.state import StateBatch, UserState
from recloop.monitoring.experiment_plan import Plan
from recloop.project import Project
from recloop.recommend.catalog import Catalog
from recloop.recommend.loading import check_servable, open_bundle, verify_hash
from recloop.recommend.recommender import Recommender
from recloop.records import Query
from recloop.release.assignment import CANDIDATE, LIVE, Arm
from recloop.storage import ControlStore, releases
from recloop.storage.control import ReleaseRow

LOGGER = logging.getLogger(__name__)
BY = "recloop serve"
SPARES = 2
"""Bundles kept in memory beside those that serve."""
MOST_SHADOWS = 3
"""Bundles in the shadow that are scored: the candidate and two twins; each costs a request's time."""


class Deployment(NamedTuple):
    """A bundle in memory, ready to answer, and the arm it answers in."""

    recommender: Recommender
    arm: Arm

    @property
    def bundle(self) -> Bundle:
        return self.recommender.bundle

    def ready(self) -> bool:
        """Whether it answers a golden query over the service's catalogue; the first time warms what is cached."""
        bundle = self.bundle
        golden = bundle.golden[0] if bundle.golden else None
        state = UserState() if golden is None else golden.state
        placement = bundle.default_placement if golden is None else golden.placement
        now = bundle.cut if golden is None else golden.now
        query = Query(user_id="golden", now=now, placement=placement, k=5)
        states = StateBatch.of(["golden"], [state])
        return bool(self.recommender.recommend(states, [query], with_inputs=False)[0].slots)


@dataclass(frozen=True)
class Deployments:
    """What serves between two switches; a request takes it once and sees no other."""

    live: Deployment
    candidate: Deployment | None = None
    shadows: tuple[Deployment, ...] = ()
    generation: int = -1
    failed: str = ""  # the live bundle that does not load; an earlier one answers in its place

    @property
    def every(self) -> list[Deployment]:
        return [self.live, *([] if self.candidate is None else [self.candidate]), *self.shadows]

    def warm(self, before: Deployments) -> None:
        """Let what this fleet has and the one before had not answer once, before anybody waits for it."""
        for one in self.every:
            if all(one.recommender is not old.recommender for old in before.every):
                one.ready()


class DeploymentLoader:
    """Makes the fleet that the control store asks for.

    Args:
        catalogue: Of the service; recommenders are made over it, it is never read here.
        clock: Of the service, for the rows it writes.
    """

    def __init__(self, project: Project, control: ControlStore, catalogue: Catalog, clock: Callable[[], int]) -> None:
        self._project, self._control, self._catalogue, self._clock = project, control, catalogue, clock
        self._spare: dict[str, Recommender] = {}

    def first(self) -> Deployments:
        """The fleet of a start: the newest live bundle that loads, and what is tried beside it.

        Raises:
            UserError: nothing is live yet. BundleError: no live bundle, present or earlier, can be loaded.
        """
        machine = releases.read_state(self._control)
        rows = releases.lives(self._control)
        if not rows:
            raise UserError("bundle", "none live yet", "a live bundle", "recloop update")
        first: BundleError | None = None
        for row in rows:
            try:
                live = self._load(row, LIVE, None)
            except BundleError as error:
                first = first or error
                LOGGER.warning("bundle %s is not served: %s", row.bundle, error)
                continue
            failed = "" if first is None else rows[0].bundle
            return self._beside(
                machine, Deployments(live, failed=failed), None
            )  # of no generation: the first look checks
        assert first is not None
        raise first

    def next(self, now: Deployments) -> Deployments:
        """The fleet after the moves made since; it may make moves itself, so look again until nothing moved."""
        machine = releases.read_state(self._control)
        for row in machine.rows_in("registered"):
            self._check(row, now.live.bundle)
        machine = releases.read_state(self._control)
        live, failed = self._live(machine, now)
        if live.arm.bundle != now.live.arm.bundle:
            checked = {row.bundle for row in machine.rows_in("checked")}
            self._spare = {name: one for name, one in self._spare.items() if name in checked}
            self._keep(now.live.recommender)  # what a rollback brings back; earlier ones go
        return self._beside(machine, replace(now, live=live, failed=failed, generation=machine.generation), now)

    def _check(self, row: ReleaseRow, live: Bundle) -> None:
        try:
            recommender = self._open(row)
            evidence = check_servable(self._project, recommender.bundle, live)
        except BundleError as error:
            self._refuse(row.bundle, error)
            return
        try:
            releases.checked(self._control, row.bundle, by=BY, reason="loaded", at=self._clock(), evidence=evidence)
        except Refused as error:  # somebody was faster: the next look sees what became of it
            LOGGER.info("bundle %s: %s", row.bundle, error)
            return
        self._keep(recommender)

    def _live(self, machine: releases.ReleaseState, now: Deployments) -> tuple[Deployment, str]:
        """The live bundle loaded; one that fails gives way to what served, by a rollback, and is refused."""
        name = machine.lives[-1] if machine.lives else now.live.arm.bundle
        if name == now.failed:  # since the start; it stays live in the table until a person decides
            return now.live, name
        try:
            return self._load(machine.since(name), LIVE, now), ""
        except BundleError as error:
            LOGGER.warning("bundle %s is not served: %s", name, error)
            try:
                releases.rollback(self._control, by=BY, reason=f"{name} does not load: {error}", at=self._clock())
            except Refused:
                return now.live, name
            self._refuse(name, error)
            return now.live, ""  # live again by that rollback, which the next look finds

    def _beside(self, machine: releases.ReleaseState, fleet: Deployments, before: Deployments | None) -> Deployments:
        """The fleet with what is tried: one candidate that answers, and the shadows."""
        tried = [self._try(row, CANDIDATE, before) for row in machine.rows_in("experiment")]
        shadows = [self._try(row, "shadow", before) for row in machine.rows_in("shadow")[:MOST_SHADOWS]]
        return replace(
            fleet, candidate=next(filter(None, tried), None), shadows=tuple(one for one in shadows if one is not None)
        )

    def _try(self, row: ReleaseRow, variant: str, before: Deployments | None) -> Deployment | None:
        try:
            return self._load(row, variant, before)
        except BundleError as error:
            self._refuse(row.bundle, error)
            return None
        except UserError as error:  # no plan in its row: no user is drawn for it, a person decides
            LOGGER.warning("bundle %s answers no one: %s", row.bundle, error)
            return None

    def _load(self, row: ReleaseRow, variant: str, before: Deployments | None) -> Deployment:
        arm = _arm(row, variant)
        for one in [] if before is None else before.every:
            if one.arm.bundle == row.bundle:
                return Deployment(one.recommender, arm)
        if row.bundle in self._spare:
            recommender = self._spare.pop(row.bundle)
            verify_hash(self._project, row)
            return Deployment(recommender, arm)
        return Deployment(self._open(row), arm)

    def _open(self, row: ReleaseRow) -> Recommender:
        return Recommender(open_bundle(self._project, row), self._catalogue)

    def _keep(self, recommender: Recommender) -> None:
        """Have a bundle at hand without another look at its files: one just checked, or the one a rollback brings back."""
        self._spare.pop(recommender.bundle.id, None)
        self._spare[recommender.bundle.id] = recommender
        while len(self._spare) > SPARES:
            self._spare.pop(next(iter(self._spare)))

    def _refuse(self, bundle: str, error: BundleError) -> None:
        LOGGER.warning("bundle %s is refused: %s", bundle, error)
        try:
            releases.refuse(self._control, bundle, by=BY, reason=str(error), at=self._clock())
        except Refused as refused:  # somebody was faster
            LOGGER.info("bundle %s: %s", bundle, refused)


def _arm(row: ReleaseRow, variant: str) -> Arm:
    """The arm of a bundle; of a candidate with the share and the salt of its plan.

    Raises:
        UserError: the row of an experiment holds no plan.
    """
    if variant != CANDIDATE:
        return Arm(row.bundle, row.generation, variant)
    plan = Plan.from_row(row)
    return Arm(row.bundle, row.generation, variant, plan.share, plan.salt)
