"""Console login: the admin token by link or form, then an HTTP-only cookie."""

from __future__ import annotations

import hashlib
import hmac
import urllib.parse
from collections.abc import Iterable
from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import Message, Send

LOGIN_PATH = "/login"
MAX_FORM_BYTES = 4_096
COOKIE_SECONDS = 400 * 86_400
"""Longest lifetime that browsers grant a cookie."""
PRIVATE_HEADERS = {
    "content-security-policy": "frame-ancestors 'none'",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with no-referrer the form would send Origin: null
    "cache-control": "no-store",
}
"""Default headers of console responses: the page is neither framed nor cached."""
LOGIN_PAGE = """<!doctype html><meta charset="utf-8"><title>recloop</title><meta name="viewport" content="width=device-width">
<style>body{font:16px sans-serif;margin:4rem auto;max-width:32rem;padding:0 1rem}</style><h1>recloop</h1>
<p>The console requires the admin token. To show it: <code>recloop token</code></p>
<p><strong>PROBLEM</strong></p><form method="post" action="/login">
<input type="password" name="token" aria-label="admin token" autofocus> <button>log in</button></form>"""


class Login:
    """Console login by token and cookie; the cookie's value is an HMAC of the token."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()
        self._name = f"recloop-{hashlib.sha256(self._token).hexdigest()[:8]}"  # cookies are shared by all ports
        self._value = hmac.new(self._token, b"console", hashlib.sha256).hexdigest()
        self._pair = f"{self._name}={self._value}".encode()

    def is_known(self, cookies: Iterable[bytes]) -> bool:
        """Return True if one of these ``name=value`` pairs is the login cookie."""
        return any(hmac.compare_digest(cookie, self._pair) for cookie in cookies)

    async def answer(self, request: Request) -> Response | None:
        """Answer the login form and ``/?token=``; None for any other request."""
        if request.url.path == LOGIN_PATH:
            if request.method != "POST":
                return login_page("")
            token = await _posted_token(request)
            if token is None:
                return login_page("The form is too long.", HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        elif request.method == "GET" and "token" in request.query_params:
            token = request.query_params["token"]
        else:
            return None
        if not hmac.compare_digest(token.strip().encode(), self._token):
            return login_page("This is not the admin token.")
        response = RedirectResponse("/", HTTPStatus.SEE_OTHER)  # removes the token from the address bar
        response.set_cookie(self._name, self._value, COOKIE_SECONDS, path="/", httponly=True, samesite="strict")
        return response


def login_page(problem: str, status: int = HTTPStatus.UNAUTHORIZED) -> Response:
    """Build the page with the token form."""
    return HTMLResponse(LOGIN_PAGE.replace("PROBLEM", problem), status)


def private(send: Send) -> Send:
    """Wrap ``send`` to add the headers of `PRIVATE_HEADERS`."""

    async def pass_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            present = {name.lower() for name, _ in message["headers"]}
            added = [(name.encode(), value.encode()) for name, value in PRIVATE_HEADERS.items()]
            message["headers"] = [*message["headers"], *(header for header in added if header[0] not in present)]
        await send(message)

    return pass_on


async def _posted_token(request: Request) -> str | None:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return None
    return urllib.parse.parse_qs(body.decode("latin-1")).get("token", [""])[0]
