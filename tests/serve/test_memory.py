"""Memory of replaced bundles: it is freed, and does not grow over many swaps."""

from __future__ import annotations

import gc
import statistics
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import inside

from recloop import bundle as bundles
from recloop.project import Project
from recloop.serve.app import create
from recloop.serve.deployments import MAX_SPARE_BUNDLES
from recloop.serve.reload import gc_paused
from recloop.serve.service import Service
from recloop.storage import releases

WHO: dict[str, Any] = {"by": "test", "reason": "a swap", "at": 5}


class Cycle:
    """A reference cycle that only the garbage collector frees."""

    def __init__(self) -> None:
        self.own = self


def test_gc_paused_collects_cycles_at_its_end() -> None:
    with gc_paused():
        garbage = weakref.ref(Cycle())
        assert garbage() is not None
    assert garbage() is None
    assert gc.isenabled()


def test_swap_frees_the_tables_of_replaced_bundles(project: Project) -> None:
    """Only tables of live, rollback target and checked bundles stay in memory."""
    control = project.open_control()
    first = releases.live(control).bundle  # type: ignore[union-attr]
    seen: dict[int, weakref.ref[Any]] = {}

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        for number in range(6):
            names = copies(project, first, 1, number)
            await service.reload()
            releases.promote(control, names[0], to="live", **WHO)
            await service.reload()
            for text in ("", "price < 5"):
                answer = await client.get("/v1/recommend/u14", params={"filter": text} if text else {})
                assert answer.json()["model_version"] == names[0]
            seen[number] = weakref.ref(service.bundle.items.ids)
            del answer

    inside(create(project), work)
    alive = [number for number, ref in seen.items() if ref() is not None]
    assert len(alive) <= 1 + MAX_SPARE_BUNDLES, alive


def copies(project: Project, bundle: str, count: int, begin: int = 0) -> list[str]:
    """Register copies of one bundle that differ in their creation times."""
    from dataclasses import replace
    from datetime import UTC, datetime, timedelta

    control, names = project.open_control(), []
    live = bundles.load(project.bundles / bundle)
    for number in range(begin, begin + count):
        policy = replace(live.policy, other_keys={"copy": number})
        made = bundles.write(
            replace(live, policy=policy), project.bundles, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
        )
        sha256 = bundles.manifest_hash(project.bundles / made.id)
        releases.register(control, made.id, sha256, evidence={"gates": []}, **WHO)
        names.append(made.id)
    return names


def resident(process: int) -> float:
    """Resident memory of a process, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.slow
def test_memory_after_fifty_swaps_grows_less_than_5_percent(project: Project, serving: Callable[..., Any]) -> None:
    control = project.open_control()
    names = copies(project, releases.live(control).bundle, 50)  # type: ignore[union-attr]
    server = serving(project.root)

    def swap(name: str) -> float:
        body = {"bundle": name, "to": "live", "reason": "a swap"}
        assert server.client.post("/v1/admin/promote", json=body).status_code == 200
        for number in range(40):
            query = {"filter": f"price < {number}"} if number % 2 else {}
            answer = server.client.get(f"/v1/recommend/u{number % 60:02}", params=query)
            assert answer.json()["model_version"] == name
        return resident(server.process.pid)

    while control.generation() < 2 + 2 * len(names):  # all are checked
        time.sleep(0.2)
    resident_mb = [swap(name) for name in names]
    print([round(mb, 1) for mb in resident_mb])
    assert statistics.median(resident_mb[-3:]) < 1.05 * resident_mb[0]
