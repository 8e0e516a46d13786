"""Similar and latest lists over HTTP; verify rebuilds every one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import servers
from servers import Server

from recloop import loop
from recloop.monitoring import verify
from recloop.project import Project, open_project
from recloop.records import Decision
from recloop.serve import offline
from recloop.simulation.shop import SimulatedShop

PLACEMENTS = """
[model]
name = "covisitation"
[placement.product]
list = "similar"
filter = "price < 6"
n = 4
[placement.new]
list = "latest"
n = 3
"""


@pytest.fixture(scope="module")
def project_with_lists(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A shop with one placement for each kind of list."""
    folder = SimulatedShop(seed=0, users=60, items=80).write(tmp_path_factory.mktemp("lists") / "shop")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write(PLACEMENTS)
    loop.first_run(open_project(folder))
    return open_project(folder)


@dataclass
class Answers:
    """Answers of one server in the order of their requests, and its decisions by request."""

    live: str
    """The bundle that answered."""
    similar: dict[str, Any]
    """Items similar to i01, for an unknown user."""
    cheap: dict[str, Any]
    """The same from the placement with a price filter."""
    personal: dict[str, Any]
    """The same for u01 through the recommend route."""
    offline: dict[str, Any]
    """The same for u01 without a server."""
    without_disliked: dict[str, Any]
    """The same for u01, who dislikes the first item of ``cheap``."""
    new_item: dict[str, Any]
    """Items similar to the item posted last."""
    latest: dict[str, Any]
    """The latest items."""
    decisions: dict[str, Decision]


@pytest.fixture(scope="module")
def answers(project_with_lists: Project) -> Answers:
    server = servers.start(project_with_lists.root)
    client = server.client

    def get(path: str, **parameters: Any) -> dict[str, Any]:
        answer = client.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    try:
        similar = get("/v1/items/i01/similar")
        cheap = get("/v1/items/i01/similar", placement="product", properties="price")
        personal = get("/v1/recommend/u01", placement="product", item="i01")
        offline_list = offline.recommend(project_with_lists, "u01", None, "product", item="i01")
        dislike = {"user_id": "u01", "item_id": ids(cheap)[0], "event_type": "dislike"}
        assert client.post("/v1/events", json=dislike).json()["accepted"] == 1
        without_disliked = get("/v1/items/i01/similar", placement="product", user_id="u01")
        client.post("/v1/items", json={"item_id": "brand/new", "attributes": {"category": "tea"}})
        new_item = get("/v1/items/brand%2Fnew/similar", n=2, properties="category")
        latest = get("/v1/recommend/u01", placement="new")
        decisions = {row.request_id: row for row in server.decided()}
        assert server.stop() == 0
    finally:
        server.close()
    return Answers(server.bundle, similar, cheap, personal, offline_list, without_disliked, new_item, latest, decisions)


def ids(answer: dict[str, Any]) -> list[str]:
    return [slot["item_id"] for slot in answer["items"]]


def sources(answer: dict[str, Any]) -> set[str]:
    return {slot["source"] for slot in answer["items"]}


def test_similar_response_has_the_documented_keys(answers: Answers) -> None:
    similar = answers.similar
    assert set(similar) == {"request_id", "model_version", "variant", "placement", "degraded", "items"}
    assert similar["placement"] == "similar"
    assert similar["variant"] == "live"
    assert similar["model_version"] == answers.live


def test_similar_list_contains_neighbours_of_the_item(answers: Answers) -> None:
    assert len(ids(answers.similar)) == 10
    assert "i01" not in ids(answers.similar)
    assert answers.similar["items"][0]["source"] == "neighbours"
    assert answers.similar["items"][0]["reason"] == "often chosen after this item"


def test_similar_list_with_a_filter_is_equal_over_both_routes_and_offline(answers: Answers) -> None:
    assert len(ids(answers.cheap)) == 4
    assert all(slot["price"] < 6 for slot in answers.cheap["items"])
    assert ids(answers.personal) == ids(answers.cheap)
    assert ids(answers.offline) == ids(answers.cheap)


def test_similar_list_after_a_dislike_excludes_the_item(answers: Answers) -> None:
    assert ids(answers.cheap)[0] not in ids(answers.without_disliked)


def test_similar_list_of_a_new_item_uses_its_attributes(answers: Answers) -> None:
    assert [slot["category"] for slot in answers.new_item["items"]] == ["tea", "tea"]
    assert sources(answers.new_item) == {"attributes"}


def test_latest_list_starts_with_the_new_item(answers: Answers) -> None:
    assert len(ids(answers.latest)) == 3
    assert ids(answers.latest)[0] == "brand/new"
    assert sources(answers.latest) == {"latest"}


def test_decisions_of_similar_and_latest_lists_are_verified(answers: Answers, project_with_lists: Project) -> None:
    assert answers.decisions[answers.personal["request_id"]].query["item"] == "i01"
    assert answers.decisions[answers.similar["request_id"]].user_id == ""
    found = verify.verify(project_with_lists)
    assert found["unexplained"] == 0
    assert found["checked"] == found["equal"] >= 6


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/v1/items/nothing/similar", 404, "item_id"),
        ("/v1/items/i01/similar?n=0", 422, "n"),
        ("/v1/items/i01/similar?n=1001", 422, "n"),
        ("/v1/items/i01/similar?placement=home", 422, "placement"),
        ("/v1/items/i01/similar?placement=nowhere", 422, "placement"),
        ("/v1/items/i01/similar?filter=price%20%3C", 422, "filter"),
        ("/v1/recommend/u01?placement=similar", 422, "item"),
        ("/v1/recommend/u01?item=i01", 200, ""),
        ("/v1/recommend/u01?placement=similar&item=nothing", 200, ""),
    ],
)
def test_similar_list_parameters_are_validated(server: Server, path: str, status: int, field: str) -> None:
    answer = server.client.get(path)
    assert answer.status_code == status, answer.text
    if field:
        assert answer.json()["error"]["field"] == field
        assert answer.json()["error"]["expected"] or status == 404
    else:
        assert len(answer.json()["items"]) == 10
