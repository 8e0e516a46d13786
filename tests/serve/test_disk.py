"""Free space on a small disk of its own: what stops, what goes on, and what returns by itself."""

from __future__ import annotations

import asyncio
import errno
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import servers
from pydantic import ValidationError

from recloop.config import Disk
from recloop.monitoring.verify import verify
from recloop.project import open_project
from recloop.serve.app import create
from recloop.serve.disk import DiskLevel, DiskWatch, free_share
from recloop.serve.service import Service

SIZE = 96 * 2**20
EVENT = {"item_id": "i01", "event_type": "purchase"}


@pytest.fixture
def small_disk(trained_folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A project folder on a tmpfs of 96 MiB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", mounted], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield Path(shutil.copytree(trained_folder, mounted / "shop"))
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


def fill(folder: Path, share: float) -> None:
    """Fill the disk until this share is free."""
    ballast = folder.parent / "ballast"
    ballast.unlink(missing_ok=True)
    with ballast.open("wb") as file:
        while free_share(folder) > share:
            missing = int((free_share(folder) - share) * SIZE)
            try:
                file.write(bytes(max(4_096, min(missing, 2**20))))
                file.flush()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                break


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + servers.PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_service_stops_parts_as_the_disk_fills_and_returns_by_itself(
    small_disk: Path, serving: Callable[..., servers.Server]
) -> None:
    server = serving(small_disk)
    client = server.client

    def status() -> dict:  # type: ignore[type-arg]
        tree: dict = client.get("/v1/status").json()  # type: ignore[type-arg]
        return tree

    def listed() -> httpx.Response:
        reply = client.get("/v1/recommend/u14")
        assert (reply.status_code, len(reply.json()["items"])) == (200, 10)
        return reply

    def post(name: str) -> httpx.Response:
        return client.post("/v1/events", json={**EVENT, "user_id": name, "event_id": name})

    assert (status()["alarms"], post("a").status_code) == ([], 200)
    fill(small_disk, 0.08)
    until(lambda: status()["alarms"] == ["disk"])
    assert listed().json()["degraded"] == []
    assert post("b").json()["accepted"] == 1
    n_recorded = len(server.decided())
    assert n_recorded == 1

    fill(small_disk, 0.04)
    until(lambda: status()["alarms"] == ["decisions", "disk"])
    assert listed().json()["degraded"] == ["decisions"]
    assert post("c").json()["accepted"] == 1
    assert status()["disk"]["unrecorded_decisions"] == 1
    assert "recloop_decisions_unrecorded_total 1.0" in client.get("/metrics").text

    fill(small_disk, 0.015)
    until(lambda: post("probe").status_code == 503)
    reply = post("d")
    assert (reply.json()["error"]["code"], reply.headers["Retry-After"]) == ("disk_full", "10")
    assert reply.json()["error"]["message"].startswith("less than 2% of the disk is free")
    assert client.post("/v1/items", json={"item_id": "new"}).status_code == 503
    assert client.post("/v1/users", json={"user_id": "u14"}).status_code == 503
    listed()
    text = client.get("/metrics").text
    assert 'recloop_alarm{alarm="disk"} 1.0' in text
    assert 'recloop_alarm{alarm="bundle"} 0.0' in text

    fill(small_disk, 0.5)
    until(lambda: status()["alarms"] == [])
    assert post("d").json()["accepted"] == 1, "without a restart"
    assert listed().json()["degraded"] == []
    until(lambda: len(server.decided()) == n_recorded + 1)
    logged = server.errors.read_text("utf-8")
    for text in ("free space soon", "decisions are not recorded", "events are refused", "everything is stored"):
        assert text in logged
    assert server.stop() == 0
    with open_project(small_disk).open_log() as log:
        assert sorted(log.events()["event_id"].drop_nulls().to_list()) == ["a", "b", "c", "d", "probe"]
    assert verify(open_project(small_disk))["unexplained"] == 0


def test_full_disk_on_commit_refuses_events_and_keeps_acknowledged_ones(small_disk: Path) -> None:
    """No threshold protects this service, so the commit itself fails."""
    sets = [f"serve.disk.{name}=0" for name in ("events", "decisions", "alarm")]
    project = open_project(small_disk, sets)
    acknowledged: list[str] = []

    async def shop(client: httpx.AsyncClient, service: Service) -> None:
        async def post(number: int) -> int:
            rows = [
                {**EVENT, "user_id": "u14", "event_id": f"e{number}-{n}", "context": {"text": "x" * 2_000}}
                for n in range(100)
            ]
            reply = await client.post("/v1/events", json=rows)
            if reply.status_code == 200:
                acknowledged.extend(row["event_id"] for row in rows)
            return reply.status_code

        assert await post(0) == 200
        await asyncio.to_thread(fill, small_disk, 0.0)
        statuses = [await post(number) for number in range(1, 30)]
        assert 503 in statuses
        assert set(statuses) <= {200, 503}
        assert "log" in service.degraded
        reply = await client.get("/v1/recommend/u14")
        assert (reply.status_code, len(reply.json()["items"])) == (200, 10)
        assert (await client.get("/v1/status")).json()["alarms"][-1] == "log"
        await asyncio.to_thread(fill, small_disk, 0.5)
        assert await post(100) == 200, "without a restart"
        assert "log" not in service.degraded

    servers.inside(create(project), shop)
    with project.open_log() as log:
        stored = set(log.events()["event_id"].drop_nulls())
    assert set(acknowledged) <= stored


def test_levels_follow_the_thresholds_and_a_reload_changes_them(tmp_path: Path) -> None:
    watch = DiskWatch(Disk(), [tmp_path])
    share = free_share(tmp_path)
    for settings, level in (
        (Disk(alarm=0, decisions=0, events=0), DiskLevel.ENOUGH),
        (Disk(alarm=(1 + share) / 2, decisions=0, events=0), DiskLevel.ALARM),
        (Disk(alarm=(1 + share) / 2, decisions=(1 + share) / 2, events=0), DiskLevel.NO_DECISIONS),
        (Disk(alarm=(1 + share) / 2, decisions=(1 + share) / 2, events=(1 + share) / 2), DiskLevel.NO_EVENTS),
    ):
        watch.settings = settings
        watch.check()
        assert watch.level == level
    assert free_share(tmp_path / "missing") == 1.0, "a store that is away raises another alarm"
    with pytest.raises(ValidationError, match="descending order"):
        Disk(alarm=0.01)
