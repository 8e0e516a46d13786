"""``DELETE /v1/events/{event_id}`` retracts an event from states, lists and training."""

from __future__ import annotations

from typing import Any

import httpx
import polars as pl
from servers import inside
from starlette.concurrency import run_in_threadpool

from recloop.monitoring.verify import verify
from recloop.project import Project
from recloop.records import SECOND
from recloop.serve.app import create
from recloop.serve.service import Service
from recloop.storage.retractions import RESTORED, Retraction

START = 1_752_000_000 * SECOND  # a few days after the shop's last row
USER = "new user"


def serve(project: Project, work: Any) -> None:
    """Run requests against a service; its clock advances a second per reading."""
    stamps = iter(range(START, START + 10_000 * SECOND, SECOND))
    inside(create(project, clock=lambda: next(stamps)), work)


async def buy(client: httpx.AsyncClient, item_id: str, event_id: str) -> str:
    row = {"user_id": USER, "item_id": item_id, "event_type": "purchase", "event_id": event_id}
    answer = await client.post("/v1/events", json=row)
    status: str = answer.json()["rows"][0]["status"]
    return status


async def state(client: httpx.AsyncClient) -> tuple[int, list[str]]:
    user = (await client.get(f"/v1/users/{USER}")).json()
    await client.get(f"/v1/recommend/{USER}")  # a decision that verify rebuilds
    return user["events"], [event["item_id"] for event in user["last_events"]]


async def delete(client: httpx.AsyncClient, event_id: str) -> tuple[int, str]:
    answer = await client.delete(f"/v1/events/{event_id}")
    tree = answer.json()
    return answer.status_code, tree["status"] if answer.status_code == 200 else tree["error"]["code"]


def test_deleted_event_leaves_the_state_and_decisions_stay_verified(project: Project) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        assert await buy(client, "i05", "order 1/a") == "accepted"
        assert await buy(client, "i06", "order-2") == "accepted"
        assert await state(client) == (2, ["i06", "i05"])
        assert await delete(client, "order%201/a") == (200, "retracted")
        assert await state(client) == (1, ["i06"])
        assert await delete(client, "order%201/a") == (200, "unchanged")
        assert await buy(client, "i05", "order 1/a") == "duplicate"
        assert await state(client) == (1, ["i06"])
        assert await delete(client, "order-3") == (404, "not_found")
        assert len(service.log.retractions()) == 1

    async def after_restart(client: httpx.AsyncClient, _: Service) -> None:
        assert await state(client) == (1, ["i06"])

    serve(project, work)
    serve(project, after_restart)
    found = verify(project)
    assert (found["checked"], found["unexplained"]) == (4, 0)


def test_deleted_event_of_the_import_leaves_the_state(project: Project) -> None:
    purchases = project.open_archive().for_users(["u14"]).filter(pl.col("event_type") == "purchase")

    async def work(client: httpx.AsyncClient, _: Service) -> None:
        assert (await client.get("/v1/users/u14")).json()["events"] == len(purchases)
        for event_id in purchases["event_id"].head(2):
            assert await delete(client, event_id) == (200, "retracted")
        assert (await client.get("/v1/users/u14")).json()["events"] == len(purchases) - 2
        await client.get("/v1/recommend/u14")

    serve(project, work)
    assert verify(project)["unexplained"] == 0


def test_restored_event_can_be_deleted_again(project: Project) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await buy(client, "i05", "order-1")
        seq = service.log.event_seq("order-1")
        assert seq is not None
        assert await delete(client, "order-1") == (200, "retracted")
        await service.write(retractions=[Retraction(seq, RESTORED)])
        assert await state(client) == (1, ["i05"])
        assert await delete(client, "order-1") == (200, "retracted")
        assert await state(client) == (0, [])

    serve(project, work)


def test_event_deleted_while_another_archive_is_opened_stays_deleted(project: Project) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        assert await buy(client, "i05", "order-1") == "accepted"
        assert await buy(client, "i06", "order-2") == "accepted"
        specs = [service.bundle.spec]
        opened = await run_in_threadpool(service.user_states.over_archive, service.archive, specs, service.as_of)
        assert await delete(client, "order-1") == (200, "retracted")
        service.use_archive(service.archive, opened)
        assert await state(client) == (1, ["i06"])
        assert await delete(client, "order-2") == (200, "retracted")
        assert await state(client) == (0, [])

    serve(project, work)
    found = verify(project)
    assert (found["checked"], found["unexplained"]) == (2, 0)
