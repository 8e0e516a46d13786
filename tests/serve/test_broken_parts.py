"""A part that fails, or is left out under load, gives a list that names it; `verify` explains the list."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import servers

from recloop.config import Limits, Serve
from recloop.monitoring import verify
from recloop.project import Project
from recloop.recommend.partial import DEADLINE, RANKER
from recloop.serve import reload
from recloop.serve.app import create
from recloop.serve.live_config import LiveConfig
from recloop.serve.recommend_routes import RequestKeys
from recloop.serve.request import list_parameters
from recloop.serve.service import Service

Break = Callable[[Service, pytest.MonkeyPatch], None]


def fail(*_: Any, **__: Any) -> Any:
    raise OSError("broken")


def source_raises(*names: str) -> Break:
    def apply(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in names:
            monkeypatch.setattr(service.recommender.scorers[name], "best", fail)

    return apply


def source_gives_nan(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = service.recommender.scorers["neighbours"]
    best = scorer.best

    def broken(*arguments: Any) -> Any:
        top_k = best(*arguments)
        return dataclasses.replace(top_k, scores=np.full_like(top_k.scores, np.nan))

    monkeypatch.setattr(scorer, "best", broken)


def state_raises(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.user_states, "state", fail)


def answered(project: Project, apply: Break, monkeypatch: pytest.MonkeyPatch, path: str) -> list[dict[str, Any]]:
    """Answer a request with a broken part; the decisions of it are stored."""
    answers: list[dict[str, Any]] = []
    app = create(project)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        apply(service, monkeypatch)
        answer = await client.get(path)
        assert answer.status_code == 200, answer.text
        assert "NaN" not in answer.text
        answers.append(answer.json())

    servers.inside(app, work)
    monkeypatch.undo()
    return answers


@pytest.mark.parametrize(
    ("apply", "degraded"),
    [
        pytest.param(source_raises("neighbours"), ["neighbours"], id="one source raises"),
        pytest.param(source_gives_nan, ["neighbours"], id="one source gives NaN"),
        pytest.param(
            source_raises("history", "neighbours", "popular"),
            ["history", "neighbours", "popular", "sources"],
            id="all sources raise",
        ),
        pytest.param(state_raises, ["state"], id="the state raises"),
    ],
)
def test_list_with_a_broken_part_names_it_and_is_verified(
    project: Project, monkeypatch: pytest.MonkeyPatch, apply: Break, degraded: list[str]
) -> None:
    (answer,) = answered(project, apply, monkeypatch, "/v1/recommend/u14?n=5")
    assert answer["degraded"] == degraded
    assert len(answer["items"]) == 5
    assert not set(degraded) & {slot["source"] for slot in answer["items"]} or "sources" in degraded
    found = verify.verify(project, 10)
    assert (found["checked"], found["equal"], found["unexplained"]) == (1, 1, 0), found["differences"]


def test_list_about_an_item_with_a_broken_source_is_labelled(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service.recommender.slots.similar, "recall", fail)

    (answer,) = answered(project, apply, monkeypatch, "/v1/items/i01/similar?n=3")
    assert answer["degraded"] == ["sources"]


def test_list_whose_decision_cannot_be_stored_says_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(service.decisions, "put", fail)

    (answer,) = answered(project, apply, monkeypatch, "/v1/recommend/u14?n=5")
    assert answer["degraded"] == ["decisions"]
    assert len(answer["items"]) == 5


def test_list_beside_a_broken_control_store_says_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "POLL_SECONDS", 0.01)
    app = create(project)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        monkeypatch.setattr(service.control, "generation", fail)
        polling = asyncio.create_task(reload.poll_forever(service))
        end = time.monotonic() + servers.PATIENCE
        while service.is_release_followed:
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        answer = (await client.get("/v1/recommend/u14?n=5")).json()
        assert (answer["degraded"], len(answer["items"])) == (["release"], 5)
        polling.cancel()
        service.is_release_followed, service.followed_at = True, time.monotonic()
        assert service.degraded == []
        service.followed_at -= 1_000  # a poll that hangs
        assert service.degraded == ["release"]

    servers.inside(app, work)


@pytest.mark.parametrize(
    ("waited", "shadow", "without"),
    [(0.2, False, set()), (0.3, True, set()), (0.6, True, {RANKER}), (1.1, True, {DEADLINE})],
)
def test_waiting_list_loses_shadow_then_ranker_then_sources(waited: float, shadow: bool, without: set[str]) -> None:
    shed = LiveConfig(Serve()).shed(waited)
    assert (shed.shadow, shed.without) == (shadow, without)
    later = LiveConfig(Serve(limits=Limits(list_seconds=2.0))).shed(waited / 2)
    assert later.without == set()


def test_list_above_its_deadline_is_the_fallback_and_is_verified(project: Project) -> None:
    app = create(project)
    try:
        body = app.lists._routes.recommend_body(  # type: ignore[union-attr]
            "u14", list_parameters(b"n=5"), RequestKeys("a" * 32, None), None, waited=5.0
        )
    finally:
        app.state.service.close()
    assert b'"degraded":["deadline"]' in body
    assert body.count(b'"source":"segment"') + body.count(b'"source":"popular"') == 5
    found = verify.verify(project, 10)
    assert (found["checked"], found["equal"], found["unexplained"]) == (1, 1, 0), found["differences"]
