"""Access checks on Host, Origin, content type and key.

A loopback address is not authentication. Any page in a browser on this machine can send requests to it, and after DNS
rebinding the page can also read the answers. Therefore a request must name a known Host and must not come from a page
of another origin. Writes need a content type that a plain form cannot send. Each route names the scope that a key
needs for it (`ScopedRoute`); the console needs the admin token. No check here reads ``X-Forwarded-*`` or ``Forwarded``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from recloop.ingest.body import NDJSON
from recloop.serve.key_ring import KeyRing
from recloop.serve.login import LOGIN_PATH, Login, login_page, private
from recloop.serve.page_token import PageAccess
from recloop.serve.request import Handler
from recloop.serve.request_metrics import ROUTE_TEMPLATE
from recloop.serve.schemas import HttpError
from recloop.storage.api_keys import KeyScope

if TYPE_CHECKING:
    from recloop.serve.service import Service

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Host names that are always accepted, with any port."""
WRITE_CONTENT_TYPES = frozenset(name.encode() for name in ("application/json", *NDJSON))
"""Allowed content types of a POST or PATCH.

A page of another origin cannot send them without a preflight, which is refused.
"""
BODY_METHODS = frozenset(("POST", "PATCH"))
VARY = (b"vary", b"Origin")
EXPOSED = (b"access-control-expose-headers", b"x-request-id, retry-after")
PREFLIGHT_HEADERS = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"authorization, content-type, x-request-id"),
    (b"access-control-max-age", b"600"),
]
ROOT_PATHS = ("", "/")
CONSOLE_PREFIX = "/_nicegui"
"""Path prefix of the console's scripts and socket."""


class AccessRules:
    """Checks of request heads.

    Args:
        service: Source of ``serve.hosts``, the API keys and the admin token.
        host: Listening address, accepted in addition to `LOCAL_HOSTS` and ``serve.hosts``. Unless it is a loopback
            address, any IP address is accepted too: every request needs a key, and rebinding needs a DNS name.

    Raises:
        UserError: the file of keys is damaged or readable by other users.
    """

    def __init__(self, service: Service, host: str = "") -> None:
        self._live = service.live
        self._local_hosts = [host_name(name).encode() for name in (*LOCAL_HOSTS, host) if name]
        self._read_hosts()
        self._is_remote = bool(host) and not is_loopback(host)
        self._keys = KeyRing(service.project.root, service.token)

    def check(self, head: Head, for_page: bool = False) -> None:
        """Check host and origin of any request.

        Args:
            for_page: The route accepts page tokens, so pages of the origins of page keys may send it.

        Raises:
            HttpError: 400 or 421 for the host, 403 for the origin.
        """
        self._check_host(head)
        if not (for_page and head.origin is not None and head.origin in self._keys.page_origins):
            self._check_origin(head)

    def check_write(self, head: Head, for_page: bool = False) -> None:
        """Check host, origin and content type of a write.

        Raises:
            HttpError: as `check`; 415 for the content type.
        """
        self.check(head, for_page)
        check_content_type(head)

    def authorize(self, head: Head, scope: KeyScope, for_page: bool = False) -> PageAccess | None:
        """Check that the key of a request has a scope; see `KeyRing.authorize`.

        Raises:
            HttpError: as `KeyRing.authorize`.
        """
        origin = None if head.origin is None or self._is_own(head.origin, head) else head.origin
        return self._keys.authorize(head.authorization, scope, for_page, origin)

    def origin(self, route: str, request: Request) -> str:
        """Name a route with the key of an authorized request, for the audit log."""
        return f"{route} ({self._keys.holder(Head(request.scope['headers']).authorization)})"

    def reload_keys(self) -> bool:
        """Read the API keys again; see `KeyRing.reload`."""
        return self._keys.reload()

    def cors_headers(self, head: Head) -> list[tuple[bytes, bytes]]:
        """Build the CORS headers of an answer.

        They name the origin exactly, and only one of a page key. Without such keys there are none.
        """
        origins = self._keys.page_origins
        if not origins:
            return []
        if head.origin is None or head.origin not in origins:
            return [VARY]
        return [VARY, (b"access-control-allow-origin", head.origin), EXPOSED]

    def preflight(self, head: Head) -> list[tuple[bytes, bytes]]:
        """Build the CORS headers of a preflight answer; empty for an unknown origin."""
        headers = self.cors_headers(head)
        return [*headers, *PREFLIGHT_HEADERS] if len(headers) > 1 else []

    def _read_hosts(self) -> None:
        """Read ``serve.hosts``, which a reload may have changed."""
        self._version = self._live.version
        self._configured = frozenset(host_name(name).encode() for name in self._live.hosts)
        self._hosts = self._configured.union(self._local_hosts)

    def _check_host(self, head: Head) -> None:
        if self._version != self._live.version:
            self._read_hosts()
        if len(head.hosts) != 1:
            raise HttpError(
                400, "bad_host", f"the request has {len(head.hosts)} Host headers; expected 1", "Host", "one Host header"
            )  # fmt: skip
        name = name_of(head.hosts[0])
        if name not in self._hosts and not (self._is_remote and is_ip_address(name)):
            host = _shown(head.hosts[0])
            allowed = ", ".join(sorted(name.decode() for name in self._hosts))
            message = f"Host {host} is not allowed; add it to serve.hosts in recloop.toml"
            raise HttpError(421, "unknown_host", message, "Host", f"one of {allowed}")

    def _check_origin(self, head: Head) -> None:
        """Refuse requests from pages of another origin.

        Pages of ``serve.hosts`` are allowed, and so are programs, which send neither header. A request without Origin
        (an image, a frame, a link) names its origin in Sec-Fetch-Site; only top-level navigation is allowed.
        """
        if head.origin is None:
            if head.site in {b"cross-site", b"same-site"} and head.destination != b"document":
                raise _foreign("Sec-Fetch-Site", head.site)
            return
        if not self._is_own(head.origin, head):
            raise _foreign("Origin", head.origin)

    def _is_own(self, origin: bytes, head: Head) -> bool:
        """Return True for the origins of the service and of ``serve.hosts``."""
        authority = origin.partition(b"://")[2]
        return authority == head.hosts[0].lower() or name_of(authority) in self._configured


class AccessMiddleware:
    """Access checks; runs inside `RequestMiddleware`, which formats the errors."""

    def __init__(self, app: ASGIApp, service: Service, rules: AccessRules) -> None:
        self._app = app
        self._rules = rules
        self._login = Login(service.token)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # neither the API nor the console uses one
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        head = Head(scope["headers"])
        self._rules.check(head)
        if scope["app"].state.console and (path in ROOT_PATHS or path == LOGIN_PATH or path.startswith(CONSOLE_PREFIX)):
            await self._console(scope, receive, private(send), head)
            return
        await self._app(scope, receive, send)

    async def _console(self, scope: Scope, receive: Receive, send: Send, head: Head) -> None:
        """Serve the console to a client with the cookie or the token, else the login form."""
        if scope["app"].state.draining:
            raise HttpError(503, "draining", "the process is shutting down")
        if scope["path"] in ROOT_PATHS or scope["path"] == LOGIN_PATH:
            response = await self._login.answer(Request(scope, receive))
            if response is None and not self._login.is_known(head.cookies) and not head.authorization:
                response = login_page("")
            if response is not None:
                await response(scope, receive, send)
                return
        if not self._login.is_known(head.cookies):
            self._rules.authorize(head, KeyScope.ADMIN)
        await self._app(scope, receive, send)


class ScopedRoute(Route):
    """Route that answers only requests whose key has its scope, and posts of JSON.

    Attributes:
        key_scope: The scope, which every route names where it is defined.
        template: Path with names of its parameters, as in the OpenAPI document.
    """

    def __init__(
        self,
        path: str,
        handler: Handler,
        key_scope: KeyScope,
        rules: AccessRules,
        methods: list[str],
        include_in_schema: bool = True,
    ) -> None:
        self.key_scope = key_scope

        async def authorized(request: Request) -> Response:
            head = Head(request.scope["headers"])
            if request.method in BODY_METHODS:
                check_content_type(head)
            rules.authorize(head, key_scope)
            return await handler(request)

        self.template = path.replace(":path}", "}")
        super().__init__(path, authorized, methods=methods, include_in_schema=include_in_schema)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child_scope = super().matches(scope)
        if match is not Match.NONE:
            child_scope[ROUTE_TEMPLATE] = self.template
        return match, child_scope


class Head:
    """Headers used by the access checks and by lists, read in one pass.

    Attributes:
        request_id, time: Values of ``X-Request-Id`` and ``X-Recloop-Now``; None if absent.
        content_length, content_encoding: Values of these headers; empty if absent.
    """

    __slots__ = (
        "authorization",
        "content_encoding",
        "content_length",
        "content_type",
        "cookies",
        "destination",
        "hosts",
        "origin",
        "request_id",
        "site",
        "time",
    )

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self.hosts: list[bytes] = []
        self.origin: bytes | None = None
        self.content_type = self.authorization = self.site = self.destination = b""
        self.content_length = self.content_encoding = b""
        self.cookies: list[bytes] = []
        self.request_id: bytes | None = None
        self.time: bytes | None = None
        for name, value in headers:
            if name == b"host":
                self.hosts.append(value.strip())
            elif name == b"origin":
                self.origin = value.strip().lower() if self.origin is None else b"more than one"
            elif name == b"content-type":
                kind = value.partition(b";")[0].strip().lower()
                self.content_type = b"more than one" if self.content_type else kind
            elif name == b"content-length":
                self.content_length = self.content_length or value
            elif name == b"content-encoding":
                self.content_encoding = value
            elif name == b"authorization":
                self.authorization = value.strip()
            elif name == b"cookie":
                self.cookies += [pair.strip() for pair in value.split(b";")]
            elif name == b"sec-fetch-site":
                self.site = value.strip().lower()
            elif name == b"sec-fetch-dest":
                self.destination = value.strip().lower()
            elif name == b"x-request-id":
                self.request_id = value if self.request_id is None else self.request_id
            elif name == b"x-recloop-now":
                self.time = value if self.time is None else self.time


def is_loopback(host: str) -> bool:
    """Return True for the addresses and the name of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_ip_address(name: bytes) -> bool:
    """Return True for ``192.0.2.1`` and ``[2001:db8::1]``."""
    try:
        ipaddress.ip_address(name.decode("latin-1").removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def host_name(host: str) -> str:
    """Format an address as in a Host header."""
    return f"[{host}]".lower() if ":" in host and not host.startswith("[") else host.lower()


def name_of(authority: bytes) -> bytes:
    """Return NAME of ``NAME[:PORT]`` in lower case.

    A malformed authority is returned whole, so it does not match any known name.
    """
    name, colon, port = authority.lower().rpartition(b":")
    return name if colon and port.isdigit() else authority.lower()


def _shown(value: bytes) -> str:
    return value.decode("latin-1")[:100] or "(empty)"


def _foreign(name: str, value: bytes) -> HttpError:
    message = f"{name} {_shown(value)} is another origin; add its host to serve.hosts in recloop.toml"
    return HttpError(403, "foreign_origin", message, name, "a request from the same origin or from a program")


def check_content_type(head: Head) -> None:
    """Check that a write has a body of JSON.

    Raises:
        HttpError: 415, the content type is another one.
    """
    if head.content_type not in WRITE_CONTENT_TYPES:
        expected = f"application/json, or {NDJSON[0]} for one object per line"
        message = f"Content-Type is {_shown(head.content_type)}; expected {expected}"
        raise HttpError(415, "not_json", message, "Content-Type", expected)
