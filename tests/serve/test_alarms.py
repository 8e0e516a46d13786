"""Alarms of docs/ops.md: each is raised by its cause, in status and metrics, and ended by what the page says.

`test_disk` has those of a full disk: ``disk`` and ``decisions``.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import servers
from prometheus_client.parser import text_string_to_metric_families

from recloop import bundle as bundles
from recloop.monitoring import summary
from recloop.project import Project, open_project
from recloop.serve import reload
from recloop.serve.app import create
from recloop.serve.service import Service
from recloop.storage import releases, sqlite

CLI = Callable[..., tuple[int, str, str]]
Work = Callable[[httpx.AsyncClient, Service], Awaitable[None]]
EVENT = {"user_id": "u01", "item_id": "i01", "event_type": "purchase"}


@pytest.fixture(autouse=True)
def fresh_summaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the last update and the last verification at each request."""
    monkeypatch.setattr(summary, "CACHE_SECONDS", 0.0)


def served(project: Project, work: Work) -> None:
    servers.inside(create(project), work)


async def alarms(client: httpx.AsyncClient) -> list[str]:
    """Alarms in the status, which equal those in the metrics."""
    named: list[str] = (await client.get("/v1/status")).json()["alarms"]
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    samples = [sample for family in families for sample in family.samples if sample.name == "recloop_alarm"]
    assert named == sorted(sample.labels["alarm"] for sample in samples if sample.value == 1)
    return named


def second_bundle(project: Project) -> str:
    """Write and promote another bundle with the content of the live one."""
    control, who = project.open_control(), {"by": "test", "reason": "newer", "at": 5}
    live = project.load_bundle()
    made = bundles.write(replace(live, metrics={"again": 1}), project.bundles, datetime(2026, 1, 1, tzinfo=UTC))
    releases.register(control, made.id, bundles.manifest_hash(project.bundles / made.id), **who)
    releases.checked(control, made.id, **who)
    releases.promote(control, made.id, **who)
    return made.id


def test_alarm_bundle_ends_with_a_rollback_and_updates_go_on(project: Project, cli: CLI) -> None:
    damaged = second_bundle(project)
    (project.bundles / damaged / "serve.safetensors").write_bytes(b"")

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        assert await alarms(client) == ["bundle"]
        code, _, err = cli("-C", project.root, "update")
        assert (code, err.splitlines()[-1].endswith("; try: recloop rollback")) == (2, True), err
        assert cli("-C", project.root, "rollback")[0] == 0
        assert await service.reload()
        assert cli("-C", project.root, "update")[0] == 0
        assert await alarms(client) == []
        assert (await client.get("/v1/recommend/u01")).json()["degraded"] == []

    served(project, work)


@pytest.mark.parametrize(("name", "alarm"), [("control.db", "control"), ("log.db", "log")])
def test_alarm_of_a_store_moved_away_ends_when_it_is_back(project: Project, name: str, alarm: str) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        assert (await client.post("/v1/events", json=EVENT)).status_code == 200
        await service.reload()
        (project.store / name).rename(project.store / "away")
        await service.reload()
        assert await alarms(client) == [alarm]
        assert (await client.get("/v1/recommend/u01")).status_code == 200
        (project.store / "away").rename(project.store / name)
        await service.reload()
        assert await alarms(client) == []

    served(project, work)


def test_alarm_release_ends_when_the_control_store_can_be_read(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(reload, "POLL_SECONDS", 0.01)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        async def until(degraded: list[str]) -> None:
            polling = asyncio.create_task(reload.poll_forever(service))
            end = time.monotonic() + servers.PATIENCE
            while service.degraded != degraded or service.followed_at is None:
                assert time.monotonic() < end
                await asyncio.sleep(0.01)
            polling.cancel()
            assert await alarms(client) == degraded

        await until([])
        other = sqlite3.connect(project.store / "control.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        await until(["release"])
        status = (await client.get("/v1/status")).json()
        assert (status["live"], status["generation"]) == (service.bundle.id, service.deployments.generation)
        other.execute("ROLLBACK")
        other.close()
        await until([])

    served(project, work)


def test_alarm_rejected_ends_with_a_restart(project: Project, cli: CLI) -> None:
    limited = open_project(project.root, ["retention.rejected_bytes=2000"])

    async def work(client: httpx.AsyncClient, _: Service) -> None:
        await client.post("/v1/events", json=EVENT | {"timestamp": "soon"})
        assert await alarms(client) == []
        await client.post("/v1/events", json=[EVENT | {"timestamp": f"soon {n}"} for n in range(30)])
        assert await alarms(client) == ["rejected"]
        code, out, _ = cli("-C", project.root, "rejected", "list")
        assert (code, "timestamp=soon" in out) == (0, True)

    async def after(client: httpx.AsyncClient, _: Service) -> None:
        assert await alarms(client) == []

    served(limited, work)
    served(limited, after)


def test_alarm_update_is_raised_by_an_error_and_ends_with_the_next_update(project: Project, cli: CLI) -> None:
    (file,) = project.bundles.glob("*/serve.safetensors")
    content = file.read_bytes()

    async def work(client: httpx.AsyncClient, _: Service) -> None:
        assert await alarms(client) == []
        file.write_bytes(b"")
        assert cli("-C", project.root, "update")[0] == 2
        assert await alarms(client) == ["update"]
        file.write_bytes(content)
        assert cli("-C", project.root, "update")[0] == 0
        assert await alarms(client) == []

    served(project, work)


def test_alarm_verify_ends_with_the_next_clean_verification(project: Project, cli: CLI) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        assert (await client.get("/v1/recommend/u01")).status_code == 200
        assert service.decisions.flush()
        assert cli("-C", project.root, "verify")[0] == 0
        assert await alarms(client) == []
        with sqlite3.connect(project.store / "decisions.db") as stored:
            (before,) = stored.execute("SELECT inputs FROM decisions").fetchone()
            stored.execute("UPDATE decisions SET inputs = replace(inputs, ':\"', ':\"0')")
        code, out, err = cli("-C", project.root, "verify")
        assert code == 1, out + err
        assert await alarms(client) == ["verify"]
        with sqlite3.connect(project.store / "decisions.db") as stored:
            stored.execute("UPDATE decisions SET inputs = ?", (before,))
        assert cli("-C", project.root, "verify")[0] == 0
        assert await alarms(client) == []

    served(project, work)


@pytest.mark.slow
def test_alarm_workers_ends_when_the_process_is_replaced(project: Project, serving: Callable[..., Any]) -> None:
    server = serving(project.root, "--workers", "2")

    def wait(expected: list[str]) -> None:
        end = time.monotonic() + servers.PATIENCE
        while server.client.get("/v1/status").json()["alarms"] != expected:
            assert time.monotonic() < end, expected

    wait([])
    os.kill(worker_of(server.process.pid), signal.SIGKILL)
    wait(["workers"])
    wait([])
    assert server.stop() == 0


def worker_of(writer: int) -> int:
    """Process id of the only worker of a server."""
    children = [
        int(child) for file in Path(f"/proc/{writer}/task").glob("*/children") for child in file.read_text().split()
    ]
    (worker,) = (child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes())
    return worker


@pytest.mark.parametrize("is_lost", [False, True], ids=["damaged", "lost"])
def test_only_bundle_that_cannot_be_loaded_is_replaced_by_the_named_command(
    project: Project, cli: CLI, is_lost: bool
) -> None:
    """Posted rows stay; `serve` and `update` name the same command."""

    async def post(client: httpx.AsyncClient, _: Service) -> None:
        assert (await client.post("/v1/events", json=EVENT | {"event_id": "kept"})).json()["accepted"] == 1

    served(project, post)
    for folder in project.bundles.iterdir():
        shutil.rmtree(folder) if is_lost else (folder / "serve.safetensors").write_bytes(b"")
    for verb in (["serve", "--port", "0"], ["update"], ["update", "--full"]):
        code, _, err = cli("-C", project.root, *verb)
        assert code == 2
        assert err.splitlines()[-1].endswith("; try: recloop update --restart, or copy bundles/ from a backup"), err
    assert cli("-C", project.root, "update", "--restart")[0] == 0
    assert project.open_archive().known(["kept"])

    async def ask(client: httpx.AsyncClient, _: Service) -> None:
        assert (await client.get("/v1/recommend/u01")).json()["degraded"] == []

    served(project, ask)
