"""The writer in one process: group commits, acknowledgements after the commit, disk errors."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
import servers

from recloop.errors import Locked
from recloop.ingest import writer
from recloop.project import Project
from recloop.records import Event
from recloop.serve.app import create
from recloop.serve.service import Service
from recloop.storage import event_log as log_module


@pytest.fixture
def app(project: Project) -> Iterator[Any]:
    app = create(project, clock=lambda: 1_800_000_000_000_000)
    yield app
    app.state.service.close()


def within(app: Any, work: Callable[[httpx.AsyncClient, Service], Awaitable[None]]) -> None:
    """Run a coroutine on the application's event loop."""

    async def whole() -> None:
        async with servers.local(app) as client:
            await work(client, app.state.service)

    asyncio.run(whole())


def row(user: str, item: str = "i01", **more: Any) -> dict[str, Any]:
    return {"user_id": user, "item_id": item, "event_type": "purchase", **more}


def test_writer_commits_waiting_requests_together(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    queued = threading.Event()
    append = log_module.EventLog.insert_events

    def once_all_wait(self: Any, events: Any, *rest: Any) -> Any:
        commits.append(len(events))
        assert queued.wait(60)  # the disk is busy until every other request is in the queue
        return append(self, events, *rest)

    def wait_until_all_are_queued(waiting: Any) -> None:
        while sum(commits) + waiting.qsize() < 40:
            time.sleep(0.01)

    monkeypatch.setattr(log_module.EventLog, "insert_events", once_all_wait)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        before = service.as_of
        posts = [asyncio.create_task(client.post("/v1/events", json=row(f"u{n}"))) for n in range(40)]
        await asyncio.to_thread(wait_until_all_are_queued, service.writer._queue)
        queued.set()
        assert {(await post).status_code for post in posts} == {200}
        assert service.as_of == before + 40

    within(app, work)
    assert sum(commits) == 40
    assert len(commits) <= 2  # first the waiting rows, then all that queued meanwhile


def test_post_events_waits_for_the_commit_while_reads_are_answered(app: Any, project: Project) -> None:
    other = sqlite3.connect(project.store / "log.db", isolation_level=None)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        other.execute("BEGIN IMMEDIATE")  # the disk is busy
        posted = asyncio.create_task(client.post("/v1/events", json=row("waits")))
        for _ in range(5):
            assert (await client.get("/v1/recommend/waits")).status_code == 200
        assert not posted.done()  # a blocked event loop would have refused it by now
        assert service.user_state("waits").positives == 0
        other.execute("COMMIT")
        assert (await posted).status_code == 200
        assert service.user_state("waits").positives == 1

    within(app, work)
    other.close()


def test_post_events_on_a_full_disk_answers_503_and_stores_nothing(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    append = log_module.EventLog.insert_events

    def full(*_: Any) -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        before = service.as_of
        monkeypatch.setattr(log_module.EventLog, "insert_events", full)
        answer = await client.post("/v1/events", json=row("x"))
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "log_unavailable"
        assert answer.headers["retry-after"] == "1"
        listed = (await client.get("/v1/recommend/x")).json()
        assert listed["degraded"] == ["log"]
        assert len(listed["items"]) == 10
        assert service.as_of == before
        monkeypatch.setattr(log_module.EventLog, "insert_events", append)
        assert (await client.post("/v1/events", json=row("x"))).status_code == 200
        assert (await client.get("/v1/recommend/x")).json()["degraded"] == []

    within(app, work)


def test_recommend_needs_no_log_after_the_start(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """States are in memory, so lists stay complete and newest while the log cannot be read."""

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        monkeypatch.setattr(
            log_module.EventLog, "events", lambda *_: (_ for _ in ()).throw(sqlite3.OperationalError("io"))
        )
        before = (await client.get("/v1/users/u14")).json()["events"]
        assert (await client.post("/v1/events", json=row("u14"))).status_code == 200
        assert (await client.get("/v1/users/u14")).json()["events"] == before + 1
        listed = (await client.get("/v1/recommend/u14")).json()
        assert (listed["degraded"], len(listed["items"])) == ([], 10)

    within(app, work)


def test_post_events_over_max_pending_rows_answers_503_busy(app: Any) -> None:
    app.state.service.writer.max_pending_rows = 3

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        answer = await client.post("/v1/events", json=[row("x", f"i{n}") for n in range(4)])
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "busy")
        assert "at most 3 queued rows" in answer.json()["error"]["message"]
        assert 1 <= int(answer.headers["Retry-After"]) <= 4
        assert (await client.post("/v1/events", json=row("x"))).status_code == 200

    within(app, work)


def test_writer_with_a_failing_request_stores_the_other_requests(
    app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    causal_rules = writer.Writer.causal_rules

    def picky(self: Any, rows: Any) -> Any:
        if "poison-user" in rows["user_id"]:
            raise ZeroDivisionError("poison-user")
        return causal_rules(self, rows)

    monkeypatch.setattr(writer.Writer, "causal_rules", picky)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        users = ["a", "b", "poison-user", "c"]
        answers = await asyncio.gather(*[client.post("/v1/events", json=row(user)) for user in users])
        assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
        assert answers[2].json()["error"]["code"] == "internal_error"
        assert [service.user_state(user).positives for user in users] == [1, 1, 0, 1]

    within(app, work)
    assert "ZeroDivisionError at" in caplog.text
    assert "poison-user" not in caplog.text


def test_writer_after_a_client_disconnects_stores_its_rows(app: Any) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        task = asyncio.create_task(service.writer.write(events=[Event(user_id="gone", item_id="i01", timestamp=1)]))
        await asyncio.sleep(0)
        task.cancel()
        await client.post("/v1/events", json=row("other"))
        assert len(service.log.events("gone")) == 1

    within(app, work)


def test_writer_numbers_events_items_and_users_by_one_counter(app: Any) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        before = service.as_of
        await asyncio.gather(
            client.post("/v1/items", json={"item_id": "n1", "attributes": {"category": "tea"}}),
            client.post("/v1/users", json={"user_id": "m", "attributes": {"age": "60+"}}),
            client.post("/v1/events", json=row("m", "n1")),
        )
        assert service.as_of == before + 3
        assert service.log.last_seq() == service.as_of
        state = service.user_state("m")
        assert (state.positives.tolist(), state.attributes) == ([1], [{"age": "60+"}])
        assert service.catalog.get("n1").attributes == {"category": "tea"}

    within(app, work)


def test_create_with_a_running_application_raises_locked(app: Any, project: Project) -> None:
    with pytest.raises(Locked, match="held by `recloop serve`"):
        create(project)
    app.state.service.close()
    create(project).state.service.close()


@pytest.mark.parametrize("banned", [("torch", "lightning", "onnx"), ()])
def test_serving_imports_no_library_of_training(banned: tuple[str, ...]) -> None:
    """Import where torch is missing, and where it is installed but unused."""
    code = f"""
import sys
class Missing:
    def find_spec(self, name, *_):
        if name in {banned!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
for name in ("recloop.serve.offline", "recloop.monitoring.verify", "recloop.serve.app"):
    __import__(name)
    loaded = [one for one in ("torch", "lightning", "matplotlib", "numba", "scipy.sparse.linalg") if sys.modules.get(one)]
    assert not loaded, (name, loaded)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
