"""The shadow thread: its order of requests and item versions, and skipped requests."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from recloop.project import Project
from recloop.records import Decision, Item, Query
from recloop.serve import shadow
from recloop.serve.service import Service
from recloop.serve.shadow import ShadowScorer


class CollectedDecisions:
    """Decision log that keeps its rows in a list."""

    def __init__(self) -> None:
        self.rows: list[Decision] = []

    def put(self, decision: Decision) -> bool:
        self.rows.append(decision)
        return True


@pytest.fixture
def service(project: Project) -> Iterator[Service]:
    service = Service(project, clock=lambda: 1_752_000_000_000_000)
    yield service
    service.close()


def start(service: Service) -> tuple[ShadowScorer, CollectedDecisions]:
    """Start a scorer whose candidate is the live bundle itself."""
    decisions: Any = CollectedDecisions()
    scorer = ShadowScorer(decisions)
    live = service.deployments.live
    scorer.use(shadow.Deployments(live, shadows=(live,)), service.catalog)
    return scorer, decisions


def answer(service: Service, number: int) -> tuple[Query, Decision, list[Any]]:
    """Answer a request and return what the scorer is given."""
    query = Query(user_id=f"u{number:02}", now=service.clock(), request_id=str(number), filter="category = 'tea'")
    _, decision = service.recommend(query, started=0.0)
    state = service.lists.state_at(service.deployments.live, query.user_id, decision.as_of_seq, set())[0]
    return query, decision, [(service.deployments.live, state), (service.deployments.live, state)]


def test_shadow_thread_sees_the_catalog_of_each_answer(service: Service) -> None:
    scorer, decisions = start(service)
    answers = {}
    for number in range(12):
        query, decision, states = answer(service, number)
        answers[query.request_id] = decision
        scorer.add(query, decision, states)
        item = Item(item_id=f"i{number + 10:02}", attributes={"category": "tea" if number % 2 else "x"}, seq=10**6)
        service.catalog.upsert(item)
        scorer.upsert([item])
    scorer.close()
    assert len({decision.inputs["catalogue"] for decision in answers.values()}) == 12
    assert [row.role for row in decisions.rows] == ["replica", "shadow"] * 12
    for row in decisions.rows:
        expected = answers[row.request_id]
        assert (row.items, row.scores, row.inputs) == (expected.items, expected.scores, expected.inputs)
    assert scorer.skipped == 0


def test_shadow_requests_beyond_the_limit_are_skipped_and_counted(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shadow, "MAX_WAITING_REQUESTS", 3)
    given = answer(service, 14)
    scorer, decisions = start(service)
    free = threading.Event()
    monkeypatch.setattr(scorer, "_score", lambda *_: free.wait())
    for _ in range(8):
        scorer.add(*given)
    assert (scorer.waiting, scorer.skipped) == (3, 5)
    monkeypatch.setattr(shadow, "CLOSE_SECONDS", -1.0)  # the service stops while requests are waiting
    threading.Timer(0.05, free.set).start()
    scorer.close()
    assert scorer.waiting == 0
    assert 5 + 2 <= scorer.skipped <= 5 + 3
    assert decisions.rows == []


def test_shadow_thread_survives_a_failing_bundle(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, decisions = start(service)
    query, decision, states = answer(service, 14)
    scorer.add(query, decision, [(states[0][0], None)])  # type: ignore[list-item]
    scorer.add(query, decision, states)
    scorer.close()
    assert [row.role for row in decisions.rows] == ["replica", "shadow"]


def test_service_without_a_shadow_starts_no_thread(service: Service) -> None:
    service.recommend(Query(user_id="u14", now=service.clock(), request_id="r"), started=0.0)
    service.shadow.upsert([Item(item_id="i01")])
    assert service.shadow.waiting == 0
    assert all(thread.name != "shadow" for thread in threading.enumerate())
