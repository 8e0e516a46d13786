"""Feedback over HTTP: skips keep items, dislikes hide them, long dwells are history."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from recloop import loop
from recloop.monitoring import verify
from recloop.project import Project, open_project
from recloop.records import DAY, SECOND
from recloop.simulation.browsing import BrowsingSimulator
from recloop.simulation.shop import START

COUNTING = '\n[model]\nname = "covisitation"\n[placement.home]\nweights = { neighbours = 1.0, popular = 0.25 }\n'
DAYS = 30


@pytest.fixture(scope="module")
def signals_simulator() -> BrowsingSimulator:
    return BrowsingSimulator(seed=0, users=60, items=60, days=40)


@pytest.fixture(scope="module")
def browsing_project(signals_simulator: BrowsingSimulator, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with thirty simulated days and a live baseline."""
    folder = signals_simulator.write(tmp_path_factory.mktemp("signals") / "shop", DAYS)
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write(COUNTING)
    here = open_project(folder, ["serve.allow_time_header=true"])
    loop.first_run(here)
    return here


@pytest.fixture
def browsing_client(browsing_project: Project, serving: Callable[..., Any]) -> Iterator[httpx.Client]:
    server = serving(browsing_project.root, "--set", "serve.allow_time_header=true")
    yield server.client
    assert server.stop() == 0


def recommended(client: httpx.Client, user: str, now: int) -> tuple[str, list[str]]:
    stamp = datetime.fromtimestamp(now / SECOND, UTC).isoformat()
    answer = client.get(f"/v1/recommend/{user}", headers={"X-Recloop-Now": stamp})
    assert answer.status_code == 200, answer.text
    tree = answer.json()
    return tree["request_id"], [one["item_id"] for one in tree["items"]]


def post_rows(client: httpx.Client, rows: list[dict[str, Any]]) -> None:
    answer = client.post("/v1/events", json=rows)
    assert answer.status_code == 200, answer.text
    assert answer.json()["accepted"] == len(rows)


def test_feedback_over_http_changes_lists_as_configured_and_verifies(
    signals_simulator: BrowsingSimulator, browsing_project: Project, browsing_client: httpx.Client
) -> None:
    now = START + DAYS * DAY
    user = signals_simulator.user_ids[0]
    _, shown = recommended(browsing_client, user, now)
    first, second = shown[0], shown[1]
    row = {"user_id": user, "timestamp": (now + SECOND) // SECOND}
    post_rows(browsing_client, [{**row, "item_id": first, "event_type": "skip", "event_id": "s1"}])
    assert first in recommended(browsing_client, user, now + 2 * SECOND)[1]
    post_rows(browsing_client, [{**row, "item_id": first, "event_type": "dislike", "event_id": "d1"}])
    assert first not in recommended(browsing_client, user, now + 3 * SECOND)[1]

    dwell = {**row, "event_type": "dwell", "timestamp": (now + 4 * SECOND) // SECOND}
    post_rows(browsing_client, [{**dwell, "item_id": second, "value": 0.0, "event_id": "w1"}])
    before = browsing_client.get(f"/v1/users/{user}").json()
    post_rows(browsing_client, [{**dwell, "item_id": second, "value": 1e6, "event_id": "w2"}])
    after = browsing_client.get(f"/v1/users/{user}").json()
    assert after["events"] == before["events"] + 1

    seen: set[str] = set()
    lists = 3
    for moment, visitor in signals_simulator.visits(DAYS, DAYS + 6):
        lists += 1
        request, items = recommended(browsing_client, visitor, moment)
        rows = signals_simulator.respond(visitor, items, moment, request)
        seen |= {one["event_type"] for one in rows}
        if rows:
            post_rows(browsing_client, rows)
    assert {"click", "dwell", "purchase", "skip"} <= seen
    found = {"checked": 0}
    for _ in range(100):  # decisions are written after the answer
        found = verify.verify(browsing_project, 1000)
        if found["checked"] == lists:
            break
        time.sleep(0.1)
    assert found["checked"] == lists > 50
    assert found["unexplained"] == 0, found["differences"]
    assert found["equal"] == found["checked"]


def test_bundle_spec_contains_the_learned_tables(browsing_project: Project) -> None:
    (bundle,) = browsing_project.bundles.iterdir()
    spec = (Path(bundle) / "spec.json").read_text()
    assert '"duration ' in spec
    assert '"weights"' in spec
