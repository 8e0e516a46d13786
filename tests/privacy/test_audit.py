"""Each action writes one row of the audit log, without secrets and ids of persons."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import servers
from byte_scan import files_naming

import recloop
from recloop.pipeline import backup as backups
from recloop.pipeline.forget import forget
from recloop.pipeline.redaction import redact
from recloop.progress import NullProgress
from recloop.project import Project, open_project
from recloop.release import transitions
from recloop.serve.app import create
from recloop.serve.console_backend import ServiceConsoleBackend
from recloop.serve.service import Service

USERS = ["person-010-x", "person-011-x"]


@pytest.fixture
def shop(named_folder: Path, tmp_path: Path) -> Project:
    """A copy of the shop of 300 users."""
    return open_project(shutil.copytree(named_folder, tmp_path / "shop"))


def actions(project: Project, since: int = 0) -> list[tuple[str, str]]:
    """(action, who) of the rows after a number of rows."""
    return [(row.action, row.who.partition(" (")[0]) for row in project.open_control().audit_rows()[since:]]


def test_commands_write_one_row_each(shop: Project, tmp_path: Path) -> None:
    assert actions(shop) == [("promote", "recloop update")]
    opened = recloop.open(shop.root)
    secret = opened.add_key("app", ["read"])
    opened.revoke_key("app")
    opened.token(new=True)
    opened.export_person(USERS[0])
    forget(shop, USERS)
    assert redact(shop, NullProgress())
    assert actions(shop, 1) == [
        ("key added", "recloop keys add"), ("key revoked", "recloop keys revoke"), ("token renewed", "recloop token --new"),
        ("export person", "recloop export person"), ("forget", "recloop forget"), ("forget", "recloop forget"),
        ("redaction", "recloop update"),
    ]  # fmt: skip
    change = json.loads(shop.open_control().audit_rows()[-1].details)
    assert change["from"] != change["to"] == shop.open_control().releases()[-1].sha256
    backups.backup(shop, tmp_path / "copy")
    backups.restore(tmp_path / "copy", tmp_path / "back")
    restored = open_project(tmp_path / "back")
    assert actions(restored)[-1] == ("restore", "recloop restore")
    assert actions(restored)[:-1] == actions(shop)
    for project in (shop, restored):
        assert project.open_control().check_audit().problem == ""
        assert files_naming(project.store, [*USERS, secret, opened.token()], ["admin-token"]) == []


def test_person_is_found_by_id_and_others_are_not(shop: Project) -> None:
    opened = recloop.open(shop.root)
    opened.export_person(USERS[0])
    opened.export_person(USERS[1])
    forget(shop, USERS[:1])
    assert [row["action"] for row in opened.audit(USERS[0])] == ["export person", "forget"]
    assert [row["action"] for row in opened.audit(USERS[1])] == ["export person"]
    assert opened.audit("person-012-x") == []
    assert len(opened.audit()) == 4
    assert opened.check_audit().problem == ""


def test_release_moves_write_one_row_each(shop: Project) -> None:
    project, seed = shop, shop.live_bundle_id()
    made = recloop.open(project.root).train("covisitation")
    assert len(actions(project)) == 1  # a registered bundle is not a move
    transitions.promote(project, made, "shadow", "try", gates=[])
    transitions.promote(project, made, "live", "enough", gates=[])
    transitions.rollback(project, "worse")
    transitions.reject(project, made, "worse")
    rows = project.open_control().audit_rows()[1:]
    assert [(row.action, row.subject) for row in rows] == [
        ("promote", made), ("promote", made), ("rollback", seed), ("reject", made),
    ]  # fmt: skip
    assert json.loads(rows[0].details)["to"] == "shadow"


def test_service_writes_one_row_per_action_with_the_name_of_the_key(shop: Project) -> None:
    opened = recloop.open(shop.root)
    secret = opened.add_key("ops", ["admin"])
    app = create(shop)

    async def work(client: httpx.AsyncClient, service: Service) -> None:
        key: dict[str, Any] = {"headers": {"Authorization": f"Bearer {secret}"}}
        assert (await client.post("/v1/admin/reload", json={}, **key)).status_code == 200
        assert (await client.post("/v1/admin/rollback", json={})).status_code == 409  # refused: no row
        assert (await client.delete(f"/v1/users/{USERS[0]}", **key)).status_code == 200
        assert (await client.post("/v1/admin/forget", json={"users": USERS[1:]})).status_code == 200
        await ServiceConsoleBackend(service).user_panel("person-012-x")
        await app.state.reload()  # SIGHUP

    servers.inside(app, work)
    assert [(row.action, row.who) for row in shop.open_control().audit_rows()[2:]] == [
        ("reload", "POST /v1/admin/reload (key ops)"), ("forget", "DELETE /v1/users (key ops)"),
        ("forget", "POST /v1/admin/forget (admin token)"), ("console user", "console"), ("reload", "SIGHUP"),
    ]  # fmt: skip
    assert [row["action"] for row in opened.audit("person-012-x")] == ["console user"]
    assert files_naming(shop.store, [*USERS, secret]) == []


def test_command_prints_rows_and_finds_a_break(shop: Project, cli: Callable[..., tuple[int, str, str]]) -> None:
    recloop.open(shop.root).export_person(USERS[0])
    code, out, _ = cli("-C", shop.root, "audit", "--user", USERS[0])
    assert (code, len(out.splitlines())) == (0, 1)
    assert "export person" in out
    assert USERS[0] not in out
    code, out, _ = cli("-C", shop.root, "audit", "--json")
    rows = json.loads(out)["rows"]
    assert set(rows[0]) == {"id", "at", "who", "action", "subject", "details", "hash"}
    code, out, _ = cli("-C", shop.root, "audit", "--verify")
    assert (code, out) == (0, f"2 rows: the chain is whole; last hash {rows[-1]['hash']}\n")
    connection = sqlite3.connect(shop.store / "control.db")
    connection.execute("UPDATE audit SET who = 'nothing' WHERE id = 1")
    connection.commit()
    connection.close()
    code, out, _ = cli("-C", shop.root, "audit", "--verify", "--json")
    assert (code, json.loads(out)) == (1, {"rows": 2, "last": "", "problem": "row 1 differs from its hash"})
    code, _, err = cli("-C", shop.root, "audit", "--verify", "--user", USERS[0])
    assert code == 2
    assert "--user=person-010-x: expected audit without --verify" in err
