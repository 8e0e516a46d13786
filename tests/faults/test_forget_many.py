"""Erasure of many users at once: after each of its lines no byte of them is left, and other lists do not change."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import named_shop
import pytest
import servers
from byte_scan import files_naming
from fault_runs import Facts, size

from recloop import loop
from recloop.monitoring.verify import verify
from recloop.pipeline.forget import forget
from recloop.project import Project, open_project
from recloop.serve import offline
from recloop.serve.app import create
from recloop.serve.service import Service

OTHERS = 100
"""Users whose lists are compared."""


def lists(project: Project, users: list[str]) -> dict[str, Any]:
    return {user: offline.recommend(project, user)["items"] for user in users}


@pytest.mark.slow
@pytest.mark.timeout(14_400)
def test_no_byte_of_many_users_is_left(tmp_path: Path, facts: Facts) -> None:
    n_users, n_forgotten = size(300, 50_000), size(20, 1_000)
    project = open_project(named_shop.first_run(tmp_path / "shop", n_users))
    known = project.open_archive().events()["user_id"].unique().sort().to_list()
    step = len(known) // n_forgotten
    forgotten = known[::step][:n_forgotten]
    others = [user for user in known if user not in set(forgotten)][:OTHERS]

    async def shop(client: httpx.AsyncClient, _: Service) -> None:
        for user in (*forgotten, *others):
            answer = await client.get(f"/v1/recommend/{user}", params={"session_id": f"session of {user}"})
            row = {"user_id": user, "item_id": answer.json()["items"][0]["item_id"], "event_type": "purchase"}
            assert (await client.post("/v1/events", json=row)).json()["accepted"] == 1

    servers.inside(create(project), shop)
    before = lists(project, others)
    begin = time.monotonic()
    forget(project, forgotten)
    at_once = time.monotonic() - begin
    left_in_stores = files_naming(project.store, forgotten)
    changed = lists(project, others) != before
    begin = time.monotonic()
    loop.update(project)
    updated = time.monotonic() - begin
    left = files_naming(project.root, forgotten, named_shop.IMPORTED)
    found = verify(project)
    facts["erasure"] = {
        "users": n_users, "forgotten": n_forgotten, "files_after_the_erasure": len(left_in_stores),
        "files_after_the_update": len(left), "seconds_of_erasure": round(at_once, 1),
        "seconds_of_update": round(updated, 1), "unexplained_decisions": found["unexplained"],
    }  # fmt: skip
    assert (left_in_stores, changed, left, found["unexplained"]) == ([], False, [], 0)
