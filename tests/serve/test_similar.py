"""Similar and latest lists over HTTP; verify rebuilds every one of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from servers import Server

from recloop import loop
from recloop.monitoring import verify
from recloop.project import Project, open_project
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


@pytest.fixture
def project_with_lists(tmp_path: Path) -> Project:
    """A shop with one placement for each kind of list."""
    folder = SimulatedShop(seed=0, users=60, items=80).write(tmp_path / "shop")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write(PLACEMENTS)
    loop.first_run(open_project(folder))
    return open_project(folder)


def test_similar_and_latest_lists_over_http_are_verified(
    project_with_lists: Project, serving: Callable[..., Server]
) -> None:
    server = serving(project_with_lists.root)
    client = server.client
    hot = client.get("/v1/items/i01/similar").json()
    assert (hot["placement"], hot["variant"], hot["model_version"]) == ("similar", "live", server.bundle)
    assert set(hot) == {"request_id", "model_version", "variant", "placement", "degraded", "items"}
    assert len(hot["items"]) == 10
    assert "i01" not in [slot["item_id"] for slot in hot["items"]]
    assert hot["items"][0]["source"] == "neighbours"
    assert hot["items"][0]["reason"] == "often chosen after this item"
    cheap = client.get("/v1/items/i01/similar", params={"placement": "product", "properties": "price"}).json()
    assert len(cheap["items"]) == 4
    assert all(slot["price"] < 6 for slot in cheap["items"])
    mine = client.get("/v1/recommend/u01", params={"placement": "product", "item": "i01"}).json()
    assert [slot["item_id"] for slot in mine["items"]] == [slot["item_id"] for slot in cheap["items"]]
    assert [
        slot["item_id"] for slot in offline.recommend(project_with_lists, "u01", None, "product", item="i01")["items"]
    ] == [slot["item_id"] for slot in mine["items"]]
    dislike = {"user_id": "u01", "item_id": cheap["items"][0]["item_id"], "event_type": "dislike"}
    assert client.post("/v1/events", json=dislike).json()["accepted"] == 1
    again = client.get("/v1/items/i01/similar", params={"placement": "product", "user_id": "u01"}).json()
    assert dislike["item_id"] not in [slot["item_id"] for slot in again["items"]]
    client.post("/v1/items", json={"item_id": "brand/new", "attributes": {"category": "tea"}})
    cold = client.get("/v1/items/brand%2Fnew/similar", params={"n": 2, "properties": "category"}).json()
    assert [slot["category"] for slot in cold["items"]] == ["tea", "tea"]
    assert {slot["source"] for slot in cold["items"]} == {"attributes"}
    newest = client.get("/v1/recommend/u01", params={"placement": "new"}).json()["items"]
    assert len(newest) == 3
    assert newest[0]["item_id"] == "brand/new"
    assert {slot["source"] for slot in newest} == {"latest"}
    decided = {row.request_id: row for row in server.decided()}
    assert decided[mine["request_id"]].query["item"] == "i01"
    assert decided[hot["request_id"]].user_id == ""
    assert server.stop() == 0
    found = verify.verify(project_with_lists)
    assert (found["unexplained"], found["checked"]) == (0, found["equal"])
    assert found["checked"] >= 6


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
