"""A part that hangs gives a list within the deadline that names it, and later lists do not wait for it.

The same holds in a worker process, and an event that is posted meanwhile is acknowledged in time.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import servers

from recloop.monitoring import verify
from recloop.project import open_project

DEADLINE = 2.0
PROGRAM = """
import os, sys, time
from pathlib import Path
sys.modules["nicegui"] = None
from recloop.cli import main
from recloop.serve import list_endpoint, part_timeout
part_timeout.PAUSE_SECONDS = 2.0
from recloop.recommend import recommender, sources, user_states

def hangs(part, original):
    def called(*arguments, **options):
        hanging, how = (Path(sys.argv[2]) / "hanging").read_text().split()
        if part in hanging.split(","):
            time.sleep(3600) if how == "waits" else None
            while how == "loops":
                pass
        return original(*arguments, **options)
    return called

make_sources = recommender.make_sources
def patched(*arguments):
    made = make_sources(*arguments)
    for name, source in made.items():
        source.best = hangs(name, source.best)
    return made
recommender.make_sources = patched
Recommender = recommender.Recommender
Recommender.rank_sources = hangs("ranker", lambda self, encoded, allowed, placement, k: self.fuse_sources(
    encoded, allowed, [], placement, k, with_ranker=False))
Recommender.is_ranked = lambda self, placement: placement.list == "for_you"
user_states.StateSource.read = hangs("state", user_states.StateSource.read)

json_reply = list_endpoint.json_reply
def with_process(body):
    reply = json_reply(body)
    reply.headers.append((b"x-process", str(os.getpid()).encode()))
    return reply
list_endpoint.json_reply = with_process
if __name__ == "__main__":
    main()
"""
"""A worker process imports the file of its parent, and thus the same parts."""


@dataclass
class Process:
    """A process of a server, and a client whose connection it has."""

    server: servers.Server
    client: httpx.Client
    id: int

    def hang(self, parts: str, how: str) -> None:
        (self.server.root / "hanging").write_text(f"{parts} {how}")

    def ask(self) -> tuple[float, dict[str, Any]]:
        """Ask for a list; return its seconds and its answer."""
        begin = time.monotonic()
        answer = self.client.get("/v1/recommend/u14?n=5")
        assert answer.status_code == 200, answer.text
        assert int(answer.headers["x-process"]) == self.id, "the process was replaced"
        return time.monotonic() - begin, answer.json()

    def wait_until_whole(self) -> None:
        """Wait until no part is left out."""
        end = time.monotonic() + servers.PATIENCE
        while (answer := self.ask()[1])["degraded"]:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert len(answer["items"]) == 5


def start(folder: Path, *words: str) -> servers.Server:
    file = folder.parent / "program.py"
    file.write_text(PROGRAM)
    (folder / "hanging").write_text("nothing never")
    return servers.start(folder, "--set", f"serve.limits.list_seconds={DEADLINE}", *words, program=(str(file),))


def worker_of(server: servers.Server) -> Process:
    """Connect to the worker process."""
    end = time.monotonic() + servers.PATIENCE
    while time.monotonic() < end:
        client = httpx.Client(base_url=server.url, headers=server.client.headers, timeout=servers.PATIENCE)
        process = int(client.get("/v1/recommend/u14?n=5").headers["x-process"])
        if process != server.process.pid:
            return Process(server, client, process)
        client.close()
    raise AssertionError("no connection to the worker process")


@pytest.fixture(scope="module")
def alone(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The only process of a server."""
    server = start(shutil.copytree(trained_folder, tmp_path_factory.mktemp("alone") / "shop"))
    try:
        yield Process(server, server.client, server.process.pid)
    finally:
        server.close()


@pytest.fixture(scope="module")
def worker(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """The worker process of a server of two processes."""
    server = start(shutil.copytree(trained_folder, tmp_path_factory.mktemp("worker") / "shop"), "--workers", "2")
    process = worker_of(server)
    try:
        yield process
    finally:
        process.client.close()
        server.close()


@pytest.mark.parametrize("how", ["waits", "loops"])
@pytest.mark.parametrize(
    ("hanging", "degraded"),
    [
        ("neighbours", ["neighbours", "ranker"]),
        ("ranker", ["ranker"]),
        ("state", ["state"]),
        ("neighbours,state", ["neighbours", "ranker", "state"]),
        ("history,model,neighbours,popular", ["history", "neighbours", "popular", "ranker", "sources"]),
    ],
)
def test_list_with_a_part_that_hangs_is_whole_and_in_time(
    alone: Process, hanging: str, degraded: list[str], how: str
) -> None:
    assert_left_out(alone, hanging, degraded, how)


@pytest.mark.parametrize("how", ["waits", "loops"])
@pytest.mark.parametrize(
    ("hanging", "degraded"), [("neighbours", ["neighbours", "ranker"]), ("ranker", ["ranker"]), ("state", ["state"])]
)
def test_list_of_a_worker_with_a_part_that_hangs_is_whole_and_in_time(
    worker: Process, hanging: str, degraded: list[str], how: str
) -> None:
    assert_left_out(worker, hanging, degraded, how)


def assert_left_out(process: Process, hanging: str, degraded: list[str], how: str) -> None:
    """A list without the part is answered in time, the next one at once, and later ones have the part again."""
    process.hang(hanging, how)
    seconds, answer = process.ask()
    assert seconds < DEADLINE
    assert (answer["degraded"], len(answer["items"])) == (degraded, 5)
    process.hang("nothing", "never")
    seconds, answer = process.ask()
    assert answer["degraded"] == degraded, "the part is left out for some time"
    assert seconds < DEADLINE / 4
    process.wait_until_whole()


@pytest.mark.parametrize("how", ["waits", "loops"])
def test_event_posted_while_a_worker_hangs_is_acknowledged_in_time(worker: Process, how: str) -> None:
    worker.hang("ranker", how)
    answers: list[tuple[float, dict[str, Any]]] = []
    thread = threading.Thread(target=lambda: answers.append(worker.ask()))
    thread.start()
    time.sleep(DEADLINE / 8)
    begin = time.monotonic()
    row = {"user_id": "u14", "item_id": "i01", "event_type": "view", "event_id": f"meanwhile {how}"}
    answer = worker.server.client.post("/v1/events", json=row)
    assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
    assert time.monotonic() - begin < DEADLINE
    thread.join()
    assert answers[0][1]["degraded"] == ["ranker"]
    worker.hang("nothing", "never")
    worker.wait_until_whole()


@pytest.mark.parametrize("name", ["alone", "worker"])
def test_lists_without_parts_that_hung_are_verified(name: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(name).server
    assert server.stop() == 0
    assert "a list took too long" in server.errors.read_text()
    found = verify.verify(open_project(server.root), 1_000)
    assert found["equal"] == found["checked"] >= 12, found["differences"]
