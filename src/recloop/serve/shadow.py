"""The shadow: a request that live has answered, scored again behind its answer, as of the same seq."""

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
    """A bundle's list for a query as of a seq, and the seq that it knew."""

    def __call__(
        self, served: Deployment, query: Query, degraded: set[str], seq: int | None = None
    ) -> tuple[RankedList, int]: ...


class ShadowQueue:
    """What was answered and waits to be scored again; touched on the event loop alone.

    Role ``twin`` is live itself, which must agree exactly, and every further bundle in the shadow (the same update
    with another seed: the noise floor); role ``shadow`` is the candidate, which came there first.
    """

    def __init__(self, lister: Recommend, decisions: DecisionLog) -> None:
        self._list, self._decisions = lister, decisions
        self._waiting: deque[tuple[Query, Decision, Deployments]] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, query: Query, decision: Decision, fleet: Deployments) -> None:
        """Remember an answer of this fleet."""
        self._waiting.append((query, decision, fleet))

    def drain(self) -> None:
        """Score what waits: called behind each answer, and before anything changes what that answer was made from."""
        while self._waiting:
            query, decision, fleet = self._waiting.popleft()
            for place, one in enumerate((fleet.live, *fleet.shadows)):
                self._score(one, "shadow" if place == 1 else "twin", query, decision)

    def _score(self, one: Deployment, role: str, query: Query, decision: Decision) -> None:
        begin = time.perf_counter()
        degraded: set[str] = set()
        try:
            answer, as_of = self._list(one, query, degraded, decision.as_of)
        except Exception as error:  # noqa: BLE001 - it answers nobody: what it does is its own affair
            LOGGER.warning("bundle %s gave no list in the shadow: %s", one.arm.bundle, type(error).__name__)
            return
        if degraded:
            return  # made from less than the answer was: it would prove nothing
        micros = round((time.perf_counter() - begin) * 1e6)
        self._decisions.put(
            msgspec.structs.replace(
                decision, role=role, bundle=one.arm.bundle, generation=one.arm.generation, variant=role, as_of=as_of,
                items=answer.items, scores=answer.scores, sources=answer.sources, positives=answer.positives,
                inputs=answer.inputs, micros=micros,
            )
        )  # fmt: skip
