"""Workers: equal lists in every process, reads after writes, kills and releases."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import servers

from recloop import bundle as bundles
from recloop.cli import run
from recloop.monitoring.verify import verify
from recloop.project import Project
from recloop.records import Event, Item, Query, User
from recloop.serve import channel
from recloop.serve import worker as module
from recloop.serve.channel import TO_WORKER, TO_WRITER, Committed, Confirmed, Decided, Deployed, Started, frame
from recloop.serve.server import check_workers
from recloop.serve.service import Service
from recloop.serve.worker import WorkerService
from recloop.serve.worker_pool import WorkerPool
from recloop.storage import releases
from recloop.storage.accepted_count import WRITER_SLOT, AcceptedCounter, accepted_file, total

NOW = 1_752_000_000_000_000


class RecordingPool:
    """Pool that applies each commit to workers in this process, through its encoded form."""

    def __init__(self) -> None:
        self.workers: list[WorkerService] = []
        self.n_started = 0

    def commit(
        self, seq: int, rows: Any, users: list[User], items: list[Item], retractions: list[Any], identities: list[Any]
    ) -> None:
        message = frame(Committed(1, seq, rows if seq % 2 else None, users, items, retractions, identities))
        committed = TO_WORKER.decode(message[channel.HEAD_BYTES :])
        assert isinstance(committed, Committed)
        for worker in self.workers:
            worker.apply(committed)

    async def confirm_commits(self) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
def service(project: Project) -> Iterator[Service]:
    service = Service(project, clock=lambda: NOW)
    yield service
    service.close()


def worker_of(service: Service) -> WorkerService:
    """Open a worker of a service in this process."""
    live = service.deployments.live.arm
    deployed = Deployed(1, service.deployments.generation, live, None, "")
    return WorkerService(service.project, deployed, WRITER_SLOT + 1)


def lists(service: Service, users: list[str]) -> list[Any]:
    """Return the stored decisions of these users, without the times of their computation."""
    decisions = []
    for user in users:
        for text in ("", "category = 'tea'"):
            query = Query(user_id=user, now=NOW, request_id=user + text, filter=text)
            decisions.append(replace_latency(service.recommend(query, started=0.0)[1]))
    return decisions


def replace_latency(decision: Any) -> tuple[Any, ...]:
    return tuple(getattr(decision, name) for name in decision.__struct_fields__ if name != "latency_us")


def test_worker_gives_the_lists_of_the_writer_process(service: Service) -> None:
    pool: Any = RecordingPool()
    service.workers = pool
    users = ["u14", "u20", "u21", "fresh"]
    pool.workers.append(worker_of(service))

    async def write() -> None:
        for n, user in enumerate(users):
            event = parsed_event(user, n)
            await service.write(events=[event])
            await service.write(items=[Item(item_id=f"i{n + 10}", attributes={"category": "tea"}, received_at=NOW)])
            await service.write(users=[User(user_id=user, attributes={"age": "60+"}, received_at=NOW)])

    assert lists(service, users) == lists(pool.workers[0], users)
    asyncio.run(write())
    pool.workers.append(worker_of(service))  # a worker that starts later reads the rows from the log
    expected = lists(service, users)
    for worker in pool.workers:
        assert worker.as_of == service.as_of
        assert lists(worker, users) == expected
        worker.close()
    service.workers = None


def parsed_event(user: str, n: int) -> Event:
    return Event(
        seq=0,
        event_id=f"e{n}",
        user_id=user,
        item_id=f"i{n + 30}",
        timestamp=NOW,
        received_at=NOW,
        event_type="purchase",
    )


def test_worker_decisions_are_counted_and_scored_in_shadow_unless_items_changed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = worker_of(service)
    query = Query(user_id="u14", now=NOW, request_id="r", exclude=("i01",), n=10)
    decision = worker.recommend(query, started=0.0)[1]
    scored: list[Any] = []
    monkeypatch.setattr(service.shadow_choice, "is_shadowed", lambda *_: True)
    monkeypatch.setattr(service.shadow_choice, "add", lambda query, decision: scored.append(query))
    service.deployments = replace(service.deployments, shadows=(service.deployments.live,))
    service.record([decision], last_item_seq=decision.as_of_seq)
    service.record([decision], last_item_seq=decision.as_of_seq + 1)
    assert scored == [query]
    assert service.shadow.skipped == 1
    service.decisions.flush()
    assert service.decisions.repeated == 1
    worker.close()


def test_decisions_that_a_worker_did_not_send_are_counted_in_the_store_at_once(service: Service) -> None:
    worker = worker_of(service)
    for n in range(4):
        worker.recommend(Query(user_id="u14", now=NOW, request_id=f"r{n}"), started=0.0)
    service.record(worker.forwarded.waiting[:1], last_item_seq=0)
    worker.close()
    assert service.decisions.end_worker(WRITER_SLOT + 1, 1) == 3
    assert service.decisions.flush()
    with service.project.open_decisions() as reader:
        assert (len(reader.rows()), reader.lost) == (1, 3)
    service.close()
    for _ in range(2):
        again = Service(service.project)
        assert again.decisions.lost == 3
        again.close()


def send_garbage_and_answer(_project: Project, _listening: Any, channel_: socket.socket, slot: int, file: str) -> None:
    """Worker that sends a malformed message and accepts decisions for a while after that."""
    accepted = AcceptedCounter(Path(file), slot)
    channel_.sendall(frame(Started()) + (1).to_bytes(channel.HEAD_BYTES, "big") + b"?")
    for _ in range(20):
        accepted.add(1)
        time.sleep(0.02)


def test_decisions_of_a_worker_are_counted_after_its_end(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    file = accepted_file(service.decisions.file)
    monkeypatch.setattr(module, "run", send_garbage_and_answer)

    async def work(listening: socket.socket) -> None:
        app: Any = None
        pool = WorkerPool(service, app, listening, str(file), 1)
        pool.start()
        end = time.monotonic() + servers.PATIENCE
        while not service.decisions.lost:
            assert time.monotonic() < end, "no decision was counted as lost"
            await asyncio.sleep(0.05)
        await pool.close()

    with socket.socket() as listening:
        asyncio.run(work(listening))
    assert service.decisions.lost >= 20
    assert service.decisions.lost == total(file)


def test_messages_survive_their_encoding(service: Service) -> None:
    decision = service.recommend(Query(user_id="u14", now=NOW, request_id="r"), started=0.0)[1]
    for message in (Decided([decision]), Confirmed(7)):
        assert TO_WRITER.decode(frame(message)[channel.HEAD_BYTES :]) == message


@pytest.mark.parametrize("workers", ["0", "-1"])
def test_serve_without_workers_exits_2(project: Project, workers: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-C", str(project.root), "serve", "--workers", workers]) == 2
    assert f"error: --workers={workers}: expected at least 1" in capsys.readouterr().err


def test_more_workers_than_cores_are_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_workers(100_000) == 100_000
    assert "warning: --workers=100000 is more than the" in capsys.readouterr().err


def children(pid: int) -> list[int]:
    """Worker processes of a server."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            words = (folder / "cmdline").read_bytes()
        except (OSError, ValueError, IndexError):
            continue
        if parent == pid and b"spawn_main" in words:
            found.append(int(folder.name))
    return found


def wait_for_workers(server: servers.Server, n: int) -> None:
    end = time.monotonic() + 2 * servers.PATIENCE
    while server.client.get("/v1/status").json()["workers"] != n:
        assert time.monotonic() < end, "the workers did not start"
        time.sleep(0.1)


def another_bundle(project: Project) -> str:
    """Register a copy of the live bundle."""
    control = project.open_control()
    live = bundles.load(project.bundles / releases.live(control).bundle)
    made = bundles.write(replace(live, metrics={"again": 1}), project.bundles, datetime(2026, 1, 1, tzinfo=UTC))
    who: dict[str, Any] = {"by": "test", "reason": "newer", "at": 5, "evidence": {"gates": []}}
    releases.register(control, made.id, bundles.manifest_hash(project.bundles / made.id), **who)
    return made.id


class Reader(threading.Thread):
    """Client that writes an event, then reads the user's state and list on new connections."""

    def __init__(self, url: str, number: int, until: threading.Event) -> None:
        super().__init__()
        self.url, self.number, self.until = url, number, until
        self.answered = 0
        self.broken = 0  # connections of a killed worker
        self.failed: list[str] = []

    def run(self) -> None:
        n = 0
        while not self.until.is_set():
            n += 1
            user = f"w{self.number}-{n}"
            try:
                with httpx.Client(base_url=self.url, timeout=servers.PATIENCE) as client:
                    row = {"user_id": user, "item_id": "i05", "event_type": "purchase", "event_id": user}
                    if client.post("/v1/events", json=row).status_code != 200:
                        self.failed.append("post")
                for _ in range(3):
                    with httpx.Client(base_url=self.url, timeout=servers.PATIENCE) as client:
                        answer = client.get(f"/v1/recommend/{user}", params={"n": 5})
                    self.answered += 1
                    if answer.status_code != 200 or answer.json()["items"][0]["source"] == "popular":
                        self.failed.append(answer.text)  # a user without events gets popular items
            except httpx.HTTPError:
                self.broken += 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_under_load_kill_and_promotion(project: Project, serving: Callable[..., servers.Server]) -> None:
    server = serving(project.root, "--workers", "2")
    wait_for_workers(server, 2)
    until = threading.Event()
    readers = [Reader(server.url, number, until) for number in range(3)]
    for reader in readers:
        reader.start()
    time.sleep(2)
    (killed,) = children(server.process.pid)
    os.kill(killed, signal.SIGKILL)
    time.sleep(0.5)
    wait_for_workers(server, 2)
    assert children(server.process.pid) != [killed]
    moved = server.client.post(
        "/v1/admin/promote", json={"bundle": another_bundle(project), "to": "live", "reason": "x"}
    )
    if moved.status_code == 409:  # the gate of a bundle is checked by the next poll
        time.sleep(2)
        moved = server.client.post("/v1/admin/promote", json={"to": "live", "reason": "x"})
    live = releases.live(project.open_control()).bundle
    for _ in range(10):
        assert httpx.get(f"{server.url}/v1/recommend/u14", timeout=servers.PATIENCE).json()["model_version"] == live
    until.set()
    for reader in readers:
        reader.join()
    assert server.stop() == 0
    assert [reader.failed for reader in readers] == [[], [], []]
    store = project.open_decisions()
    answers = [row for row in store.rows() if row.role == "answer"]
    assert len(answers) + store.lost >= sum(reader.answered for reader in readers) + 10
    store.close()
    found = verify(project)
    assert (found["unexplained"], found["late"]) == (0, 0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_end_when_the_writer_process_is_killed(
    project: Project, serving: Callable[..., servers.Server]
) -> None:
    server = serving(project.root, "--workers", "2")
    wait_for_workers(server, 2)
    (worker,) = children(server.process.pid)
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    end = time.monotonic() + servers.PATIENCE
    while Path(f"/proc/{worker}").exists() and b"spawn_main" in Path(f"/proc/{worker}/cmdline").read_bytes():
        assert time.monotonic() < end
        time.sleep(0.05)
