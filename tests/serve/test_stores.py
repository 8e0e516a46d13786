"""Stores that end early, are damaged, or are moved away while they are served."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import servers

from recloop.cli import run
from recloop.errors import UserError
from recloop.project import Project
from recloop.serve.app import create
from recloop.serve.reload import poll_forever
from recloop.serve.service import Service

EVENT = {"user_id": "u1", "item_id": "i01", "event_type": "purchase"}


def within(project: Project, work: Callable[[httpx.AsyncClient, Service], Awaitable[Any]], **options: Any) -> Any:
    app = create(project, **options)

    async def whole() -> Any:
        async with servers.local(app) as client:
            return await work(client, app.state.service)

    try:
        return asyncio.run(whole())
    finally:
        app.state.service.close()


async def post_and_ask(client: httpx.AsyncClient, service: Service) -> int:
    assert (await client.post("/v1/events", json=[EVENT] * 3)).status_code == 200
    assert (await client.get("/v1/recommend/u1")).status_code == 200
    return service.as_of


def test_log_that_ends_before_the_decisions_is_refused_with_both_numbers(project: Project) -> None:
    newest = within(project, post_and_ask)
    for file in project.store.glob("log.db*"):
        file.unlink()
    with pytest.raises(UserError, match=rf"log.db=ends at {newest - 3}: expected at least {newest}.*--force"):
        Service(project)
    service = Service(project, force=True)
    try:
        assert service.as_of == newest
    finally:
        service.close()


def test_stores_are_complete_without_their_write_ahead_logs_after_a_stop(project: Project) -> None:
    newest = within(project, post_and_ask)
    for file in project.store.glob("*-wal"):
        file.unlink()
    with project.open_log() as log, project.open_decisions() as decisions:
        assert log.last_seq() == newest
        assert [row.as_of_seq for row in decisions.rows()] == [newest]


@pytest.mark.parametrize("name", ["log.db", "log.db-wal"])
def test_log_moved_away_while_serving_is_degraded_and_refuses_posts(project: Project, name: str) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await post_and_ask(client, service)
        await service.reload()
        assert service.degraded == []
        (project.store / name).rename(project.store / "away")
        await service.reload()
        assert service.degraded == ["log"]
        reply = await client.post("/v1/events", json=EVENT)
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "log_unavailable")
        assert (await client.get("/v1/recommend/u1")).json()["degraded"] == ["log"]
        assert (await client.get("/v1/status")).json()["degraded_answers"] == 1
        (project.store / "away").rename(project.store / name)
        await service.reload()
        assert (await client.post("/v1/events", json=EVENT)).status_code == 200

    within(project, work)


def test_control_store_removed_while_serving_is_degraded(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await post_and_ask(client, service)
        await service.reload()
        shutil.copy(project.store / "control.db", project.store / "kept")
        (project.store / "control.db").unlink()
        assert not await service.reload()
        assert service.degraded == ["control"]
        assert (await client.post("/v1/events", json=EVENT)).status_code == 200
        (project.store / "kept").rename(project.store / "control.db")
        await service.reload()
        assert service.degraded == []
        (project.store / "control.db").unlink()

    within(project, work)
    assert run(["-C", str(project.root), "update"]) == 2
    assert "control.db=no release row" in capsys.readouterr().err


def test_release_that_cannot_be_followed_is_degraded(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        monkeypatch.setattr(service.control, "generation", lambda: 1 / 0)
        polling = asyncio.create_task(poll_forever(service))
        for _ in range(200):
            if service.degraded == ["release"]:
                break
            await asyncio.sleep(0.02)
        polling.cancel()
        assert service.degraded == ["release"]

    within(project, work)


def test_damaged_store_is_refused_at_start(project: Project) -> None:
    within(project, post_and_ask)
    damage(project.store / "log.db")
    with pytest.raises(UserError, match=r"log\.db=.*a SQLite file without damage"):
        Service(project)


def damage(file: Path) -> None:
    """Overwrite the pages after the first, which holds the schema."""
    with sqlite3.connect(file) as connection:
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    content = bytearray(file.read_bytes())
    content[size + 8 :] = b"\xa5" * (len(content) - size - 8)
    file.write_bytes(bytes(content))
