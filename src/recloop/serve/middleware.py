"""ASGI middleware: request ids, JSON errors, `Connection: close` while draining."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
import traceback
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from starlette.datastructures import Headers, MutableHeaders, State
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recloop.errors import StoreError
from recloop.ingest.writer import LogBusyError, LogFullError, LogUnavailableError, LogUncertainError
from recloop.serve import limits
from recloop.serve.request_metrics import OTHER_ROUTE, ROUTE_TEMPLATE
from recloop.serve.schemas import HttpError

LOGGER = logging.getLogger(__name__)
CLIENT_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,200}")
RANDOM_DIGITS = 18
"""Random hex digits of a request id."""
BLOCK_IDS = 256
"""Ids whose random digits are read by one system call, which costs more than a small response."""


class RequestIds:
    """Source of request ids of 32 hex digits; used on the event loop only.

    An id is a UUID of version 7 (RFC 9562). It begins with its time in milliseconds, so the index of the decisions grows at its end.
    """

    def __init__(self) -> None:
        self._digits = ""
        self._used = 0
        os.register_at_fork(after_in_child=self._forget)

    def next(self) -> str:
        """Return a new id."""
        if self._used == len(self._digits):
            self._digits = os.urandom(BLOCK_IDS * RANDOM_DIGITS // 2).hex()
            self._used = 0
        start, end = self._used, self._used + RANDOM_DIGITS
        self._used = end
        return f"{time.time_ns() // 1_000_000:012x}7{self._digits[start : start + 3]}8{self._digits[start + 3 : end]}"

    def _forget(self) -> None:
        self._digits = ""
        self._used = 0


REQUEST_IDS = RequestIds()


def client_id(header: bytes | None) -> str | None:
    """Return the client's ``X-Request-Id`` if valid: 1 to 200 visible characters."""
    return header.decode("ascii") if header is not None and CLIENT_REQUEST_ID.fullmatch(header) else None


class Reply(NamedTuple):
    """Whole response: status, headers with lower-case names, and body."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


def json_reply(body: bytes, status: int = 200) -> Reply:
    """Build a reply with a JSON body."""
    return Reply(status, [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")], body)


def error_reply(error: Exception) -> Reply:
    """Build the reply of a failed request, as `RequestMiddleware` does."""
    response = problem_response(_http_error(error))
    return Reply(response.status_code, response.raw_headers, bytes(response.body))


class RequestMiddleware:
    """Request ids, JSON errors, and ``Connection: close`` while draining.

    Every request gets a new id. The client's ``X-Request-Id`` (1 to 200 visible ASCII characters) is echoed and
    recorded next to it.

    User ids are never logged: for an unexpected error the log has its type and location, not its message.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        header = Headers(scope=scope).get("x-request-id")
        request_id = REQUEST_IDS.next()
        client_request_id = client_id(None if header is None else header.encode("latin-1"))
        scope.setdefault("state", {}).update(request_id=request_id, client_request_id=client_request_id)
        application = scope["app"]  # a mounted application replaces it in the scope
        state: State = application.state
        arrived = time.perf_counter()
        status = 0  # of an answer that has begun

        async def pass_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = client_request_id or request_id
                if state.draining:
                    headers["connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, pass_on)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - the client gets a JSON error for every failure
            if not status:
                await problem_response(_http_error(error))(scope, receive, pass_on)
        route = scope.get(ROUTE_TEMPLATE, OTHER_ROUTE)
        application.requests.add(scope["method"], route, status, time.perf_counter() - arrived)


def json_response(body: msgspec.Struct, status: int = 200) -> Response:
    """Encode a struct as a JSON response."""
    return Response(msgspec.json.encode(body), status, media_type="application/json")


def problem_response(error: HttpError, headers: Mapping[str, str] | None = None) -> Response:
    """Encode an error as a JSON response."""
    return Response(
        msgspec.json.encode(error.answer), error.status, {**(headers or {}), **error.headers}, "application/json"
    )


def _http_error(error: Exception) -> HttpError:
    if isinstance(error, HttpError):
        return error
    if isinstance(error, LogUncertainError):
        problem = (
            "the log failed during the commit; the rows may or may not be stored. Send them again with their event_id"
        )
        response = HttpError(503, "log_uncertain", problem)
        response.headers["Retry-After"] = "1"
        return response
    if isinstance(error, LogFullError):
        problem = (
            f"less than {error.min_share:.0%} of the disk is free; this request was not stored. Send it again later"
        )
        response = HttpError(503, "disk_full", problem)
        response.headers["Retry-After"] = "10"
        return response
    if isinstance(error, LogBusyError | LogUnavailableError):
        if isinstance(error, LogBusyError):
            return limits.busy(f"at most {error.max_rows} queued rows")
        problem = "the log cannot be written; this request was not stored. Send it again"
        response = HttpError(503, "log_unavailable", problem)
        response.headers["Retry-After"] = "1"
        return response
    if isinstance(error, StoreError):
        LOGGER.warning("a request failed: %s", error)
        problem = f"{error.key} does not answer; the request may be incomplete. Send it again"
        response = HttpError(503, "store_unavailable", problem)
        response.headers["Retry-After"] = "1"
        return response
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return limits.busy("no file descriptor is left")
    location = "; ".join(f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)[-6:])
    LOGGER.error("a request failed: %s at %s", type(error).__name__, location)
    return HttpError(500, "internal_error", "internal error; see the server log")
