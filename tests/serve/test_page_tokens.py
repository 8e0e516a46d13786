"""Page tokens: signatures, times, limits of a person and a key, and the CORS headers of their origins."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
import servers
from access import TOKEN, Browser, application, control_of, status_and_code

import recloop
from recloop.errors import UserError
from recloop.project import Project
from recloop.records import Event
from recloop.serve import page_token
from recloop.serve.app import create
from recloop.serve.key_ring import KeyRing
from recloop.serve.page_token import InvalidTokenError, PageAccess
from recloop.serve.schemas import HttpError
from recloop.storage import api_keys
from recloop.storage.api_keys import ApiKey, KeyScope, PageLimits

ORIGIN = "https://pages.example:8443"
SECRET = "recloop_secret"
WEB = ApiKey(name="web", sha256=api_keys.sha256(SECRET.encode()), scopes=(KeyScope.PAGE,), created=0)
READER = ApiKey(name="reader", sha256=api_keys.sha256(b"reader"), scopes=(KeyScope.READ,), created=0)
KEYS = {"web": WEB, "reader": READER}


def token(claims: dict[str, Any], key: str = WEB.sha256, kid: Any = "web", algorithm: str = "HS256") -> bytes:
    return jwt.encode(claims, key, algorithm, headers={"kid": kid}).encode()


def claims(**changes: Any) -> dict[str, Any]:
    made = {"sub": "u1", "iat": int(time.time()), "exp": int(time.time()) + 600} | changes
    return {name: value for name, value in made.items() if value is not None}


def test_signed_token_names_its_user_and_key() -> None:
    access = page_token.verify(recloop.sign("ünïcode/user", "web", SECRET, 60).encode(), KEYS)
    assert (access.user_id, access.key) == ("ünïcode/user", WEB)
    assert access.expires == pytest.approx(time.time() + 60, abs=5)


DAY = 86_400


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: token(claims(), key="0" * 64), "Signature verification failed"),
        (lambda: token(claims(), key=SECRET.ljust(32, "x")), "Signature verification failed"),
        (lambda: token(claims(), kid="other"), "names no page key"),
        (lambda: token(claims(), kid="reader", key=READER.sha256), "names no page key"),
        (lambda: token(claims(), algorithm="HS512"), "alg value is not allowed"),
        (lambda: token(claims(), key="", algorithm="none"), "alg value is not allowed"),
        (lambda: token(claims(exp=int(time.time()) - 60)), "has expired"),
        (lambda: token(claims(exp=None)), "exp"),
        (lambda: token(claims(exp=int(time.time()) + 2 * DAY)), "more than 86400 seconds"),
        (lambda: token(claims(iat=int(time.time()) + DAY, exp=int(time.time()) + DAY)), "not yet valid"),
        (lambda: token(claims(nbf=int(time.time()) + 3_600)), "not yet valid"),
        (lambda: token(claims(sub=None)), "sub"),
        (lambda: token(claims(sub="")), "1 to 512 bytes"),
        (lambda: token(claims(sub="é" * 257)), "1 to 512 bytes"),
        (lambda: token(claims(more="x" * 4_000)), "more than 4096 bytes"),
        (lambda: token(claims()) + b"x", "not valid"),
        (lambda: token(claims()).rpartition(b".")[0] + b".", "not valid"),
        (lambda: b"eyJ", "not valid"),
        (lambda: b"eyJ.eyJ.\xff", "not valid"),
    ],
)
def test_invalid_token_is_refused_with_its_reason(make: Callable[[], bytes], problem: str) -> None:
    with pytest.raises(InvalidTokenError, match=problem):
        page_token.verify(make(), KEYS)


@pytest.mark.parametrize("arguments", [("", 60), ("x" * 513, 60), ("u1", 0), ("u1", DAY + 1)])
def test_sign_refuses_what_the_service_would(arguments: tuple[str, int]) -> None:
    with pytest.raises(UserError):
        recloop.sign(arguments[0], "web", SECRET, arguments[1])


def test_access_is_limited_to_its_user_placements_and_event_types() -> None:
    limited = ApiKey(
        name="web", sha256=WEB.sha256, scopes=(KeyScope.PAGE,), created=0, placements=("home",), event_types=("view",)
    )
    access = PageAccess(limited, "7.0", 0)
    access.check_list("7.0", "home")
    view = Event(user_id="7", item_id="i1", event_type="view", timestamp=0)
    access.check_events([view], "integer")
    for refused in (
        lambda: access.check_list("8", "home"),
        lambda: access.check_list("7.0", "product"),
        lambda: access.check_events(
            [view, Event(user_id="8", item_id="i1", event_type="view", timestamp=0)], "integer"
        ),
        lambda: access.check_events([Event(user_id="7", item_id="i1", event_type="purchase", timestamp=0)], "integer"),
        lambda: access.check_events([view], "text"),
    ):
        with pytest.raises(HttpError) as error:
            refused()
        assert (error.value.status, error.value.answer.error.code) == (403, "page_limit")
    PageAccess(WEB, "7", 0).check_list("7", "product")


def test_rate_of_a_page_key_holds_for_each_user(tmp_path: Path) -> None:
    _, secret = api_keys.add(tmp_path, control_of(tmp_path), "web", ["page"], rate=1.0)
    ring = KeyRing(tmp_path, TOKEN)

    def ask(user: str) -> None:
        header = f"Bearer {recloop.sign(user, 'web', secret)}".encode()
        ring.authorize(header, KeyScope.READ, for_page=True)

    ask("u1")
    with pytest.raises(HttpError, match="rate_limit"):
        ask("u1")
    ask("u2")


# ---- browsers


@pytest.fixture
def paged(tmp_path: Path) -> tuple[Browser, str]:
    """The access checks of a folder with a page key, and its secret."""
    secret = api_keys.add(tmp_path, control_of(tmp_path), "web", ["page"], page=PageLimits((ORIGIN,)))[1]
    return Browser(application(tmp_path)), secret


@pytest.mark.parametrize("path", ["/v1/recommend/u1", "/v1/events"])
def test_preflight_names_a_known_origin_exactly(paged: tuple[Browser, str], path: str) -> None:
    browser, _ = paged
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    answer = browser.request("OPTIONS", path, headers={"Origin": ORIGIN, **asked})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["vary"] == "Origin"
    assert "authorization" in answer.headers["access-control-allow-headers"]
    for origin in ("https://pages.example.evil.example:8443", "http://evil.example", "null", ORIGIN + "x"):
        refused = browser.request("OPTIONS", path, headers={"Origin": origin, **asked})
        assert refused.status_code == 403, origin
        assert "access-control-allow-origin" not in refused.headers


def test_page_of_a_known_origin_reaches_only_lists_and_events(paged: tuple[Browser, str]) -> None:
    browser, secret = paged
    page = {"origin": ORIGIN, "authorization": f"Bearer {recloop.sign('u1', 'web', secret)}"}
    assert status_and_code(browser, "/v1/recommend/u2", **page) == (403, "page_limit")
    for path in ("/v1/status", "/v1/users/u1", "/v1/recommend?user_id=u1", "/metrics", "/v1/items/i1/similar"):
        assert status_and_code(browser, path, **page) == (403, "foreign_origin")
        own = {**page, "origin": "http://localhost:8088"}
        assert status_and_code(browser, path, **own) == (403, "missing_scope")
    assert status_and_code(browser, "/v1/events", "POST", content_type="text/plain", **page) == (415, "not_json")
    row = {"user_id": "u2", "item_id": "i1", "event_type": "view"}
    headers = {name.title(): value for name, value in page.items()}
    answer = browser.post("/v1/events", json=row, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "page_limit")
    assert answer.headers["access-control-allow-origin"] == ORIGIN  # the page can read why
    assert answer.headers["vary"] == "Origin"


def test_token_of_a_key_without_this_origin_is_403(tmp_path: Path) -> None:
    api_keys.add(tmp_path, control_of(tmp_path), "web", ["page"], page=PageLimits((ORIGIN,)))
    other = api_keys.add(tmp_path, control_of(tmp_path), "app", ["page"])[1]
    browser = Browser(application(tmp_path))
    bearer = f"Bearer {recloop.sign('u1', 'app', other)}"
    page = {"origin": ORIGIN, "authorization": bearer}
    assert status_and_code(browser, "/v1/recommend/u1", **page) == (403, "foreign_origin")
    assert status_and_code(browser, "/v1/recommend/u1", authorization=f"Bearer {other}") == (403, "missing_scope")


def test_page_of_an_anonymous_visitor_is_limited_to_this_id(project: Project) -> None:
    """Before and after the visitor logs in."""
    secret = api_keys.add(project.root, control_of(project.root), "web", ["page"])[1]
    headers = {"Authorization": f"Bearer {recloop.sign('phone', 'web', secret)}"}
    view = {"item_id": "i01", "event_type": "view"}

    async def visit(client: httpx.AsyncClient, _: Any) -> None:
        async def statuses() -> list[int]:
            answers = [
                await client.get("/v1/recommend/phone", headers=headers),
                await client.post("/v1/events", json={**view, "anonymous_id": "phone"}, headers=headers),
                await client.get("/v1/recommend/tablet", headers=headers),
                await client.get("/v1/recommend/u05", headers=headers),
                await client.post("/v1/events", json={**view, "anonymous_id": "tablet"}, headers=headers),
                await client.post("/v1/events", json={**view, "user_id": "u05"}, headers=headers),
                await client.post(
                    "/v1/events", json={**view, "user_id": "u05", "anonymous_id": "phone"}, headers=headers
                ),
                await client.post("/v1/identify", json={"anonymous_id": "phone", "user_id": "u05"}, headers=headers),
            ]
            return [answer.status_code for answer in answers]

        assert await statuses() == [200, 200, 403, 403, 403, 403, 403, 403]
        assert (await client.post("/v1/identify", json={"anonymous_id": "phone", "user_id": "u05"})).status_code == 200
        assert await statuses() == [200, 200, 403, 403, 403, 403, 403, 403]

    servers.inside(create(project), visit)


def test_page_gets_its_list_and_posts_its_events(project: Project) -> None:
    secret = api_keys.add(
        project.root, control_of(project.root), "web", ["page"], page=PageLimits((ORIGIN,), ("home",), ("view",))
    )[1]
    headers = {"Origin": ORIGIN, "Authorization": f"Bearer {recloop.sign('u05', 'web', secret)}"}
    row = {"user_id": "u05", "item_id": "i01", "event_type": "view"}

    async def visit(client: httpx.AsyncClient, service: Any) -> None:
        answer = await client.get("/v1/recommend/u05", headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ORIGIN)
        for path in ("/v1/recommend/u06", "/v1/recommend/u05?placement=product"):
            assert (await client.get(path, headers=headers)).status_code == 403
        posted = await client.post("/v1/events", json=row, headers=headers)
        assert posted.json()["accepted"] == 1
        before = service.as_of
        for change in ({"user_id": "u06"}, {"event_type": "purchase"}):
            answer = await client.post("/v1/events", json=[row, row | change], headers=headers)
            assert answer.status_code == 403
        assert service.as_of == before
        other = {**headers, "Authorization": f"Bearer {recloop.sign('u05', 'web', 'recloop_other')}"}
        answer = await client.get("/v1/recommend/u05", headers=other)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (401, ORIGIN)

    servers.inside(create(project), visit)
