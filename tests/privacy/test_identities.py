"""Erasure and export cover the anonymous ids of a person."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import httpx
import pytest
import servers
from byte_scan import files_naming

from recloop.monitoring.verify import verify
from recloop.pipeline.forget import forget
from recloop.pipeline.redaction import redact
from recloop.privacy.person_export import export_person
from recloop.progress import NullProgress
from recloop.project import Project, open_project
from recloop.records import ITEM_ID, USER_ID
from recloop.serve.app import create
from recloop.serve.service import Service

USER, OTHER = "person-010-x", "person-011-x"
DEVICE, ARCHIVED, SHARED = "device-of-first", "person-012-x", "shared-by-two"
NUMBERS = itertools.count()
IMPORTED = ("events.csv", "users.csv")


async def post(client: httpx.AsyncClient, name: str, item: str) -> None:
    row = {"anonymous_id": name, "item_id": item, "event_type": "purchase", "event_id": f"event {next(NUMBERS)}"}
    assert (await client.post("/v1/events", json=row)).json()["accepted"] == 1


async def identify(client: httpx.AsyncClient, name: str, user: str) -> None:
    answer = await client.post("/v1/identify", json={"anonymous_id": name, USER_ID: user})
    assert answer.status_code == 200, answer.text


@pytest.fixture
def shop(named_folder: Path, tmp_path: Path) -> Project:
    """The shop after a user joined a device, an id of the import, and a device that another user took over."""
    project = open_project(shutil.copytree(named_folder, tmp_path / "shop"))

    async def work(client: httpx.AsyncClient, _: Service) -> None:
        for name in (DEVICE, SHARED):
            await post(client, name, "i001")
            await client.get("/v1/recommend", params={"anonymous_id": name})
        for name in (DEVICE, ARCHIVED, SHARED):
            await identify(client, name, USER)
        await post(client, DEVICE, "i002")
        await post(client, SHARED, "i003")
        await identify(client, SHARED, OTHER)
        await post(client, SHARED, "i004")
        for name in (DEVICE, SHARED):
            await client.get("/v1/recommend", params={"anonymous_id": name})

    servers.inside(create(project), work)
    return project


def test_export_has_rows_decisions_and_identities_of_all_ids(shop: Project) -> None:
    tree = export_person(shop, USER)
    own = shop.open_archive().for_users([USER, ARCHIVED])
    assert len(tree["events"]) == len(own) + 4
    assert {row[USER_ID] for row in tree["events"]} == {USER}
    assert [(row[USER_ID], row["anonymous_id"]) for row in tree["decisions"]] == [
        (USER, DEVICE), (DEVICE, DEVICE), (SHARED, SHARED),
    ]  # fmt: skip
    assert [row["anonymous_id"] for row in tree["identities"]] == [DEVICE, ARCHIVED, SHARED]
    assert OTHER not in json.dumps(tree)
    assert "i004" in [row[ITEM_ID] for row in export_person(shop, OTHER)["events"]]


def test_erasure_of_a_user_erases_the_anonymous_ids(shop: Project) -> None:
    with shop.open_log() as log:
        kept = log.events(OTHER)[ITEM_ID].to_list()
    tree = forget(shop, [USER])
    names = [USER, DEVICE, ARCHIVED, SHARED]
    assert [row[USER_ID] for row in tree["users"]] == names
    assert files_naming(shop.store, names) == []
    with shop.open_log() as log:
        assert log.events(OTHER)[ITEM_ID].to_list() == kept == ["i004"]
        assert log.identities() == []
    assert redact(shop, NullProgress())
    assert files_naming(shop.root, names, IMPORTED) == []
    assert verify(shop)["unexplained"] == 0


def test_erasure_of_an_anonymous_id_keeps_the_users_rows(shop: Project) -> None:
    forget(shop, [DEVICE])
    assert files_naming(shop.store, [DEVICE]) == []
    with shop.open_log() as log:
        assert {"i001", "i002"} <= set(log.events(USER)[ITEM_ID])
        assert [row.anonymous_id for row in log.identities()] == [ARCHIVED, SHARED, SHARED]


def test_running_service_forgets_identities(shop: Project) -> None:
    async def work(client: httpx.AsyncClient, service: Service) -> None:
        assert service.person(DEVICE) == USER
        assert (await client.delete(f"/v1/users/{USER}")).status_code == 200
        assert service.person(DEVICE) == DEVICE
        assert (await client.get(f"/v1/users/{DEVICE}")).status_code == 404
        await post(client, DEVICE, "i005")
        assert (await client.get(f"/v1/users/{DEVICE}")).json()["events"] == 1

    servers.inside(create(shop), work)
