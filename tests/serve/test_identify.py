"""``POST /v1/identify`` joins the history of an anonymous id with a user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from servers import inside

from recloop.monitoring.verify import verify
from recloop.project import Project
from recloop.records import SECOND, USER_ID
from recloop.release.assignment import Arm
from recloop.serve import offline
from recloop.serve.app import create
from recloop.serve.deployments import Deployment
from recloop.serve.service import Service
from recloop.storage.identities import Identities

START = 1_752_000_000 * SECOND  # a few days after the shop's last row
Work = Callable[[httpx.AsyncClient, Service], Any]


def serve(project: Project, work: Work, start: int = START) -> None:
    """Run requests against a service; its clock advances a second per reading."""
    stamps = iter(range(start, start + 10_000 * SECOND, SECOND))
    inside(create(project, clock=lambda: next(stamps)), work)


async def identify(client: httpx.AsyncClient, anonymous_id: str, user_id: str) -> dict[str, Any]:
    answer = await client.post("/v1/identify", json={"anonymous_id": anonymous_id, "user_id": user_id})
    assert answer.status_code == 200, answer.text
    tree: dict[str, Any] = answer.json()
    return tree


async def post(client: httpx.AsyncClient, item_id: str, event_type: str = "purchase", **ids: str) -> str:
    answer = await client.post("/v1/events", json={"item_id": item_id, "event_type": event_type, **ids})
    status: str = answer.json()["rows"][0]["status"]
    return status


async def items_of(client: httpx.AsyncClient, user_id: str) -> list[str]:
    """Items of a user's history, newest first."""
    answer = await client.get(f"/v1/users/{user_id}")
    return [] if answer.status_code == 404 else [event["item_id"] for event in answer.json()["last_events"]]


async def list_of(client: httpx.AsyncClient, **parameters: Any) -> list[str]:
    answer = await client.get("/v1/recommend", params={"n": 80, **parameters})
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def explained(project: Project) -> int:
    """Number of decisions that verify rebuilds; each must be equal."""
    result = verify(project)
    assert result["unexplained"] == 0, result["differences"]
    checked: int = result["checked"]
    return checked


def test_history_seen_items_and_dislikes_are_joined_from_the_next_request_on(project: Project) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await post(client, "i01", anonymous_id="phone")
        await post(client, "i02", anonymous_id="phone", event_type="dislike")
        await post(client, "i03", user_id="person")
        before = await list_of(client, anonymous_id="phone", filter_seen=True)
        assert ("i01" in before, "i02" in before, "i03" in before) == (False, False, True)
        answer = await identify(client, "phone", "person")
        assert (answer["status"], answer["moved"], answer["seq"]) == ("accepted", 2, service.as_of - 4)
        for ids in ({"user_id": "person"}, {"anonymous_id": "phone"}, {"user_id": "phone"}):
            listed = await list_of(client, **ids, filter_seen=True)
            assert not {"i01", "i02", "i03"} & set(listed)
        assert await items_of(client, "person") == ["i03", "i01"]
        assert await items_of(client, "phone") == ["i03", "i01"]

    serve(project, work)
    with project.open_decisions() as decisions:
        rows = [(row.user_id, row.anonymous_id) for row in decisions.rows()]
    assert rows == [("phone", "phone"), ("person", None), ("person", "phone"), ("person", "phone")]
    assert explained(project) == 4
    assert {item["item_id"] for item in offline.recommend(project, "phone")["items"]} == {
        item["item_id"] for item in offline.recommend(project, "person")["items"]
    }


def test_rows_of_a_shared_device_go_to_whoever_identified_last(project: Project) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        await post(client, "i01", anonymous_id="tablet")
        await identify(client, "tablet", "first")
        await post(client, "i02", anonymous_id="tablet")
        await identify(client, "tablet", "second")
        await post(client, "i03", anonymous_id="tablet")
        await post(client, "i04", user_id="first", anonymous_id="tablet")  # signed in
        assert await items_of(client, "first") == ["i04", "i02", "i01"]
        assert await items_of(client, "second") == ["i03"]
        assert await items_of(client, "tablet") == ["i03"]
        assert (await identify(client, "tablet", "first"))["moved"] == 0
        await post(client, "i05", user_id="tablet")
        assert await items_of(client, "first") == ["i05", "i04", "i02", "i01"]
        for user in ("first", "second", "tablet"):
            await list_of(client, user_id=user)

    serve(project, work)
    assert explained(project) == 3


def test_rows_of_the_import_move_with_their_id(project: Project) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        both = sorted([*await items_of(client, "u14"), *await items_of(client, "u15")])
        await list_of(client, user_id="u15")
        answer = await identify(client, "u14", "u15")
        assert answer["moved"] == len(project.open_archive().for_users(["u14"]))
        joined = (await client.get("/v1/users/u15")).json()
        assert joined["events"] >= len(both)
        await list_of(client, user_id="u14")

    async def again(client: httpx.AsyncClient, _: Service) -> None:
        await list_of(client, user_id="u14")

    serve(project, work)
    serve(project, again, START + 20_000 * SECOND)
    assert explained(project) == 3


def test_repeated_event_is_a_duplicate_before_and_after_an_identify(project: Project) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        row = {"anonymous_id": "phone", "event_id": "e1"}
        assert await post(client, "i01", **row) == "accepted"
        await identify(client, "phone", "person")
        assert await post(client, "i01", **row) == "duplicate"
        later = {"user_id": "phone", "event_id": "e2"}
        assert await post(client, "i02", **later) == "accepted"
        assert await post(client, "i02", **later) == "duplicate"
        await identify(client, "phone", "other")
        assert await post(client, "i02", **later) == "duplicate"
        assert await post(client, "i02", user_id="other", event_id="e2") == "conflict"
        assert await post(client, "i03", event_id="identified:1", user_id="person") == "rejected"
        assert await items_of(client, "person") == ["i02", "i01"]

    serve(project, work)


def test_event_of_an_anonymous_id_is_deleted_after_it_moved(project: Project) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        await post(client, "i01", anonymous_id="phone", event_id="e1")
        await post(client, "i02", anonymous_id="phone", event_id="e2")
        assert (await client.delete("/v1/events/e1")).json()["status"] == "retracted"
        assert (await identify(client, "phone", "person"))["moved"] == 1
        assert (await client.delete("/v1/events/e2")).json()["status"] == "retracted"
        assert await items_of(client, "person") == []
        await list_of(client, user_id="person")

    serve(project, work)
    assert explained(project) == 1


@pytest.mark.parametrize(
    ("anonymous_id", "user_id", "status"),
    [
        ("same", "same", 422), ("", "person", 422), ("phone", "", 422), (" ", "person", 422),
        ("guest:1", "person", 422), ("phone", "guest:1", 422), ("a" * 600, "person", 422),
        ("tablet", "phone", 409), ("person", "other", 409), ("person", "phone", 409),
    ],
)  # fmt: skip
def test_bad_identify_is_refused_and_changes_nothing(
    project: Project, anonymous_id: str, user_id: str, status: int
) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await identify(client, "phone", "person")
        await post(client, "i01", user_id="person")
        as_of = service.as_of
        answer = await client.post("/v1/identify", json={"anonymous_id": anonymous_id, "user_id": user_id})
        assert answer.status_code == status, answer.text
        assert (service.as_of, len(service.log.identities())) == (as_of, 1)
        assert await items_of(client, "person") == ["i01"]

    serve(project, work)


@pytest.mark.parametrize("body", [{}, {"anonymous_id": "a"}, {"anonymous_id": 0.5, "user_id": "u"}, [], 7])
def test_identify_with_another_body_is_422(project: Project, body: Any) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        assert (await client.post("/v1/identify", json=body)).status_code == 422

    serve(project, work)


def test_same_pair_twice_is_a_duplicate(project: Project) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        first = await identify(client, "phone", "person")
        second = await identify(client, "phone", "person")
        assert (first["status"], second["status"]) == ("accepted", "duplicate")
        assert first["seq"] == second["seq"] == service.as_of

    serve(project, work)


def test_whole_numbers_are_ids(project: Project) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        await client.post("/v1/events", json={"anonymous_id": 7, "item_id": "i01", "event_type": "purchase"})
        answer = await client.post("/v1/identify", json={"anonymous_id": 7, "user_id": 1001})
        assert (answer.json()["anonymous_id"], answer.json()["user_id"], answer.json()["moved"]) == ("7", "1001", 1)

    serve(project, work)


def test_list_needs_a_user_or_an_anonymous_id(project: Project) -> None:
    async def work(client: httpx.AsyncClient, _: Service) -> None:
        assert (await client.get("/v1/recommend")).status_code == 422
        similar = await client.get("/v1/items/i01/similar", params={"anonymous_id": "phone"})
        assert similar.status_code == 200

    serve(project, work)
    with project.open_decisions() as decisions:
        assert [row.user_id for row in decisions.rows()] == ["phone"]


def test_experiment_arm_does_not_change_at_login(project: Project) -> None:
    devices = [f"device-{number}" for number in range(40)]

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        live = service.deployments.live
        tried = Deployment(live.recommender, Arm("tried", 1, "candidate", 0.5, "tried"))
        service.deployments = replace(service.deployments, candidate=tried)

        async def arm(**ids: str) -> str:
            variant: str = (await client.get("/v1/recommend", params=ids)).json()["variant"]
            return variant

        before = [await arm(anonymous_id=name) for name in devices]
        assert {"live", "candidate"} == set(before)
        for name in devices:
            await identify(client, name, f"user of {name}")
        assert [await arm(user_id=f"user of {name}") for name in devices] == before
        assert [await arm(anonymous_id=name) for name in devices] == before
        for name in devices:  # the second device joins the arm of the user
            await identify(client, f"second {name}", f"user of {name}")
        assert [await arm(anonymous_id=f"second {name}") for name in devices] == before

    serve(project, work)


def test_identify_is_in_the_next_answer_of_every_worker(project: Project, serving: Any) -> None:
    server = serving(project.root, "--workers", "2")
    for number in range(10):
        phone, person = f"phone {number}", f"person {number}"
        for item in ("i01", "i02"):
            row = {"item_id": item, "event_type": "purchase"}
            assert server.client.post("/v1/events", json={**row, "anonymous_id": phone}).json()["accepted"] == 1
        body = {"anonymous_id": phone, "user_id": person}
        assert server.client.post("/v1/identify", json=body).json()["moved"] == 2
        for _ in range(4):  # a new connection may reach another process
            with httpx.Client(base_url=server.url, headers=server.client.headers) as client:
                for ids in ({"user_id": person}, {"anonymous_id": phone}):
                    listed = client.get("/v1/recommend", params={**ids, "n": 80, "filter_seen": True}).json()["items"]
                    assert not {"i01", "i02"} & {item["item_id"] for item in listed}
    assert server.stop() == 0
    assert explained(project) == 80


def test_identity_is_unknown_before_its_seq(project: Project) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await post(client, "i01", anonymous_id="phone")
        seq = (await identify(client, "phone", "person"))["seq"]
        registry = service.user_states.over_archive(service.archive, [service.bundle.spec], seq - 1)
        assert registry.identities.person("phone") == "phone"
        registry.catch_up(seq)
        assert registry.identities.person("phone") == "person"

    serve(project, work)


def test_verify_finds_a_decision_for_an_identified_id(project: Project) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await identify(client, "phone", "person")
        service.user_states.identities = Identities()  # as if the process had not noticed it
        await list_of(client, anonymous_id="phone")

    serve(project, work)
    (difference,) = verify(project)["differences"]
    assert (difference["name"], difference["expected"], difference["actual"]) == (USER_ID, "phone", "person")
