"""Choice of the requests that shadow bundles score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloop.monitoring.verify import query_of
from recloop.records import Decision, Query, is_guest
from recloop.release import assignment

if TYPE_CHECKING:
    from recloop.serve.service import Service


class ShadowChoice:
    """Queues answered requests of a service for its shadow bundles."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def add_of_worker(self, decision: Decision, last_item_seq: int) -> None:
        live = self._service.deployments.live.arm
        is_live = (decision.bundle, decision.generation, decision.variant) == (
            live.bundle,
            live.generation,
            live.variant,
        )
        if not is_live or decision.degraded or not self.is_shadowed(decision.user_id, live):
            return
        if decision.as_of_seq < last_item_seq:
            self._service.shadow.skip()
        else:
            self.add(query_of(decision), decision)

    def is_shadowed(self, user_id: str, answered: assignment.Arm) -> bool:
        """Return True if the shadow bundles score a request of this user."""
        if not self._service.deployments.shadows or not user_id or is_guest(user_id):
            return False
        shadow = self._service.deployments.shadows[0].arm.bundle
        return assignment.shadowing(user_id, answered, shadow, self._service.project.config.release.shadow_share)

    def add(self, query: Query, decision: Decision) -> None:
        """Queue a request for the shadow bundles and live, unless a state is degraded."""
        degraded: set[str] = set()
        states = [
            (deployment, self._service.lists.state_at(deployment, query.user_id, decision.as_of_seq, degraded)[0])
            for deployment in (self._service.deployments.live, *self._service.deployments.shadows)
        ]
        if not degraded:  # otherwise not comparable: made from less data than the response
            self._service.shadow.add(query, decision, states)
