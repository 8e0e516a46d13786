"""Bodies of JSON lines: up to 10,000 rows, packed or not, with the statuses of an array."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
import servers

from recloop.project import Project
from recloop.serve.app import create
from recloop.serve.service import Service

LINES = {"Content-Type": "application/x-ndjson"}


def events(count: int, prefix: str) -> list[dict[str, Any]]:
    """Events that need a conversion: their values are texts."""
    return [
        {"user_id": f"{prefix}{n % 700}", "item_id": f"i{n % 80:02d}", "event_type": "purchase", "event_id": f"{prefix}{n}",
         "timestamp": f"2026-11-20T{n % 24:02d}:{n % 60:02d}:00Z", "value": "1,5"}
        for n in range(count)
    ]  # fmt: skip


def lines(rows: Sequence[Any]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


@pytest.mark.parametrize("is_packed", [False, True])
def test_ten_thousand_lines_are_stored_and_one_more_is_422(project: Project, is_packed: bool) -> None:
    async def post(client: httpx.AsyncClient, service: Service) -> None:
        async def send(rows: Sequence[Any]) -> httpx.Response:
            body = lines(rows)
            packed = {"Content-Encoding": "gzip"} if is_packed else {}
            return await client.post(
                "/v1/events", content=gzip.compress(body) if is_packed else body, headers={**LINES, **packed}
            )

        rows = events(10_000, "n")
        seq = service.as_of
        reply = await send(rows)
        assert (reply.status_code, reply.json()["accepted"]) == (200, 10_000)
        assert service.as_of == seq + 10_000
        reply = await send([*rows, rows[0]])
        assert (reply.status_code, reply.json()["error"]["code"]) == (422, "too_many_rows")
        assert reply.json()["error"]["message"] == "10001 rows in one request; expected at most 10000"
        array = await client.post("/v1/events", json=rows[:1_001])
        assert (array.status_code, array.json()["error"]["code"]) == (422, "too_many_rows")
        past = (await client.get("/v1/users/n5")).json()
        assert past["events"] == len([n for n in range(10_000) if n % 700 == 5])

    servers.inside(create(project), post)


def test_lines_and_array_give_the_same_statuses(project: Project) -> None:
    rows: list[Any] = [*events(3, "s"), {"item_id": "i01"}, 7, {**events(1, "s")[0], "value": "2"}]
    rows.append({**events(9, "s")[8], "quantity": 0})

    async def post(client: httpx.AsyncClient, _: Service) -> None:
        sent = (await client.post("/v1/events", content=lines([*rows, rows[0]]), headers=LINES)).json()
        statuses = [row["status"] for row in sent["rows"]]
        assert statuses == ["accepted"] * 3 + ["rejected", "rejected", "conflict", "quarantined", "duplicate"]
        other = json.loads(json.dumps(rows).replace('"s', '"t'))
        array = (await client.post("/v1/events", json=[*other, other[0]])).json()
        assert [row["status"] for row in array["rows"]] == statuses
        assert [row["reason"] for row in array["rows"]] == [row["reason"] for row in sent["rows"]]
        items = lines([{"item_id": f"new-{n}", "attributes": {"price": n}} for n in range(1_500)])
        reply = (await client.post("/v1/items", content=items, headers=LINES)).json()
        assert reply["accepted"] == 1_500

    servers.inside(create(project), post)
