"""Reload of limits, hosts, proxies and keys between two requests; other keys are refused by name."""

from __future__ import annotations

import signal
import time
import tomllib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import servers
import tomli_w
from access import control_of

from recloop.project import Project
from recloop.serve.app import create
from recloop.storage import api_keys

Serving = Callable[..., servers.Server]


def change(project: Project, **settings: Any) -> None:
    """Change dotted keys of recloop.toml; ``__`` is a dot."""
    file = project.root / "recloop.toml"
    tree = tomllib.loads(file.read_text("utf-8"))
    for key, value in settings.items():
        table = tree
        *path, name = key.split("__")
        for part in path:
            table = table.setdefault(part, {})
        table[name] = value
    file.write_text(tomli_w.dumps(tree), "utf-8")


async def reload(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.post("/v1/admin/reload", json={})
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def test_reload_applies_limits_hosts_and_proxies_between_two_requests(project: Project) -> None:
    app = create(project)

    async def work(client: httpx.AsyncClient, service: Any) -> None:
        async def statuses() -> list[int]:
            answers = [
                await client.get("/v1/recommend/u14?properties=a,b"),
                await client.get("/v1/recommend/u14", headers={"Host": "new.example"}),
                await client.post("/v1/users", json=[{"user_id": "a"}, {"user_id": "b"}]),
            ]
            return [answer.status_code for answer in answers]

        assert await statuses() == [200, 421, 200]
        assert await reload(client) == {"changed": [], "refused": []}
        change(
            project, serve__hosts=["new.example"], serve__trusted_proxies=["10.0.0.0/8"], serve__limits__properties=1,
            serve__limits__rows=1, serve__limits__queued_rows=7,
        )  # fmt: skip
        keys = [f"serve.{name}" for name in ("hosts", "limits.properties", "limits.queued_rows", "limits.rows")]
        assert (await reload(client))["changed"] == [*keys, "serve.trusted_proxies"]
        assert await statuses() == [422, 200, 422]
        assert service.writer.max_pending_rows == 7
        assert [str(network) for network in service.live.proxies.networks] == ["10.0.0.0/8"]
        assert await reload(client) == {"changed": [], "refused": []}

    servers.inside(app, work)


def test_reload_refuses_every_other_changed_key_by_name(project: Project) -> None:
    app = create(project)

    async def work(client: httpx.AsyncClient, service: Any) -> None:
        change(project, serve__port=9999, serve__limits__rows=1, release__shadow_share=0.5, train__epochs=3)
        result = await reload(client)
        assert result["changed"] == ["serve.limits.rows"]
        assert result["refused"] == [
            {"key": "release.shadow_share", "fix": "restart recloop serve"},
            {"key": "serve.port", "fix": "restart recloop serve"},
            {"key": "train.epochs", "fix": "recloop update"},
        ]
        assert service.project.config.serve.port != 9999
        assert [one["key"] for one in (await reload(client))["refused"]] == [one["key"] for one in result["refused"]]

    servers.inside(app, work)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"serve__limits__rows": 0}, "serve.limits.rows"),
        ({"serve__limits__rwos": 5}, "serve.limits.rwos"),
        ({"serve__trusted_proxies": ["10.0.0.1/8"]}, "exact networks"),
        ({}, "a TOML file"),
    ],
)
def test_reload_of_an_invalid_file_is_422_and_changes_nothing(
    project: Project, settings: dict[str, Any], message: str
) -> None:
    app = create(project)

    async def work(client: httpx.AsyncClient, service: Any) -> None:
        before = service.live.limits
        change(project, **settings)
        if not settings:
            (project.root / "recloop.toml").write_text("[serve.limits")
        answer = await client.post("/v1/admin/reload", json={})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_config")
        assert message in answer.text
        assert service.live.limits is before

    servers.inside(app, work)


def test_reload_needs_the_admin_scope_and_an_empty_body(project: Project) -> None:
    app = create(project)

    async def work(client: httpx.AsyncClient, _: Any) -> None:
        answer = await client.post("/v1/admin/reload", json={"rows": 5})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "bad_body")
        anonymous = await client.post("/v1/admin/reload", json={}, headers={"Authorization": ""})
        assert anonymous.status_code == 401

    servers.inside(app, work)


def test_reload_reads_keys_origins_and_rates_at_once(project: Project) -> None:
    secret = api_keys.add(project.root, control_of(project.root), "shop", ["read"])[1]
    app = create(project)

    async def work(client: httpx.AsyncClient, _: Any) -> None:
        headers = {"Authorization": f"Bearer {secret}"}
        assert (await client.get("/v1/recommend/u14", headers=headers)).status_code == 200
        api_keys.revoke(project.root, control_of(project.root), "shop")
        added = api_keys.add(project.root, control_of(project.root), "slow", ["read"], rate=0.001)[1]
        assert (await reload(client))["changed"] == ["api-keys"]
        assert (await client.get("/v1/recommend/u14", headers=headers)).status_code == 401
        slow = {"Authorization": f"Bearer {added}"}
        answers = [await client.get("/v1/recommend/u14", headers=slow) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]

    servers.inside(app, work)


def test_reload_with_a_damaged_file_of_keys_is_422_and_keeps_the_keys(project: Project) -> None:
    secret = api_keys.add(project.root, control_of(project.root), "shop", ["read"])[1]
    app = create(project)

    async def work(client: httpx.AsyncClient, _: Any) -> None:
        api_keys.path(project.root).write_text("{")
        answer = await client.post("/v1/admin/reload", json={})
        assert answer.status_code == 422
        listed = await client.get("/v1/recommend/u14", headers={"Authorization": f"Bearer {secret}"})
        assert listed.status_code == 200

    servers.inside(app, work)


def until(is_met: Callable[[], bool]) -> None:
    end = time.monotonic() + servers.PATIENCE
    while not is_met():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_sighup_reloads_in_every_process(project: Project, serving: Serving) -> None:
    server = serving(project.root, "--workers", "2")
    path = "/v1/recommend/u14?properties=a,b"
    until(lambda: server.client.get("/v1/status").json()["workers"] == 2)

    def statuses() -> set[int]:
        """Statuses of requests on connections of their own, which both processes accept."""
        return {httpx.get(server.url + path, timeout=servers.PATIENCE).status_code for _ in range(12)}

    assert statuses() == {200}
    change(project, serve__limits__properties=1, train__epochs=3)
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "reloaded: serve.limits.properties" in server.errors.read_text())
    assert statuses() == {422}
    assert "not reloaded: train.epochs; fix: recloop update" in server.errors.read_text()
    assert server.stop() == 0


def test_sighup_with_an_invalid_file_keeps_the_settings(project: Project, serving: Serving) -> None:
    server = serving(project.root)
    change(project, serve__limits__rows=0)
    server.process.send_signal(signal.SIGHUP)
    until(lambda: "the settings in force stay: serve.limits.rows" in server.errors.read_text())
    assert server.client.get("/v1/recommend/u14").status_code == 200
    assert server.stop() == 0


def test_settings_of_the_command_line_stay_in_force(project: Project, serving: Serving) -> None:
    server = serving(project.root, "--set", "serve.limits.properties=1")
    change(project, serve__limits__properties=5)
    assert server.client.post("/v1/admin/reload", json={}).json()["changed"] == []
    assert server.client.get("/v1/recommend/u14?properties=a,b").status_code == 422
    assert server.stop() == 0
