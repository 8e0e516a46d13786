"""Rejected rows of requests: kept, counted, replayed and dropped, by the service and beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import servers
from prometheus_client.parser import text_string_to_metric_families

from recloop.client.batches import STATUSES
from recloop.errors import UserError
from recloop.pipeline import rejected, retention
from recloop.project import Project, open_project
from recloop.serve.app import create
from recloop.serve.service import Service

Work = Callable[[httpx.AsyncClient, Service], Any]
NDJSON = {"Content-Type": "application/x-ndjson"}


def event(event_id: str, **more: Any) -> dict[str, Any]:
    return {"user_id": "u14", "item_id": "i01", "event_type": "purchase", "event_id": event_id, **more}


MIXED: list[Any] = [
    event("a"), event("a"), event("a", value=3), event("b", quantity=0), event("c", timestamp="soon"),
    {"item_id": "i02", "event_type": "purchase", "event_id": "d"}, {"user": "u14", "event_id": "e"},
]  # fmt: skip
"""One accepted, duplicate, conflict and quarantined row, and three rejected ones."""


def served(project: Project, work: Work) -> None:
    servers.inside(create(project), work)


def metric(text: str, name: str) -> dict[str, float]:
    """Values of a metric by status, or under an empty status."""
    return {
        sample.labels.get("status", ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def test_sent_rows_equal_the_sum_of_statuses_in_reply_status_and_metrics(project: Project) -> None:
    async def post(client: httpx.AsyncClient, service: Service) -> None:
        reply = (await client.post("/v1/events", json=MIXED)).json()
        assert [reply[name] for name in STATUSES] == [1, 1, 1, 1, 3]
        body = b"\n".join([json.dumps(event("f")).encode(), b'{"user_id": "u14", "item', b"[1]"])
        reply = (await client.post("/v1/events", content=body, headers=NDJSON)).json()
        assert [reply[name] for name in STATUSES] == [1, 0, 0, 0, 2]
        assert (await client.post("/v1/events", content=b"{", headers=NDJSON)).status_code == 207
        assert (await client.post("/v1/events", json=5)).status_code == 422, "no row, so no status"
        counts = dict(zip(STATUSES, (2, 1, 1, 1, 6), strict=True))
        status = (await client.get("/v1/status")).json()
        assert status["event_rows"] == counts
        assert sum(counts.values()) == len(MIXED) + 3 + 1
        assert (status["rejected"]["rows"], status["rejected"]["dropped"]) == (6, 0)
        text = (await client.get("/metrics")).text
        assert metric(text, "recloop_event_rows_total") == counts
        assert metric(text, "recloop_rejected_rows") == {"": 6}
        assert service.rejected.size().rows == 6

    served(project, post)
    rows = project.open_rejected().rows()
    assert json.loads(rows[0].raw) == MIXED[4], "the row as it was sent"
    assert rows[3].raw == '{"user_id": "u14", "item'
    assert rows[0].reason.startswith("timestamp=soon: expected ")
    assert {row.route for row in rows} == {"POST /v1/events"}
    assert all(row.at > 1_700_000_000_000_000 for row in rows)


def test_rejected_items_and_users_are_kept_and_not_replayed(project: Project) -> None:
    async def post(client: httpx.AsyncClient, _: Service) -> None:
        await client.post("/v1/items", json=[{"item_id": "i01", "colour": "red"}, {"item_id": "i02"}])
        await client.patch("/v1/items", json=[{"item_id": "unheard-of", "attributes": {}}])
        await client.post("/v1/users", json=[{"user_id": ""}])

    served(project, post)
    assert [(row.kind, row.route) for row in project.open_rejected().rows()] == [
        ("item", "POST /v1/items"), ("item", "PATCH /v1/items"), ("user", "POST /v1/users"),
    ]  # fmt: skip
    assert sum(rejected.replay(project)[name] for name in STATUSES) == 0
    with pytest.raises(UserError, match="ID=1: expected the number of a rejected row"):
        rejected.replay(project, [1])


@pytest.mark.parametrize("beside_service", [False, True])
def test_replay_after_a_change_stores_each_row_once(
    project: Project, serving: Callable[..., servers.Server], beside_service: bool
) -> None:
    """A row is accepted, a duplicate or still rejected; a second replay adds nothing."""

    async def post(client: httpx.AsyncClient, _: Service) -> None:
        basket = {"item_id": "i03", "event_type": "purchase", "group_id": "receipt-1"}
        reply = (await client.post("/v1/events", json=[basket, event("x", timestamp="soon"), event("y")])).json()
        assert reply["rejected"] == 2

    toml = project.root / "recloop.toml"
    before = toml.read_text("utf-8")
    served(open_project(project.root, ["data.guests=reject"]), post)
    received = project.open_rejected().rows()[0].at
    assert toml.read_text("utf-8") == before
    server = serving(project.root) if beside_service else None
    tree = rejected.replay(project)
    assert {name: tree[name] for name in ("accepted", "duplicate", "rejected")} == {
        "accepted": 1, "duplicate": 0, "rejected": 1,
    }  # fmt: skip
    (problem,) = tree["problems"]
    assert (problem["id"], problem["status"]) == (2, "rejected")
    if server is not None:
        assert server.client.get("/v1/status").json()["rejected"]["rows"] == 1
        assert server.stop() == 0
    with project.open_log() as log:
        (row,) = log.events("guest:receipt-1").to_dicts()
    assert (row["timestamp"], row["event_id"]) == (received, f"rejected-1-{received}"), "the time of the first receipt"

    store = project.open_rejected()
    store.put([store.rows()[0]._replace(raw=json.dumps({**event("y"), "value": None}), id=0)])
    assert rejected.replay(project)["duplicate"] == 1, "posted meanwhile"
    assert [kept.id for kept in store.rows()] == [2]


def test_verb_lists_replays_and_drops(
    project: Project, cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    async def post(client: httpx.AsyncClient, _: Service) -> None:
        await client.post("/v1/events", json=MIXED)

    served(project, post)
    code, out, _ = cli("-C", project.root, "rejected", "list")
    assert code == 0
    assert out.splitlines()[0].startswith("1  20")
    assert "POST /v1/events  timestamp=soon: expected" in out
    assert "3 rejected rows of requests, 0 of files shown" in out
    assert "quarantined: " in out
    tree = json.loads(cli("-C", project.root, "rejected", "list", "-n", "1", "--json")[1])
    assert (tree["total"], [row["id"] for row in tree["rows"]]) == (3, [3])
    shown = json.loads(cli("-C", project.root, "rejected", "list", "--quarantined", "--json")[1])["rows"]
    assert (shown[-1]["event_id"], shown[-1]["rule"]) == ("b", "keep")
    code, out, _ = cli("-C", project.root, "rejected", "replay")
    assert (code, out.splitlines()[-1]) == (1, "0 accepted, 0 duplicate, 0 conflict, 0 quarantined, 3 rejected")
    assert cli("-C", project.root, "rejected", "drop")[0] == 2
    assert cli("-C", project.root, "rejected", "drop", "77")[0] == 2
    assert cli("-C", project.root, "rejected", "drop", "2")[:2] == (0, "1 rows dropped\n")
    assert json.loads(cli("-C", project.root, "rejected", "drop", "--all", "--json")[1]) == {"dropped": 2}


def test_list_shows_no_control_characters_of_a_sender(
    project: Project, cli: Callable[..., tuple[int, str, str]]
) -> None:
    async def post(client: httpx.AsyncClient, _: Service) -> None:
        await client.post("/v1/events", content=b'\x1b]0;title\x07{"user_id\n', headers=NDJSON)

    served(project, post)
    out = cli("-C", project.root, "rejected", "list")[1]
    assert " ]0;title {" in out
    assert not {"\x1b", "\x07"} & set(out)


def test_rows_older_than_the_retention_are_removed(project: Project) -> None:
    async def post(client: httpx.AsyncClient, _: Service) -> None:
        await client.post("/v1/events", json=MIXED)

    served(project, post)
    assert retention.collect(project).freed["rejected"].count == 0
    store = project.open_rejected()
    store.put([store.rows()[0]._replace(at=1, raw="old")])
    assert retention.collect(project, dry_run=True).freed["rejected"].count == 1
    assert retention.collect(project).freed["rejected"].count == 1
    assert store.size().rows == 3


def test_a_store_that_cannot_be_written_is_counted_and_events_are_stored(project: Project) -> None:
    async def post(client: httpx.AsyncClient, service: Service) -> None:
        service.rejected.file.mkdir()
        reply = await client.post("/v1/events", json=MIXED)
        assert (reply.status_code, reply.json()["accepted"]) == (207, 1)
        status = (await client.get("/v1/status")).json()
        assert status["rejected"] == {"rows": 0, "bytes": 0, "dropped": 3}

    served(project, post)


@pytest.mark.parametrize("body", [{}, {"ids": []}, {"ids": ["1"]}, {"ids": list(range(1_001))}, {"id": [1]}])
def test_replay_route_refuses_a_bad_body(project: Project, body: dict[str, Any]) -> None:
    async def post(client: httpx.AsyncClient, _: Service) -> None:
        assert (await client.post("/v1/admin/replay", json=body)).status_code == 422
        anonymous = await client.post("/v1/admin/replay", json={"ids": [1]}, headers={"Authorization": ""})
        assert anonymous.status_code == 401

    served(project, post)
