"""Changes of items: named attributes, hiding, unknown items, and patches that arrive together."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
import servers

from recloop.project import Project
from recloop.serve.app import create

WHOLE = {"item_id": "i01", "attributes": {"name": "lamp", "price": 5, "stock": 3}}


async def attributes(client: httpx.AsyncClient, item_id: str = "i01") -> dict[str, Any]:
    answer = await client.get(f"/v1/items/{item_id}")
    found: dict[str, Any] = answer.json()["attributes"]
    return found


def test_patch_changes_named_attributes_and_removes_null(project: Project) -> None:
    async def work(client: httpx.AsyncClient, _: Any) -> None:
        await client.post("/v1/items", json=WHOLE)
        answer = await client.patch("/v1/items/i01", json={"attributes": {"stock": 0, "name": None, "color": "red"}})
        assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
        assert await attributes(client) == {"price": 5, "stock": 0, "color": "red"}
        rows = [{"item_id": "i01", "attributes": {"stock": 1}}, {"item_id": "i01", "attributes": {"price": 6}}]
        answer = await client.patch("/v1/items", json=rows)
        assert answer.json()["accepted"] == 2
        assert await attributes(client) == {"price": 6, "stock": 1, "color": "red"}
        answer = await client.patch("/v1/items", json=[*rows, {"item_id": "nowhere", "attributes": {"stock": 1}}])
        assert (answer.status_code, answer.json()["rejected"]) == (207, 1)
        assert "unknown item" in answer.json()["rows"][2]["reason"]

    servers.inside(create(project), work)


def test_deleted_item_is_in_no_list_and_a_patch_shows_it_again(project: Project) -> None:
    async def work(client: httpx.AsyncClient, _: Any) -> None:
        listed = (await client.get("/v1/recommend/unknown?n=1")).json()["items"][0]["item_id"]
        before = await attributes(client, listed)
        assert (await client.delete(f"/v1/items/{listed}")).status_code == 200
        item = (await client.get(f"/v1/items/{listed}")).json()
        assert (item["hidden"], item["attributes"]) == (True, before)
        later = (await client.get("/v1/recommend/unknown?n=100")).json()["items"]
        assert listed not in {slot["item_id"] for slot in later}
        assert (await client.patch(f"/v1/items/{listed}", json={"attributes": {"stock": 0}})).status_code == 200
        assert (await client.get(f"/v1/items/{listed}")).json()["hidden"] is True
        await client.patch(f"/v1/items/{listed}", json={"hidden": False})
        assert (await client.get("/v1/recommend/unknown?n=1")).json()["items"][0]["item_id"] == listed

    servers.inside(create(project), work)


def test_patches_and_posts_that_arrive_together_keep_each_others_attributes(project: Project) -> None:
    async def work(client: httpx.AsyncClient, _: Any) -> None:
        await client.post("/v1/items", json=WHOLE)
        names = [f"field{number}" for number in range(20)]
        answers = await asyncio.gather(
            *(client.patch("/v1/items/i01", json={"attributes": {name: 1}}) for name in names)
        )
        assert {answer.status_code for answer in answers} == {200}
        assert await attributes(client) == WHOLE["attributes"] | dict.fromkeys(names, 1)  # type: ignore[operator]

    servers.inside(create(project), work)


@pytest.mark.parametrize(
    ("path", "body", "status", "problem"),
    [
        ("/v1/items/nowhere", {"attributes": {"stock": 1}}, 404, "unknown item"),
        ("/v1/items/i01", {"attributes": {f"a{n}": n for n in range(65)}}, 422, "at most 64"),
        ("/v1/items/i01", {"price": 3}, 422, "price"),
        ("/v1/items/i01", {"hidden": "yes"}, 422, "hidden"),
        ("/v1/items/i01", [], 422, "not one object"),
        ("/v1/items/i01", [{"hidden": True}, {"hidden": False}], 422, "not one object"),
        ("/v1/items/" + "x" * 600, {"hidden": True}, 422, "512 bytes"),
    ],
)
def test_invalid_change_is_refused_and_nothing_is_stored(
    project: Project, path: str, body: Any, status: int, problem: str
) -> None:
    async def work(client: httpx.AsyncClient, service: Any) -> None:
        before = service.as_of
        answer = await client.patch(path, json=body)
        assert answer.status_code == status
        assert problem in answer.json()["error"]["message"]
        assert (await client.delete("/v1/items/nowhere")).status_code == 404
        assert (await client.patch("/v1/items/i01", content=b"{}")).status_code == 415
        assert service.as_of == before

    servers.inside(create(project), work)
