"""Access checks: known Host, no foreign page, JSON writes, admin token for moves and console."""

from __future__ import annotations

import itertools
import socket
import stat
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from access import TOKEN, Browser, application, control_of, status_and_code
from servers import PATIENCE, Server, command
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from recloop.errors import UserError
from recloop.serve.access import CONSOLE_PREFIX, Head, host_name, name_of
from recloop.serve.server import address, listen, token_line
from recloop.settings import build as config_of
from recloop.storage import admin_token

EVENT = {"user_id": "guard", "item_id": "i01", "event_type": "purchase"}


@pytest.fixture(scope="module")
def bare() -> Browser:
    """The access checks before a console of one word, without a service."""
    app = application(Path(), "127.0.0.2")
    word = lambda _: PlainTextResponse("console")  # noqa: E731
    app.router.routes += [Route("/", word, methods=["GET"]), Route("/_nicegui/x", word, methods=["GET", "POST"])]
    app.state.console = True
    return Browser(app)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:1", "127.0.0.1:65000", "[::1]", "[::1]:8088", "127.0.0.2:9", "shop.example", "Shop.Example:443"],
)  # fmt: skip
def test_host_known_is_answered(bare: Browser, host: str) -> None:
    assert status_and_code(bare, host=host) == (200, "")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8088", "localhost.evil.example", "shop.example.", "127.0.0.1.nip.io", "[::1", "::1",
     "localhost:8088:1", "localhost:x", "a@localhost", "localhost/", ""],
)  # fmt: skip
def test_host_unknown_is_421(bare: Browser, host: str) -> None:
    assert status_and_code(bare, host=host) == (421, "unknown_host")


@pytest.mark.parametrize("hosts", [[], ["localhost", "localhost"], ["localhost", "evil.example"]])
def test_host_missing_or_repeated_is_400(server: Server, hosts: list[str]) -> None:
    url = httpx.URL(server.url)
    lines = "".join(f"Host: {host}\r\n" for host in hosts)
    with socket.create_connection((url.host, url.port or 80), PATIENCE) as raw:
        raw.sendall(f"GET /v1/health/live HTTP/1.1\r\n{lines}\r\n".encode())
        assert raw.recv(1000).startswith(b"HTTP/1.1 400 ")


def test_rebinding_page_is_421_for_reads_and_writes(server: Server) -> None:
    """DNS rebinding gives a foreign page the service's origin under its own name."""
    page = {"host": "evil.example:8088", "origin": "http://evil.example:8088"}
    assert status_and_code(server.client, "/v1/users/u14", **page) == (421, "unknown_host")
    assert status_and_code(server.client, "/v1/events", "POST", **page) == (421, "unknown_host")
    assert status_and_code(server.client, "/v1/admin/rollback", "POST", **page) == (421, "unknown_host")
    assert status_and_code(server.client, "/", **page) == (421, "unknown_host")


@pytest.mark.parametrize("header", ["X-Forwarded-Host", "X-Host", "X-Original-Host", "Forwarded"])
def test_proxy_header_is_not_trusted(bare: Browser, header: str) -> None:
    header_value = "host=localhost" if header == "Forwarded" else "localhost"
    assert status_and_code(bare, host="evil.example", **{header: header_value}) == (421, "unknown_host")
    local = {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", header: header_value}
    assert status_and_code(bare, "/v1/admin/rollback", "POST", content_type="application/json", **local) == (
        401,
        "unauthorized",
    )


@pytest.mark.parametrize(
    ("origin", "known"),
    [
        ("http://localhost:8088", True), ("https://localhost:8088", True), ("https://shop.example", True),
        ("http://shop.example:3000", True), ("http://localhost:3000", False), ("http://127.0.0.1:8088", False),
        ("http://evil.example", False), ("null", False), ("", False), ("http://localhost:8088.evil.example", False),
    ],
)  # fmt: skip
def test_origin_foreign_is_403(bare: Browser, origin: str, known: bool) -> None:
    for path in ("/v1/health/live", "/_nicegui/x"):
        wanted = (200, "") if known else (403, "foreign_origin")
        assert status_and_code(bare, path, origin=origin, authorization=f"Bearer {TOKEN}") == wanted
    if not known:
        assert status_and_code(bare, "/v1/events", "OPTIONS", origin=origin)[0] == 403


@pytest.mark.parametrize(
    ("site", "destination", "known"),
    [
        ("none", "document", True), ("same-origin", "empty", True), ("cross-site", "document", True),
        ("cross-site", "image", False), ("cross-site", "iframe", False), ("same-site", "empty", False),
    ],
)  # fmt: skip
def test_request_from_a_foreign_page_without_origin_is_403(
    bare: Browser, site: str, destination: str, known: bool
) -> None:
    wanted = (200, "") if known else (403, "foreign_origin")
    assert status_and_code(bare, sec_fetch_site=site, sec_fetch_dest=destination) == wanted


@pytest.mark.parametrize("path", ["/v1/events", "/v1/items", "/v1/users", "/v1/admin/rollback"])
@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None])
def test_write_of_a_form_is_415(server: Server, path: str, kind: str | None) -> None:
    before = server.client.get("/v1/status").json()["last_seq"]
    headers = {} if kind is None else {"Content-Type": kind}
    answer = server.client.post(path, content=b'{"user_id": "u", "item_id": "i", "event_type": "e"}', headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "not_json")
    assert server.client.get("/v1/status").json()["last_seq"] == before


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/x-ndjson"])
def test_write_of_json_is_accepted(server: Server, kind: str) -> None:
    row = b'{"user_id": "guard", "item_id": "i01", "event_type": "purchase"}'
    answer = server.client.post("/v1/events", content=row, headers={"Content-Type": kind})
    assert answer.json()["accepted"] == 1


@pytest.mark.parametrize(
    "header_value", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer tökén"]
)
def test_admin_route_without_the_token_is_401(bare: Browser, header_value: str) -> None:
    for verb in ("promote", "rollback", "reject"):
        answer = bare.post(
            f"/v1/admin/{verb}", json={}, headers={"Authorization": header_value.encode()} if header_value else {}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answer.text


def test_admin_route_with_the_token_is_answered(server: Server) -> None:
    answer = server.client.post("/v1/admin/rollback", json={"reason": "x"})
    assert answer.status_code == 409  # no earlier live bundle
    bare = httpx.post(f"{server.url}/v1/admin/rollback", json={"reason": "x"})
    assert bare.status_code == 401


def test_console_without_login_shows_a_form_and_forbids_framing(bare: Browser) -> None:
    bare.cookies.clear()
    answer = bare.get("/")
    assert answer.status_code == 401
    assert 'action="/login"' in answer.text
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert answer.headers["x-frame-options"] == "DENY"
    for path in ("/_nicegui/x", "/_nicegui_ws/socket.io"):
        assert bare.get(path).status_code == 401
        assert bare.post(path).status_code == 401


@pytest.mark.parametrize("way", ["link", "form"])
def test_console_login_sets_a_strict_cookie(bare: Browser, way: str) -> None:
    bare.cookies.clear()
    for wrong in ("", "x", TOKEN[:-1], "ü"):
        sent = bare.get("/", params={"token": wrong}) if way == "link" else bare.post("/login", data={"token": wrong})
        assert (sent.status_code, sent.cookies) == (401, {})
    sent = bare.get("/", params={"token": TOKEN}) if way == "link" else bare.post("/login", data={"token": TOKEN})
    assert (sent.status_code, sent.headers["location"]) == (303, "/")
    cookie = sent.headers["set-cookie"].lower()
    assert all(word in cookie for word in ("httponly", "samesite=strict", "path=/"))
    assert TOKEN not in cookie
    for path in ("/", "/_nicegui/x"):
        answer = bare.get(path)
        assert (answer.status_code, answer.text) == (200, "console")
        assert answer.headers["x-frame-options"] == "DENY"
    assert (
        status_and_code(bare, "/v1/admin/rollback", "POST", content_type="application/json")[0] == 401
    )  # the cookie is not a token
    assert bare.get("/", headers={"origin": "http://evil.example"}).status_code == 403
    bare.cookies.clear()


def test_console_login_form_too_long_is_413(bare: Browser) -> None:
    assert bare.post("/login", data={"token": "x" * 5_000}).status_code == 413


def test_token_file_is_private_and_stable_until_renewed(tmp_path: Any) -> None:
    token = admin_token.ensure(tmp_path)
    file = tmp_path / "store" / "admin-token"
    file.chmod(0o644)
    assert admin_token.ensure(tmp_path) == token
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert admin_token.renew(tmp_path, control_of(tmp_path)) != token
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("short\n")
    with pytest.raises(UserError, match="recloop token --new"):
        admin_token.ensure(tmp_path)
    assert sorted(one.name for one in file.parent.iterdir()) == ["admin-token", "control.db"]


def test_token_is_printed_on_a_terminal_and_not_into_a_log(server: Server) -> None:
    words = command(server.root)[:-1]
    shown = subprocess.run([*words, "token"], capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    token = shown.strip()
    assert token == server.token
    assert token not in server.errors.read_text()
    with listen("127.0.0.1", 0) as listening:
        url = address(listening)
        lines = [token_line(listening, token, *flags) for flags in itertools.product([False, True], repeat=2)]
    assert lines == ["", f"token {token}", f"console={url}/", f"token {token} console={url}/?token={token}"]


@pytest.mark.parametrize("name", ["http://shop.example", "shop.example:80", "*", "a b", ""])
def test_serve_hosts_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="without scheme and port"):
        config_of({"serve": {"hosts": [name]}}, environment={})


def test_head_with_two_content_types_matches_no_known_type() -> None:
    head = Head([(b"content-type", b"application/json"), (b"content-type", b"application/json")])
    assert head.content_type == b"more than one"
    assert (host_name("::1"), host_name("[::1]"), name_of(b"[::1]:80")) == ("[::1]", "[::1]", b"[::1]")


def test_console_paths_of_access_and_page_are_equal() -> None:
    """The paths of the console, except `/`, are those that require the login."""
    console = pytest.importorskip("recloop.serve.console")
    assert console.CONSOLE_PREFIX == CONSOLE_PREFIX
