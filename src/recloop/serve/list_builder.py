"""Lists of a service from the newest state, also if a part fails or hangs."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import polars as pl

from recloop.errors import UserError
from recloop.features.state import StateBatch, StoredState
from recloop.recommend.partial import DEADLINE, SOURCES, STATE
from recloop.recommend.ranked_list import RankedList
from recloop.records import Query, is_guest
from recloop.release import assignment
from recloop.serve.deployments import Deployment
from recloop.serve.live_config import RANKER_SHARE
from recloop.serve.part_timeout import PartTimeoutError, PartTimer

if TYPE_CHECKING:
    from recloop.serve.service import Service

LOGGER = logging.getLogger(__name__)


class ListBuilder:
    """Computes lists on the event loop; records nothing.

    Attributes:
        timer: Interrupts a part that takes half of ``serve.limits.list_seconds``, if the process started it.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.timer = PartTimer(lambda: RANKER_SHARE * service.live.limits.list_seconds)

    def assign(self, user_id: str) -> Deployment:
        """Return the deployment assigned to a user; live without a user or for a guest."""
        live, candidate = self._service.deployments.live, self._service.deployments.candidate
        if not user_id or is_guest(user_id) or candidate is None:
            return live
        known_as = self._service.user_states.identities.assigned_as(user_id)
        arm = assignment.assign(known_as, live.arm, candidate.arm)
        return candidate if arm is candidate.arm else live

    def build(
        self, assigned: Deployment, query: Query, degraded: set[str], without: frozenset[str]
    ) -> tuple[Deployment, RankedList, int]:
        """Compute the list of the assigned deployment, or of live if a candidate fails.

        A part that hangs is left out after its time, and for some time from the next list on. Without time for any part,
        the fallback fills the list.

        Args:
            degraded: Receives the names of the parts that are left out.
            without: Parts to leave out; see `Recommender.recommend`.

        Returns:
            The deployment that answered, its list, and the seq that the list includes.
        """
        timer, known = self.timer, set(degraded)
        n_interrupted = timer.interrupted
        timer.begin()
        try:
            built = self._of_assigned(assigned, query, degraded, without | timer.paused)
        except PartTimeoutError:
            timer.end()
            live = self._service.deployments.live
            built = live, *self.list_of(live, query, degraded, frozenset({DEADLINE}))
        finally:
            timer.end()
        if timer.interrupted > n_interrupted:
            self._leave_out(degraded - known - {DEADLINE, SOURCES})
        return built

    def _leave_out(self, parts: set[str]) -> None:
        """Leave interrupted parts out of the next lists."""
        LOGGER.warning("a list took too long; left out for some time: %s", ", ".join(sorted(parts)) or "nothing")
        self.timer.pause(parts)
        if STATE in parts:
            self._service.user_states.clear()  # the interrupted reader may have cached a part

    def _of_assigned(
        self, assigned: Deployment, query: Query, degraded: set[str], without: frozenset[str]
    ) -> tuple[Deployment, RankedList, int]:
        live = self._service.deployments.live
        if assigned is not live:
            try:
                return assigned, *self.list_of(assigned, query, degraded, without)
            except Exception as error:  # noqa: BLE001 - a failing candidate must not leave its users without a list
                LOGGER.warning("bundle %s failed, live answers: %s", assigned.arm.bundle, type(error).__name__)
        return live, *self.list_of(live, query, degraded, without)

    def list_of(
        self, served: Deployment, query: Query, degraded: set[str], without: frozenset[str] = frozenset()
    ) -> tuple[RankedList, int]:
        """Compute a bundle's list as of the newest seq; also return that seq.

        Raises:
            UserError: unknown placement, or a filter whose values do not fit the fields.
        """
        state, as_of = self.state_at(served, query.user_id, self._service.as_of, degraded, without)
        try:
            ranked = served.recommender.recommend(state, [query], without=without)[0]
        except pl.exceptions.PolarsError as error:  # a valid filter that compares a text with a number
            reason = str(error).partition("\n")[0]
            raise UserError("filter", query.filter, f"a condition that fits the fields ({reason})") from None
        degraded.update(ranked.degraded)
        return ranked, as_of

    def state_at(
        self, served: Deployment, user_id: str, seq: int, degraded: set[str], without: frozenset[str] = frozenset()
    ) -> tuple[StateBatch, int]:
        """Read a user's state for a bundle at ``seq``, and the seq that it includes.

        A state that cannot be read is that of an unknown user, and ``degraded`` names it.
        """
        if STATE not in without:
            try:
                return self._service.user_states.state(served.bundle.spec, user_id, seq, degraded)
            except Exception as error:  # noqa: BLE001 - a list without history is better than none
                LOGGER.error("a state was not read: %s", type(error).__name__)  # noqa: TRY400 - its text may name a user
        degraded.add(STATE)
        return StoredState().to_batch(user_id), seq
