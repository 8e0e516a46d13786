"""Shadow scoring of answered requests, after the response and at the same seq."""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import Protocol

import msgspec

from recloop.recommend.recommender import RankedList
from recloop.records import Decision, Query
from recloop.serve.deployments import Deployment, Deployments
from recloop.storage import DecisionLog

LOGGER = logging.getLogger(__name__)


class Recommend(Protocol):
    """Ranking function: a bundle's list for a query as of a seq, and the seq used."""

    def __call__(
        self, served: Deployment, query: Query, degraded: set[str], seq: int | None = None
    ) -> tuple[RankedList, int]: ...


class ShadowQueue:
    """Queue of answered requests for shadow scoring; used on the event loop only.

    Role ``shadow`` is the candidate, the first bundle in shadow. Role ``replica`` is live itself, which must agree
    exactly, and every further shadow bundle (the same update with another seed, for the noise floor).
    """

    def __init__(self, lister: Recommend, decisions: DecisionLog) -> None:
        self._list = lister
        self._decisions = decisions
        self._waiting: deque[tuple[Query, Decision, Deployments]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, query: Query, decision: Decision, deployments: Deployments) -> None:
        """Queue a request that these deployments answered."""
        self._waiting.append((query, decision, deployments))

    def drain(self) -> None:
        """Score the queue; call after each response and before any state changes."""
        while self._waiting:
            query, decision, deployments = self._waiting.popleft()
            for index, deployment in enumerate((deployments.live, *deployments.shadows)):
                self._score(deployment, "shadow" if index == 1 else "replica", query, decision)

    def _score(self, deployment: Deployment, role: str, query: Query, decision: Decision) -> None:
        started = time.perf_counter()
        degraded: set[str] = set()
        try:
            ranked, as_of_seq = self._list(deployment, query, degraded, decision.as_of_seq)
        except Exception as error:  # noqa: BLE001 - a failing shadow bundle must not affect the response
            LOGGER.warning("bundle %s failed in shadow: %s", deployment.arm.bundle, type(error).__name__)
            return
        if degraded:
            return  # not comparable: made from less data than the response
        latency_us = round((time.perf_counter() - started) * 1e6)
        self._decisions.put(
            msgspec.structs.replace(
                decision, role=role, bundle=deployment.arm.bundle, generation=deployment.arm.generation, variant=role,
                as_of_seq=as_of_seq, items=ranked.items, scores=ranked.scores, sources=ranked.sources,
                positives=ranked.positives, inputs=ranked.inputs, latency_us=latency_us,
            )
        )  # fmt: skip
