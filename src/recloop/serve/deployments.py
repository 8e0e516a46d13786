"""Deployed bundles: live, experiment candidate and shadows, and their loader.

The loader compares the control store with the loaded bundles and loads only changed ones, outside the event loop. A
registered bundle is checked and marked as checked. A bundle that fails is refused with the reason, and the deployed
bundles keep serving.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from recloop.bundle import Bundle
from recloop.errors import BundleError, Refused, UserError
from recloop.features.state import StateBatch, StoredState
from recloop.monitoring.experiment_plan import Plan
from recloop.project import RELEARN, Project
from recloop.recommend.bundle_check import check_in_child
from recloop.recommend.catalog import Catalog
from recloop.recommend.loading import check_servable, open_bundle, verify_hash
from recloop.recommend.recommender import Recommender
from recloop.records import Query
from recloop.release.assignment import CANDIDATE, LIVE, Arm
from recloop.storage import ControlStore, releases
from recloop.storage.control import ReleaseRow
from recloop.storage.database import STORE_ERRORS

LOGGER = logging.getLogger(__name__)
RELEASE_ORIGIN = "recloop serve"
MAX_SPARE_BUNDLES = 2
"""Bundles kept in memory in addition to the deployed ones."""
MAX_SHADOWS = 3
"""Most shadow bundles: the candidate and two replicas; each costs the time of a request."""


class Deployment(NamedTuple):
    """A loaded bundle and the arm that it serves."""

    recommender: Recommender
    arm: Arm

    @property
    def bundle(self) -> Bundle:
        return self.recommender.bundle

    def is_ready(self) -> bool:
        """Return True if the bundle answers a golden query; on the event loop."""
        states, query = self._golden_query()
        return bool(self.recommender.recommend(states, [query], with_inputs=False)[0].slots)

    def warm_up(self, snapshot: Catalog) -> None:
        """Make the masks of a snapshot and answer a golden query; not on the event loop."""
        self.recommender.warm_up(*self._golden_query(), snapshot)

    def _golden_query(self) -> tuple[StateBatch, Query]:
        bundle = self.bundle
        golden = bundle.golden[0] if bundle.golden else None
        state = StoredState() if golden is None else golden.state
        placement = bundle.default_placement if golden is None else golden.placement
        now = bundle.cut if golden is None else golden.now
        return state.to_batch("golden"), Query(user_id="golden", now=now, placement=placement, n=5)


@dataclass(frozen=True)
class Deployments:
    """Immutable set of deployed bundles; a request uses the same one throughout."""

    live: Deployment
    candidate: Deployment | None = None
    shadows: tuple[Deployment, ...] = ()
    generation: int = -1
    failed: str = ""  # the live bundle if it does not load; an earlier one serves instead

    @property
    def all(self) -> list[Deployment]:
        return [self.live, *([] if self.candidate is None else [self.candidate]), *self.shadows]

    def warm_up(self, previous: Deployments, snapshot: Catalog) -> None:
        """Warm up newly added bundles before they receive traffic; not on the event loop.

        Args:
            snapshot: Snapshot of the service's catalog, which then adopts it.
        """
        for deployment in self._added(previous):
            deployment.warm_up(snapshot)

    def prepare(self, previous: Deployments) -> None:
        """Let newly added bundles answer over the catalog; on the event loop."""
        for deployment in self._added(previous):
            deployment.is_ready()

    def _added(self, previous: Deployments) -> list[Deployment]:
        earlier = [deployment.recommender for deployment in previous.all]
        return [
            deployment
            for deployment in self.all
            if all(deployment.recommender is not recommender for recommender in earlier)
        ]


class DeploymentLoader:
    """Loads the deployments that the control store names.

    Args:
        catalog: Catalog of the service; passed to recommenders and not read here.
        clock: Clock of the service, for release rows.
    """

    def __init__(self, project: Project, control: ControlStore, catalog: Catalog, clock: Callable[[], int]) -> None:
        self._project = project
        self._control = control
        self._catalog = catalog
        self._clock = clock
        self._spare: dict[str, Recommender] = {}

    def load_initial(self) -> Deployments:
        """Load the newest loadable live bundle, the candidate and the shadows.

        Raises:
            UserError: no bundle is live yet.
            BundleError: neither the live bundle nor an earlier one can be loaded.
        """
        machine = releases.read_state(self._control)
        rows = releases.lives(self._control)
        if not rows:
            raise UserError("bundle", "none live yet", "a live bundle", "recloop update")
        first_error: BundleError | None = None
        for row in rows:
            try:
                live = self._load(row, LIVE, None)
            except BundleError as error:
                first_error = first_error or error
                LOGGER.warning("bundle %s is not served: %s", row.bundle, error)
                continue
            failed = "" if first_error is None else rows[0].bundle
            deployments = Deployments(live, failed=failed)  # without a generation, so that the first poll reloads
            return self._load_others(machine, deployments, None)
        assert first_error is not None
        raise first_error.with_fix(RELEARN)

    def load_changes(self, current: Deployments) -> Deployments:
        """Load the deployments after recent release moves.

        This may make moves itself, so repeat until the generation is unchanged.
        """
        machine = releases.read_state(self._control)
        for row in machine.rows_in("registered"):
            self._check(row, current.live.bundle)
        machine = releases.read_state(self._control)
        live, failed = self._live(machine, current)
        if live.arm.bundle != current.live.arm.bundle:
            checked = {row.bundle for row in machine.rows_in("checked")}
            self._spare = {name: recommender for name, recommender in self._spare.items() if name in checked}
            self._keep_in_memory(current.live.recommender)  # for a rollback; older spares are dropped
        return self._load_others(
            machine, replace(current, live=live, failed=failed, generation=machine.generation), current
        )

    def _check(self, row: ReleaseRow, live: Bundle) -> None:
        try:
            check_in_child(self._project, row)
            recommender = self._open(row, with_golden=False)
            evidence = check_servable(self._project, recommender.bundle, live)
        except UserError as error:
            self._reject(row.bundle, error)
            return
        except STORE_ERRORS:  # of a store, not of the bundle; the next poll tries again
            raise
        except Exception as error:  # noqa: BLE001 - whatever a bundle causes, the next move must still work
            cause = f"{type(error).__name__}: {error}"[:300]
            self._reject(
                row.bundle, BundleError("bundle", row.bundle, f"a servable bundle ({cause})", "recloop update")
            )
            return
        try:
            releases.checked(
                self._control, row.bundle, by=RELEASE_ORIGIN, reason="loaded", at=self._clock(), evidence=evidence
            )
        except Refused as error:  # moved concurrently; the next poll reads the result
            LOGGER.info("bundle %s: %s", row.bundle, error)
            return
        self._keep_in_memory(recommender)

    def _live(self, machine: releases.ReleaseState, current: Deployments) -> tuple[Deployment, str]:
        """Load the live bundle; if that fails, roll back to the serving one and refuse it."""
        name = machine.lives[-1] if machine.lives else current.live.arm.bundle
        if name == current.failed:  # failed at startup; the release table keeps it live until an operator decides
            return current.live, name
        try:
            return self._load(machine.since(name), LIVE, current), ""
        except BundleError as error:
            LOGGER.warning("bundle %s is not served: %s", name, error)
            try:
                releases.rollback(
                    self._control, by=RELEASE_ORIGIN, reason=f"{name} does not load: {error}", at=self._clock()
                )
            except Refused:
                return current.live, name
            self._reject(name, error)
            return current.live, ""  # live again after the rollback, which the next poll reads

    def _load_others(
        self, machine: releases.ReleaseState, deployments: Deployments, previous: Deployments | None
    ) -> Deployments:
        """Add the experiment candidate and the shadows."""
        candidates = [self._load_or_reject(row, CANDIDATE, previous) for row in machine.rows_in("experiment")]
        shadows = [self._load_or_reject(row, "shadow", previous) for row in machine.rows_in("shadow")[:MAX_SHADOWS]]
        return replace(
            deployments,
            candidate=next(filter(None, candidates), None),
            shadows=tuple(deployment for deployment in shadows if deployment is not None),
        )

    def _load_or_reject(self, row: ReleaseRow, variant: str, previous: Deployments | None) -> Deployment | None:
        try:
            return self._load(row, variant, previous)
        except BundleError as error:
            self._reject(row.bundle, error)
            return None
        except UserError as error:  # without a plan users cannot be assigned; an operator decides
            LOGGER.warning("bundle %s is not deployed: %s", row.bundle, error)
            return None

    def _load(self, row: ReleaseRow, variant: str, previous: Deployments | None) -> Deployment:
        arm = _arm(row, variant)
        for deployment in [] if previous is None else previous.all:
            if deployment.arm.bundle == row.bundle:
                return Deployment(deployment.recommender, arm)
        if row.bundle in self._spare:
            recommender = self._spare.pop(row.bundle)
            verify_hash(self._project, row)
            return Deployment(recommender, arm)
        return Deployment(self._open(row), arm)

    def _open(self, row: ReleaseRow, with_golden: bool = True) -> Recommender:
        """Load a bundle.

        Raises:
            BundleError: for any error.
        """
        try:
            bundle = open_bundle(self._project, row, with_golden)
            recommender = Recommender(bundle, self._catalog, with_availability=True)
            recommender.slots.warm_up()
            return recommender
        except BundleError:
            raise
        except Exception as error:  # noqa: BLE001 - a bundle is data; whatever it causes, the others serve on
            cause = f"{type(error).__name__}: {error}"[:300]
            raise BundleError("bundle", row.bundle, f"a bundle that loads ({cause})", "recloop update") from None

    def _keep_in_memory(self, recommender: Recommender) -> None:
        """Keep a bundle in memory: one just checked, or the target of a rollback."""
        self._spare.pop(recommender.bundle.id, None)
        self._spare[recommender.bundle.id] = recommender
        while len(self._spare) > MAX_SPARE_BUNDLES:
            self._spare.pop(next(iter(self._spare)))

    def _reject(self, bundle: str, error: UserError) -> None:
        LOGGER.warning("bundle %s is refused: %s", bundle, error)
        try:
            releases.reject(self._control, bundle, by=RELEASE_ORIGIN, reason=str(error), at=self._clock())
        except Refused as refused:  # moved concurrently
            LOGGER.info("bundle %s: %s", bundle, refused)


def _arm(row: ReleaseRow, variant: str) -> Arm:
    """Build the arm of a bundle; a candidate's arm has the share and salt of its plan.

    Raises:
        UserError: the row of an experiment has no plan.
    """
    if variant != CANDIDATE:
        return Arm(row.bundle, row.generation, variant)
    plan = Plan.from_row(row)
    return Arm(row.bundle, row.generation, variant, plan.share, plan.salt)
