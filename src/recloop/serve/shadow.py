"""Shadow scoring of answered requests on a thread, at the seq of the answer."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from recloop.features.state import StateBatch
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import Recommender
from recloop.records import Decision, Item, Query
from recloop.serve.deployments import Deployment, Deployments
from recloop.storage import DecisionLog

LOGGER = logging.getLogger(__name__)
MAX_WAITING_REQUESTS = 2_000
"""Most queued requests; further ones are skipped and counted."""
MAX_REST_SECONDS = 0.01
CLOSE_SECONDS = 5.0
"""Seconds for the queued requests when the service stops; the rest is skipped and counted."""


class ShadowRequest(NamedTuple):
    """Answered request with the state of its user for each bundle that scores it.

    States are immutable values as of ``decision.as_of_seq``, so later events do not change them.
    """

    query: Query
    decision: Decision
    states: list[tuple[Deployment, StateBatch]]

    def role(self, index: int) -> str:
        """Role of a bundle by its position: live, the candidate, then further replicas."""
        return "shadow" if index == 1 else "replica"


class _Stop:
    """Last message of the queue."""


class ShadowScorer:
    """Thread that scores answered requests with the bundles in shadow.

    Role ``shadow`` is the candidate, the first bundle in shadow. Role ``replica`` is live itself, which must agree
    exactly, and every further shadow bundle (the same update with another seed, for the noise floor).

    Requests and item versions share one queue, and the thread applies them in order to a catalog of its own. Therefore
    each request is scored over the catalog that answered it. All methods run on the event loop.

    Attributes:
        skipped: Requests not scored, because too many were waiting or the catalog had changed.
    """

    def __init__(self, decisions: DecisionLog) -> None:
        self._decisions = decisions
        self._queue: queue.SimpleQueue[ShadowRequest | Catalog | list[Item] | _Stop] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._active = False
        self._added = 0
        self._finished = 0  # written by the thread
        self._shed = 0
        self._late = 0  # written by the thread
        self._deadline: float | None = None  # time at which the thread of a stopping service skips the rest

    @property
    def skipped(self) -> int:
        return self._shed + self._late

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return self._added - self._finished

    def use(self, deployments: Deployments, catalog: Catalog) -> None:
        """Start scoring if bundles are in shadow, from this version of the catalog on."""
        was_active = self._active
        self._active = bool(deployments.shadows)
        if not self._active or was_active:
            return
        self._queue.put(catalog.copy())
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
            self._thread.start()

    def upsert(self, items: Sequence[Item]) -> None:
        """Apply item versions after the requests that are already queued."""
        if self._active and items:
            self._queue.put(list(items))

    def add(self, query: Query, decision: Decision, states: list[tuple[Deployment, StateBatch]]) -> None:
        """Queue an answered request, or skip and count it if too many are waiting."""
        if self.waiting >= MAX_WAITING_REQUESTS:
            self._shed += 1
            return
        self._added += 1
        self._queue.put(ShadowRequest(query, decision, states))

    def skip(self) -> None:
        """Count a request that cannot be scored."""
        self._shed += 1

    def close(self) -> None:
        """Score the queued requests for at most `CLOSE_SECONDS` and stop the thread."""
        if self._thread is None:
            return
        self._deadline = time.monotonic() + CLOSE_SECONDS
        self._queue.put(_Stop())
        self._thread.join()
        self._thread = None

    def _run(self) -> None:
        catalog = Catalog()
        recommenders: dict[str, Recommender] = {}
        while True:
            message = self._queue.get()
            if isinstance(message, _Stop):
                return
            if isinstance(message, Catalog):
                catalog = message
                recommenders = {}
            elif isinstance(message, ShadowRequest):
                recommenders = self._current(recommenders, message, catalog)
                self._handle(message, recommenders)
            else:
                for item in message:
                    catalog.upsert(item)

    @staticmethod
    def _current(
        recommenders: dict[str, Recommender], request: ShadowRequest, catalog: Catalog
    ) -> dict[str, Recommender]:
        """Recommenders of the bundles of a request; those of other bundles are dropped."""
        bundles = {deployment.arm.bundle: deployment.bundle for deployment, _ in request.states}
        if recommenders.keys() == bundles.keys():
            return recommenders
        return {
            name: recommenders.get(name) or Recommender(bundle, catalog, with_availability=True)
            for name, bundle in bundles.items()
        }

    def _handle(self, request: ShadowRequest, recommenders: dict[str, Recommender]) -> None:
        """Score a request, then rest as long: answers get half of the interpreter."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._late += 1
            self._finished += 1
            return
        started = time.perf_counter()
        for index, (deployment, state) in enumerate(request.states):
            self._score(recommenders[deployment.arm.bundle], deployment, request.role(index), request, state)
        self._finished += 1
        if self._deadline is None:
            time.sleep(min(time.perf_counter() - started, MAX_REST_SECONDS))

    def _score(
        self, recommender: Recommender, deployment: Deployment, role: str, request: ShadowRequest, state: StateBatch
    ) -> None:
        started = time.perf_counter()
        try:
            ranked = recommender.recommend(state, [request.query])[0]
        except Exception as error:  # noqa: BLE001 - a failing shadow bundle must not affect the response
            LOGGER.warning("bundle %s failed in shadow: %s", deployment.arm.bundle, type(error).__name__)
            return
        latency_us = round((time.perf_counter() - started) * 1e6)
        self._decisions.put(
            msgspec.structs.replace(
                request.decision, role=role, bundle=deployment.arm.bundle, generation=deployment.arm.generation,
                variant=role, items=ranked.items, scores=ranked.scores, sources=ranked.sources,
                positives=ranked.positives, inputs=ranked.inputs, latency_us=latency_us,
                degraded=[*ranked.degraded],
            )
        )  # fmt: skip
