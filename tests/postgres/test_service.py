"""The whole loop over a PostgreSQL database: serve, post, update, verify, forget, a new first run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from byte_scan import files_naming
from postgres_server import PostgresServer
from servers import PATIENCE, Server

from recloop.project import Project

GATES = "release.gates={max_ndcg_loss=9.0,min_users=1,min_queries=1,max_slice_loss=9.0,max_latency_ratio=99.0}"
"""Gates that a bundle of random purchases passes."""
CLI = Callable[..., tuple[int, str, str]]
Serving = Callable[..., Server]


def view(user_id: str, item_id: str, number: int, **fields: Any) -> dict[str, Any]:
    return {"user_id": user_id, "item_id": item_id, "event_type": "view", "event_id": f"e{number}", **fields}


def listed(server: Server, user_id: str) -> list[str]:
    response = server.client.get(f"/v1/recommend/{user_id}", params={"n": 5})
    assert (response.status_code, response.json()["degraded"]) == (200, [])
    return [slot["item_id"] for slot in response.json()["items"]]


def read_json(cli: CLI, folder: Path, *words: str) -> Any:
    code, out, err = cli("-C", folder, *words, "--json")
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("workers", [1, 2])
def test_posts_update_and_verify_work_over_a_database(
    postgres: PostgresServer, serving: Serving, shop: Project, cli: CLI, workers: int
) -> None:
    server = serving(shop.root, "--workers", str(workers))
    first = listed(server, "u01")
    rows = [view("u01", first[0], 0, event_type="dislike"), view("phone", first[1], 1, event_type="dislike")]
    rows += [view(f"u{n % 60:02}", f"i{n % 80:02}", n + 10, event_type="purchase") for n in range(300)]
    assert server.client.post("/v1/events", json=rows).json()["accepted"] == len(rows)
    assert server.client.post("/v1/events", json=rows).json()["duplicate"] == len(rows)
    assert server.client.post("/v1/identify", json={"anonymous_id": "phone", "user_id": "u01"}).json()["moved"] == 1
    assert not {*listed(server, "u01")} & {*first[:2]}
    assert server.client.delete("/v1/events/e0").status_code == 200
    assert read_json(cli, shop.root, "--set", GATES, "update")["verdict"] == "registered"
    end = time.monotonic() + PATIENCE
    while server.client.get("/v1/recommend/u02").json()["model_version"] == server.bundle:
        assert time.monotonic() < end
        time.sleep(0.1)
    assert server.client.patch("/v1/items/i01", json={"hidden": True}).status_code == 200
    assert "i01" not in listed(server, "u02")
    server.decided()
    counts = read_json(cli, shop.root, "verify")
    assert (counts["unexplained"], counts["checked"] > 0) == (0, True)
    assert read_json(cli, shop.root, "status")["last_seq"] == server.client.get("/v1/status").json()["last_seq"]
    assert cli("-C", shop.root, "doctor")[0] == 0
    assert cli("-C", shop.root, "report")[0] == 0
    assert cli("-C", shop.root, "gc")[0] == 0
    texts = [server.client.get(path).text for path in ("/metrics", "/v1/status", "/v1/openapi.json")]
    assert server.stop() == 0
    assert postgres.password not in "".join([*texts, server.errors.read_text()])
    assert files_naming(shop.root, [postgres.password], leave_out=["recloop.toml"]) == []
    assert postgres.password not in postgres.log


def test_forgotten_user_is_in_no_file_of_the_tables(postgres: PostgresServer, serving: Serving, shop: Project) -> None:
    canary = "canary-of-the-database"
    server = serving(shop.root)
    assert server.client.post("/v1/events", json=[view(canary, "i01", n) for n in range(50)]).status_code == 200
    with session(shop) as database:
        database.execute("CHECKPOINT")
    assert files_naming(postgres.data / "base", [canary])
    assert server.client.delete(f"/v1/users/{canary}").status_code == 200
    assert server.client.post("/v1/events", json=view("u01", "i01", 99)).json()["accepted"] == 1
    with session(shop) as database:
        database.execute("CHECKPOINT")
    assert files_naming(postgres.data / "base", [canary]) == []
    assert server.stop() == 0


def test_new_first_run_keeps_the_posted_rows(serving: Serving, shop: Project, cli: CLI) -> None:
    server = serving(shop.root)
    rows = [view("newcomer", f"i{n:02}", n, event_type="purchase") for n in range(9)]
    assert server.client.post("/v1/events", json=rows).json()["accepted"] == 9
    assert server.stop() == 0
    done = read_json(cli, shop.root, "update", "--restart")
    assert done["verdict"] == "restarted"
    with shop.open_log() as log:
        assert log.is_empty()
        assert log.last_seq() == shop.open_archive().watermark
    assert shop.open_archive().has_id("user_id", "newcomer")


def test_rows_of_a_file_are_stored_once(shop: Project, cli: CLI, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    lines = (shop.root / "events.csv").read_text("utf-8").splitlines()
    file.write_text(
        "\n".join([lines[0], *(line.replace("e", "f", 1).replace("u", "v", 1) for line in lines[1:201])]), "utf-8"
    )
    for name in ("accepted", "duplicate"):
        assert read_json(cli, shop.root, "ingest", str(file))[name] == 200


def test_log_that_ends_before_the_decisions_is_refused(serving: Serving, shop: Project, cli: CLI) -> None:
    server = serving(shop.root)
    assert server.client.post("/v1/events", json=view("u01", "i01", 1)).status_code == 200
    assert listed(server, "u01")
    assert server.stop() == 0
    with session(shop) as database:
        database.execute("DELETE FROM recloop_log.events; UPDATE recloop_log.counter SET seq = seq - 1")
    code, _, err = cli("-C", shop.root, "serve")
    assert (code, "restore the database from its backup, or recloop serve --force" in err) == (2, True)


def test_database_restored_to_an_earlier_state_while_serving_refuses_posts(serving: Serving, shop: Project) -> None:
    server = serving(shop.root)
    assert server.client.post("/v1/events", json=view("u01", "i01", 1)).status_code == 200
    with session(shop) as database:
        database.execute("UPDATE recloop_log.counter SET seq = seq - 1")
    end = time.monotonic() + PATIENCE
    while server.client.get("/v1/recommend/u01").json()["degraded"] != ["log"]:
        assert time.monotonic() < end
        time.sleep(0.1)
    answer = server.client.post("/v1/events", json=view("u01", "i01", 2))
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "log_unavailable")


def session(shop: Project) -> psycopg.Connection[Any]:
    """Session of the project's database; as a context manager it closes."""
    return psycopg.connect(shop.config.stores.log, autocommit=True)
