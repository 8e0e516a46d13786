"""API keys of a service: each route with each kind of key, changes while serving, rates and hosts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import servers
from access import TOKEN, Browser, application, control_of, status_and_code

import recloop
from recloop.errors import UserError
from recloop.project import Project
from recloop.records import SECOND, now
from recloop.serve import key_ring, openapi, server
from recloop.serve.access import ScopedRoute
from recloop.serve.key_ring import KeyRing
from recloop.serve.schemas import HttpError
from recloop.storage import api_keys
from recloop.storage.api_keys import ROUTE_SCOPES, KeyScope

SCOPES = [scope.value for scope in ROUTE_SCOPES]
PAGE_PATHS = {"/v1/recommend/{user_id}", "/v1/events"}
CODES = {401: "unauthorized", 403: "missing_scope"}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Browser, dict[str, str]]:
    """An application over a folder with one key per scope, a revoked and an expired one, and their secrets."""
    root = tmp_path_factory.mktemp("keyed")
    secrets = {scope: api_keys.add(root, control_of(root), scope, [scope])[1] for scope in SCOPES}
    secrets["revoked"] = api_keys.add(root, control_of(root), "revoked", SCOPES)[1]
    api_keys.revoke(root, control_of(root), "revoked")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(api_keys, "now", lambda: now() - 3600 * SECOND)
    secrets["expired"] = api_keys.add(root, control_of(root), "expired", SCOPES, expires=now() - SECOND)[1]
    monkeypatch.undo()
    secrets |= {"none": "", "wrong": "recloop_" + "x" * 43, "token": TOKEN}
    page = api_keys.add(root, control_of(root), "page", ["page"])[1]
    secrets |= {
        "page": page,
        "own page": recloop.sign("u1", "page", page),
        "other page": recloop.sign("u2", "page", page),
    }
    return Browser(application(root)), secrets


def operations() -> Iterator[tuple[str, str, KeyScope]]:
    """Method, path and documented scope of every operation of the OpenAPI document."""
    for path, methods in openapi.document()["paths"].items():
        for method, operation in methods.items():
            scopes = [KeyScope(name) for requirement in operation["security"] for name in requirement["api_key"]]
            yield method.upper(), path, scopes[0] if scopes else KeyScope.PUBLIC
    yield "GET", "/openapi.json", KeyScope.PUBLIC


def expected_status(path: str, scope: KeyScope, kind: str) -> int | None:
    """Status of the access check; None: the request reaches its handler."""
    if scope is KeyScope.PUBLIC or kind in {"token", "admin"} or kind == scope:
        return None
    if path in PAGE_PATHS and (kind == "own page" or (kind == "other page" and path == "/v1/events")):
        return None  # a row of another user is refused after the body was read
    return 401 if kind in {"none", "wrong", "revoked", "expired"} else 403


@pytest.mark.parametrize(("method", "path", "scope"), [*operations()])
def test_operation_answers_only_keys_with_its_scope(
    keyed: tuple[Browser, dict[str, str]], method: str, path: str, scope: KeyScope
) -> None:
    browser, secrets = keyed
    for kind, secret in secrets.items():
        headers = {"authorization": f"Bearer {secret}", "content_type": "application/json"}
        url = path.replace("{user_id}", "u1").replace("{item_id}", "i1")
        status, code = status_and_code(browser, url, method, **headers)
        wanted = expected_status(path, scope, kind)
        if wanted is None:
            assert status not in {401, 403}, kind
        else:
            at_limit = kind == "other page" and path in PAGE_PATHS
            assert (status, code) == (wanted, "page_limit" if at_limit else CODES[wanted]), kind


def test_every_route_names_the_scope_of_the_openapi_document(tmp_path: Path) -> None:
    routes = application(tmp_path).routes
    assert [route for route in routes if not isinstance(route, ScopedRoute)] == []
    documented = {(method, path): scope for method, path, scope in operations()}
    for route in routes:
        assert isinstance(route, ScopedRoute)
        if route.include_in_schema and "/refuse" not in route.path:
            (method,) = (route.methods or set()) - {"HEAD"}
            assert documented.pop((method, route.path.replace(":path", ""))) is route.key_scope, route.path
    assert documented == {}


def test_without_a_file_of_keys_only_admin_routes_need_one(tmp_path: Path) -> None:
    browser = Browser(application(tmp_path))
    for method, path, scope in operations():
        status, _ = status_and_code(browser, path, method, content_type="application/json")
        assert (status == 401) == (scope is KeyScope.ADMIN), path


# ---- changes while serving


@dataclass
class Clock:
    """Replaces the clock of the key ring."""

    seconds: float = 1_000.0

    def monotonic(self) -> float:
        return self.seconds

    def time(self) -> float:
        return now() / SECOND

    def pass_(self, seconds: float = 1.0) -> None:
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(key_ring, "time", made)
    return made


def is_let_in(ring: KeyRing, secret: str, scope: KeyScope = KeyScope.READ) -> bool:
    try:
        ring.authorize(f"Bearer {secret}".encode(), scope)
    except HttpError as error:
        if error.status != 401:
            raise
        return False
    return True


def test_added_and_revoked_keys_are_followed(tmp_path: Path, clock: Clock) -> None:
    ring = KeyRing(tmp_path, TOKEN)
    assert is_let_in(ring, "")
    _, first = api_keys.add(tmp_path, control_of(tmp_path), "first", ["read"])
    clock.pass_()
    assert (is_let_in(ring, ""), is_let_in(ring, first)) == (False, True)
    _, second = api_keys.add(tmp_path, control_of(tmp_path), "second", ["read"])
    api_keys.revoke(tmp_path, control_of(tmp_path), "first")
    clock.pass_()
    assert (is_let_in(ring, first), is_let_in(ring, second)) == (False, True)
    api_keys.revoke(tmp_path, control_of(tmp_path), "second")
    clock.pass_()
    assert (is_let_in(ring, ""), is_let_in(ring, second), is_let_in(ring, TOKEN)) == (False, False, True)


@pytest.mark.parametrize(
    "damage", [lambda file: file.write_text(""), lambda file: file.unlink(), lambda file: file.chmod(0o644)]
)
def test_damaged_or_removed_file_leaves_the_last_keys_in_force(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], Any]
) -> None:
    _, secret = api_keys.add(tmp_path, control_of(tmp_path), "shop", ["read"])
    ring = KeyRing(tmp_path, TOKEN)
    damage(api_keys.path(tmp_path))
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            clock.pass_()
            assert (is_let_in(ring, ""), is_let_in(ring, secret)) == (False, True)
    assert len(caplog.records) == 1
    assert secret not in caplog.text


def test_use_of_a_key_is_recorded_once_a_minute(tmp_path: Path, clock: Clock) -> None:
    _, secret = api_keys.add(tmp_path, control_of(tmp_path), "shop", ["read"])
    ring = KeyRing(tmp_path, TOKEN)
    assert is_let_in(ring, secret)
    first = api_keys.last_used(tmp_path, "shop")
    assert first is not None
    assert abs(first - now()) < 60 * SECOND
    clock.pass_(10)
    assert is_let_in(ring, secret)
    assert api_keys.last_used(tmp_path, "shop") == first
    clock.pass_(61)
    assert is_let_in(ring, secret)
    assert api_keys.last_used(tmp_path, "shop") > first  # type: ignore[operator]


def test_key_above_its_rate_is_429_until_its_budget_returns(tmp_path: Path, clock: Clock) -> None:
    _, secret = api_keys.add(tmp_path, control_of(tmp_path), "shop", ["read"], rate=2.0)
    ring = KeyRing(tmp_path, TOKEN)
    header = f"Bearer {secret}".encode()
    for _ in range(2):
        ring.authorize(header, KeyScope.READ)
    with pytest.raises(HttpError) as refused:
        ring.authorize(header, KeyScope.READ)
    assert (refused.value.status, refused.value.answer.error.code) == (429, "rate_limit")
    assert refused.value.headers["Retry-After"] == "1"
    api_keys.add(tmp_path, control_of(tmp_path), "other", ["read"])  # the file changes, the budget stays
    clock.pass_(0.51)
    ring.authorize(header, KeyScope.READ)
    with pytest.raises(HttpError):
        ring.authorize(header, KeyScope.READ)


# ---- addresses


def test_serving_other_machines_needs_keys() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        server.check_host(host, has_keys=False)
    for host in ("0.0.0.0", "::", "192.0.2.7", "shop.example"):
        with pytest.raises(UserError, match="a project with an API key; try: recloop keys add"):
            server.check_host(host, has_keys=False)
        server.check_host(host, has_keys=True)


@pytest.mark.parametrize("name", ["192.0.2.7", "10.1.2.3:8088", "[2001:db8::1]:8088", "localhost"])
def test_host_of_a_probe_is_accepted_where_keys_are_required(tmp_path: Path, name: str) -> None:
    public = Browser(application(tmp_path, "0.0.0.0"))
    assert status_and_code(public, host=name) == (200, "")
    assert status_and_code(public, host="evil.example") == (421, "unknown_host")
    if name != "localhost":
        assert status_and_code(Browser(application(tmp_path)), host=name) == (421, "unknown_host")


@pytest.mark.slow
def test_workers_follow_the_keys_and_answer_other_addresses(project: Project) -> None:
    """Lists are answered by any worker and posts by the writing process; both know a new key within a second."""
    with pytest.raises(AssertionError, match="a project with an API key"):
        servers.start(project.root, "--host", "0.0.0.0")
    _, reader = api_keys.add(project.root, control_of(project.root), "reader", ["read"])
    running = servers.start(project.root, "--host", "0.0.0.0", "--workers", "2")
    try:
        _, sender = api_keys.add(project.root, control_of(project.root), "sender", ["ingest"])
        time.sleep(1)
        for number in range(10):  # each connection may reach the other worker
            row = {"user_id": f"sent-{number}", "item_id": "i01", "event_type": "purchase"}
            with httpx.Client(base_url=running.url) as client:
                statuses = [
                    (
                        client.get("/v1/recommend/u05", headers={"Authorization": f"Bearer {secret}"}).status_code,
                        client.post("/v1/events", json=row, headers={"Authorization": f"Bearer {secret}"}).status_code,
                    )
                    for secret in ("none", reader, sender)
                ]
            assert statuses == [(401, 401), (200, 403), (403, 200)]
        assert running.stop() == 0
    finally:
        running.close()
    assert reader not in running.errors.read_text()
    assert api_keys.last_used(project.root, "reader")
