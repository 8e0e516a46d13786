"""Export of a person: each store's rows of this user and of no other."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import servers

from recloop.errors import UserError
from recloop.privacy.person_export import export_person
from recloop.project import Project
from recloop.records import USER_ID
from recloop.serve.app import create
from recloop.serve.service import Service


@pytest.fixture
def used(project: Project) -> Project:
    """A project in which u14 and u15 have posted and asked."""

    async def post(client: httpx.AsyncClient, _: Service) -> None:
        for user in ("u14", "u15"):
            await client.get(f"/v1/recommend/{user}", params={"anonymous_id": f"browser-of-{user}"})
            rows = [
                {"user_id": user, "item_id": "i01", "event_type": "purchase", "event_id": f"{user}-1"},
                {"user_id": user, "item_id": "i02", "event_type": "purchase", "quantity": 0},
            ]
            response = await client.post("/v1/events", json=rows)
            assert (response.json()["accepted"], response.json()["quarantined"]) == (1, 1)
            await client.post("/v1/events", json=[{"user_id": user, "item_id": ""}, {"user": user}])
            await client.post("/v1/users", json={"user_id": user, "attributes": {"age": "60+"}})
            await client.get(f"/v1/recommend/{user}")

    servers.inside(create(project), post)
    return project


def test_export_has_the_rows_of_every_store_and_no_other_user(used: Project) -> None:
    tree = export_person(used, "u14")
    archived = used.open_archive().for_users(["u14"])
    assert len(tree["events"]) == len(archived) + 1
    assert tree["events"][-1]["event_id"] == "u14-1"
    assert [row["rule"] for row in tree["quarantine"]] == ["keep"]
    assert [json.loads(row["raw"]) for row in tree["rejected"]] == [{"user_id": "u14", "item_id": ""}, {"user": "u14"}]
    assert tree["attributes"][-1]["attributes"] == {"age": "60+"}
    assert len(tree["attributes"]) == 2
    assert [row["anonymous_id"] for row in tree["decisions"]] == ["browser-of-u14", None]
    assert tree["state"]["moments"][-1]["items"] == ["i01"]
    assert tree["state"]["attributes"] == {"age": "60+"}
    assert "u15" not in json.dumps(tree)


def test_export_of_an_anonymous_id_has_its_decisions(used: Project) -> None:
    tree = export_person(used, "browser-of-u14")
    assert [row[USER_ID] for row in tree["decisions"]] == ["u14"]
    assert tree["events"] == []


def test_export_of_an_unknown_user_is_refused(used: Project) -> None:
    with pytest.raises(
        UserError, match=r"USER=unknown-1: expected a user with stored rows or decisions; try: recloop export log"
    ):
        export_person(used, "unknown-1")


def test_export_command_writes_a_private_file_once(
    used: Project, tmp_path: Path, cli: Callable[..., tuple[int, str, str]]
) -> None:
    file = tmp_path / "person.json"
    code, out, _ = cli("-C", used.root, "export", "person", "u14", "--out", file)
    assert (code, out.startswith(f"wrote {file}: ")) == (0, True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text("utf-8"))[USER_ID] == "u14"
    code, _, error = cli("-C", used.root, "export", "person", "u14", "--out", file)
    assert (code, "expected a file that does not exist yet" in error) == (2, True)
    code, out, _ = cli("-C", used.root, "export", "person", "u14")
    assert json.loads(out)[USER_ID] == "u14"
    assert cli("-C", used.root, "export", "person")[0] == 2
