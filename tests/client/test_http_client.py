"""`recloop.Client` and `recloop.AsyncClient` against a real service."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from servers import Server

import recloop
from recloop.client.batches import MAX_BATCH_BYTES, batches, with_event_ids
from recloop.client.errors import ServiceError
from recloop.client.retry import MAX_WAIT_SECONDS, wait_seconds
from recloop.project import Project, open_project

START = datetime(2025, 7, 20, tzinfo=UTC)


def purchases(count: int, user: str) -> Iterator[dict[str, Any]]:
    """Events of one user, one per item and hour."""
    for number in range(count):
        item = f"i{number % 80:02d}"
        yield {
            "user_id": user,
            "item_id": item,
            "event_type": "purchase",
            "timestamp": START.timestamp() + 3600 * number,
        }


@pytest.fixture(scope="module")
def server(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One service for all tests that do not stop it."""
    server = servers.start(shutil.copytree(trained_folder, tmp_path_factory.mktemp("client") / "shop"))
    yield server
    server.close()


def test_client_sends_batches_and_calls_every_route(server: Server) -> None:
    with recloop.Client(server.url, server.token) as client:
        result = client.send_events(purchases(6_300, "a/b user"))
        assert (result.counts, result.problems) == ({"accepted": 6_300}, [])
        assert client.user("a/b user")["events"] == 6_300
        assert client.identify("browser/1", "a/b user")["status"] == "accepted"
        assert client.recommend("browser/1", n=3)["items"]
        items = client.send_items(
            [{"item_id": "new, lamp", "attributes": {"price": 5.0, "name": "lamp"}}, {"item_id": ""}]
        )
        assert items.counts == {"accepted": 1, "rejected": 1}
        assert items.problems[0][0] == {"item_id": ""}
        client.change_items([{"item_id": "new, lamp", "attributes": {"name": None}}])
        client.change_item("new, lamp", {"stock": np.int64(3)})
        assert client.item("new, lamp")["attributes"] == {"price": 5.0, "stock": 3}
        client.hide_item("new, lamp")
        assert client.item("new, lamp")["hidden"] is True
        assert client.send_users([{"user_id": "u1", "attributes": {"age": "30-44"}}]).counts == {"accepted": 1}
        full = client.recommend("a/b user", n=5, properties=["name", "price"], filter_seen=False)
        first = full["items"][0]["item_id"]
        assert {"name", "price"} <= set(full["items"][0])
        shorter = client.recommend("a/b user", n=5, exclude=[first], filter_seen=False)
        assert first not in {slot["item_id"] for slot in shorter["items"]}
        new = {slot["item_id"] for slot in client.recommend("u14", n=80, filter_seen=True)["items"]}
        assert {slot["item_id"] for slot in client.recommend("u14", n=5, min_new=1)["items"]} <= new
        assert len(client.similar("i01", n=3)["items"]) == 3
        assert client.status()["live"] == server.bundle
        row = {"user_id": "a/b user", "item_id": "i01", "event_type": "purchase", "event_id": "x", "timestamp": START}
        assert client.send_events([row]).counts == client.send_events([{**row, "event_id": "y"}]).counts
        assert client.send_events([row]).counts == {"duplicate": 1}
        assert client.delete_event("x")["status"] == "retracted"


def test_async_client_equals_the_client(server: Server) -> None:

    async def work() -> tuple[Any, Any, list[Any]]:
        async with recloop.AsyncClient(server.url, server.token) as client:
            result = await client.send_events(purchases(1_200, "u"))
            lists = await asyncio.gather(*(client.recommend(f"u{number:02d}", n=3) for number in range(20)))
            with pytest.raises(ServiceError, match="404 not_found"):
                await client.delete_event("unknown")
            return result, await client.user("u"), lists

    result, user, lists = asyncio.run(work())
    assert (result.counts, user["events"]) == ({"accepted": 1_200}, 1_200)
    with recloop.Client(server.url, server.token) as client:
        assert [client.recommend(f"u{number:02d}", n=3)["items"] for number in range(20)] == [
            one["items"] for one in lists
        ]


def test_events_sent_across_a_restart_are_stored_once(serving: Callable[..., Server], project: Project) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    server = serving(project.root, "--port", port)
    results = []

    def send() -> None:
        with recloop.Client(server.url, server.token, attempts=40) as client:
            events = purchases(10_000, "busy")
            while part := list(islice(events, 500)):
                results.append(client.send_events(part))

    thread = threading.Thread(target=send)
    thread.start()
    while not results:
        time.sleep(0.01)
    server.process.kill()
    server.process.wait()
    again = serving(project.root, "--port", port)
    thread.join()
    assert again.stop() == 0
    assert sum(sum(result.counts.values()) for result in results) == 10_000
    with open_project(project.root).open_log() as log:
        stored = log.events(user_id="busy")
    assert len(stored) == stored["event_id"].n_unique() == 10_000


def test_failed_batch_names_its_rows_and_what_was_sent(serving: Callable[..., Server], project: Project) -> None:
    server = serving(project.root)
    client = recloop.Client(server.url, server.token, attempts=1)

    def rows() -> Iterator[dict[str, Any]]:
        yield from purchases(5_000, "first")
        yield next(purchases(1, "second"))  # the first batch is sent when this row is read
        server.process.kill()
        server.process.wait()
        yield next(purchases(1, "third"))

    with pytest.raises(ServiceError, match="no answer unreachable") as failure:
        client.send_events(rows())
    assert failure.value.sent == {"accepted": 5_000}
    assert [row["user_id"] for row in failure.value.rows] == ["second", "third"]
    assert all(row["event_id"] for row in failure.value.rows)
    again = serving(project.root)
    with recloop.Client(again.url, again.token) as client:
        assert client.send_events(failure.value.rows).counts == {"accepted": 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda client: client.recommend("u01", n=0), "422 bad_n"),
        (lambda client: client.recommend("u01", number=3), "422 "),
        (lambda client: client.item("nothing"), "404 not_found"),
        (lambda client: client.send_events([{"user_id": "x" * 6_000_000}]), "413 too_large"),
    ],
)
def test_refused_request_is_not_repeated(server: Server, call: Callable[[recloop.Client], Any], message: str) -> None:
    client = recloop.Client(server.url, server.token, attempts=1_000)
    with client, pytest.raises(ServiceError, match=message) as failure:
        call(client)
    assert failure.value.request_id


def test_wait_doubles_up_to_a_limit_and_respects_the_service() -> None:
    lost = ServiceError(0, "unreachable", "")
    waits = [wait_seconds(lost, attempt, 20) for attempt in range(1, 12)]
    assert all(0.2 * 2**n <= wait <= 0.3 * 2**n for n, wait in enumerate(waits[:6]) if wait is not None)
    assert waits[-1] == MAX_WAIT_SECONDS
    assert wait_seconds(lost, 20, 20) is None
    assert wait_seconds(ServiceError(503, "busy", "", retry_after=4.0), 1, 2) == 4.0
    assert wait_seconds(ServiceError(422, "bad_n", ""), 1, 2) is None


def test_batches_keep_the_limits_and_the_order() -> None:
    rows = [{"number": number, "text": "ü" * 1_000} for number in range(2_500)]
    parts = list(batches(iter(rows)))
    assert [row for part in parts for row in part.rows] == rows
    assert max(len(part.rows) for part in parts) <= 1_000
    assert max(len(part.body) for part in parts) <= MAX_BATCH_BYTES + 1
    assert list(batches([])) == []
    assert [len(part.rows) for part in batches([{"text": "x" * MAX_BATCH_BYTES}, {}])] == [1, 1]


def test_event_ids_are_kept_or_random() -> None:
    first, second, third = with_event_ids([{"event_id": "a"}, {}, {"event_id": None}])
    assert first["event_id"] == "a"
    assert len({second["event_id"], third["event_id"], ""}) == 3


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_value_without_json_is_refused_before_sending(value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        list(batches([{"value": value}]))


def test_client_without_httpx_names_the_extra() -> None:
    code = 'import sys; sys.modules["httpx"] = None; import recloop; recloop.Client'
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'pip install "recloop[client]"' in done.stderr
