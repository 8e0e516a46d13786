"""A running service applies retractions and published files of other processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import polars as pl
from servers import inside

from recloop.features import state_store
from recloop.features.labels import EventLabeler
from recloop.monitoring.verify import verify
from recloop.project import Project
from recloop.recommend.user_states import RetractionIndex, StateSource, write_states
from recloop.records import SECOND
from recloop.serve import offline
from recloop.serve.app import create
from recloop.serve.service import Service
from recloop.storage import Retraction
from recloop.testing.states import digests

START = 1_752_000_000 * SECOND  # a few days after the shop's last row
USER = "u14"
Work = Callable[[httpx.AsyncClient, Service], Awaitable[None]]


def within(project: Project, work: Work) -> None:
    """Run requests against a service; its clock advances a second per reading."""
    stamps = iter(range(START, START + 10_000 * SECOND, SECOND))
    inside(create(project, clock=lambda: next(stamps)), work)


def control_of(project: Project) -> Any:
    return project.open_control()


async def ask(client: httpx.AsyncClient, user: str = USER) -> list[str]:
    answer = await client.get(f"/v1/recommend/{user}")
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


async def buy(client: httpx.AsyncClient, item_id: str, user: str = USER) -> None:
    row = {"user_id": user, "item_id": item_id, "event_type": "purchase", "timestamp": START / SECOND}
    assert (await client.post("/v1/events", json=row)).json()["accepted"] == 1


async def known(client: httpx.AsyncClient) -> int:
    return int((await client.get(f"/v1/users/{USER}")).json()["events"])


def test_user_state_after_a_retraction_excludes_the_row(project: Project) -> None:
    """Retract an arrived row, a row of the snapshot and an unknown row."""
    control = control_of(project)
    archived = project.open_archive().for_users([USER])
    bought = archived.filter(pl.col("event_type") == "purchase")
    (first,) = bought["seq"].head(1)
    events: dict[str, int] = {}
    lists: list[list[str]] = []

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        await ask(client)
        await buy(client, "i05")
        await buy(client, "i05")  # without an event_id: a retry counts twice until an update sees it
        events["bought twice"], later = await known(client), service.as_of
        await ask(client)
        control.submit([Retraction(later, "duplicates")], "recloop update", START)
        events["submitted"] = await known(client)  # it applies once it is in the log
        await service.reload()
        events["repeat retracted"] = await known(client)
        assert service.as_of == later + 1
        assert control.pending() == []
        await ask(client)
        control.submit([Retraction(first, "burst"), Retraction(10**9, "burst")], "recloop update", START)
        await service.reload()
        events["first retracted"] = await known(client)
        await ask(client)
        await buy(client, "i06")
        events["bought again"] = await known(client)
        lists.append(await ask(client))
        assert len(service.log.retractions()) == 3
        source = service.user_states.get(service.bundle.spec)
        events["as of an earlier seq"] = int(source.read(USER, later).positives[0])

    async def again(client: httpx.AsyncClient, _: Service) -> None:
        events["after a new start"] = await known(client)
        lists.append(await ask(client))

    within(project, work)
    found = verify(project)
    within(project, again)
    assert {name: number - len(bought) for name, number in events.items()} == {
        "bought twice": 2, "submitted": 2, "repeat retracted": 1, "first retracted": 0, "bought again": 1,
        "as of an earlier seq": 2, "after a new start": 1,
    }  # fmt: skip
    expected = {"checked": 5, "unexplained": 0, "late": 0, "differences": []}
    assert {name: found[name] for name in expected} == expected
    assert verify(project)["unexplained"] == 0
    lists.append([item["item_id"] for item in offline.recommend(project, USER)["items"]])
    assert lists == [lists[0]] * 3, "served, served after a new start, offline"


def test_verify_with_a_missed_retraction_reports_the_state(project: Project) -> None:
    (first,) = project.open_archive().for_users([USER]).filter(pl.col("event_type") == "purchase")["seq"].head(1)

    async def skewed(client: httpx.AsyncClient, service: Service) -> None:
        control_of(project).submit([Retraction(first, "burst")], "test", START)
        service.user_states.retractions.register = lambda _: set()  # type: ignore[method-assign]
        await service.reload()
        await ask(client)

    within(project, skewed)
    found = verify(project)
    assert (found["unexplained"], found["differences"][0]["name"]) == (1, "state")


def test_service_start_applies_retractions_of_the_inbox_once(project: Project) -> None:
    (first,) = project.open_archive().for_users([USER]).filter(pl.col("event_type") == "purchase")["seq"].head(1)
    control_of(project).submit([Retraction(first, "burst")], "recloop update", START)
    log = project.open_log(write=True)
    log.start_at(project.open_archive().watermark)
    log.append_retractions([Retraction(first, "burst")])  # killed before it was marked as applied
    log.close()

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        assert control_of(project).pending() == []
        assert len(service.log.retractions()) == 1
        await ask(client)

    within(project, work)
    assert verify(project)["unexplained"] == 0


def test_snapshot_advanced_over_retractions_equals_a_new_snapshot(project: Project) -> None:
    archive = project.open_archive()
    events = archive.events()
    alone = events.group_by("user_id").agg(pl.col("seq")).sort(pl.col("seq").list.len())
    everything = alone["seq"][0].to_list()  # all rows of the user with the fewest rows
    log = project.open_log(write=True)
    log.start_at(archive.watermark)
    log.append_retractions([Retraction(seq, "crawler") for seq in [*everything, events["seq"][40], events["seq"][41]]])
    signal = EventLabeler(project.config.events, project.config.clean)
    (path,) = project.store.glob("states-*")
    key = path.name.split("-")[2]
    stored = state_store.read(path, key)
    for name, earlier in (("advanced", stored), ("whole", None)):
        write_states(project.store / name, log.last_seq(), archive, log, signal, key, earlier)
    advanced, whole = (digests(state_store.read(project.store / name, key)) for name in ("advanced", "whole"))
    assert {user: advanced[user] for user in whole} == whole
    source, emptied = StateSource(stored, signal, log, RetractionIndex(archive, log)), alone["user_id"][0]
    source.catch_up(log.last_seq())
    assert source.read(emptied).positives.tolist() == [0]
    purchases = events.filter((pl.col("user_id") == emptied) & (pl.col("event_type") == "purchase")).height
    assert source.read(emptied, archive.watermark).positives.tolist() == [purchases]
    assert digests(stored)[events["user_id"][40]] != advanced[events["user_id"][40]]
    log.close()


def test_server_after_an_update_uses_the_new_watermark_and_snapshots(project: Project, serving: Any) -> None:
    """Run ``recloop update`` while a server runs; the lists stay equal."""
    server = serving(project.root, "--set", "serve.allow_time_header=true")
    rows = [
        {"user_id": row["user_id"], "item_id": row["item_id"], "event_type": row["event_type"], "event_id": f"n{n}",
         "group_id": row["group_id"] and f"again-{row['group_id']}", "timestamp": row["timestamp"] / SECOND + 40 * 86_400}
        for n, row in enumerate(project.open_archive().events().tail(400).iter_rows(named=True))
    ]  # fmt: skip
    now = {"X-Recloop-Now": "2025-09-01T00:00:00Z"}
    assert server.client.post("/v1/events", json=rows, headers=now).json()["rejected"] == 0
    people = sorted({row["user_id"] for row in rows})[:5]

    def lists() -> list[Any]:
        return [server.client.get(f"/v1/recommend/{user}", headers=now).json()["items"] for user in people]

    before = lists()
    loose = "release.gates={max_ndcg_loss=9.0,min_users=1,min_queries=1,max_slice_loss=9.0,max_unexplained=0,max_latency_ratio=99.0,max_cold_coverage_loss=1.0}"
    words = [
        "-m",
        "recloop",
        "-C",
        str(project.root),
        "--set",
        loose,
        "--set",
        "update.input_check=false",
        "--set",
        "release.refresh=manual",
        "update",
    ]
    done = subprocess.run([sys.executable, *words, "--json"], capture_output=True, text=True)
    made = json.loads(done.stdout)
    assert made["verdict"] == "registered", made
    end = time.monotonic() + 60
    while (status := server.client.get("/v1/status").json())["watermark"] != made["to_seq"]:
        assert time.monotonic() < end, status
        time.sleep(0.1)
    while {int(file.name.split("-")[1]) for file in project.store.glob("states-*")} != {made["to_seq"]}:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert lists() == before  # the same bundle, the same states, from other files
    again = server.client.post("/v1/events", json=rows[:3], headers=now).json()
    assert again["duplicate"] == 3
    row = {"user_id": people[0], "item_id": "i05", "event_type": "purchase", "event_id": "after"}
    assert server.client.post("/v1/events", json=row, headers=now).json()["accepted"] == 1
    lists()
    server.decided()
    assert server.stop() == 0
    found = verify(project)
    assert (found["checked"], found["unexplained"]) == (16, 0)
