"""ASGI middleware: request ids, JSON errors, `Connection: close` while draining."""

from __future__ import annotations

import logging
import re
import traceback
import uuid
from collections.abc import Mapping

import msgspec
from starlette.datastructures import Headers, MutableHeaders, State
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recloop.ingest.writer import LogBusyError, LogUnavailableError, LogUncertainError
from recloop.serve.schemas import HttpError

LOGGER = logging.getLogger(__name__)
CLIENT_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,200}")


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
        request_id = uuid.uuid4().hex
        client_request_id = header if header is not None and CLIENT_REQUEST_ID.fullmatch(header) else None
        scope.setdefault("state", {}).update(request_id=request_id, client_request_id=client_request_id)
        state: State = scope["app"].state
        started = False

        async def pass_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
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
            if not started:
                await problem_response(_http_error(error))(scope, receive, pass_on)


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
    if isinstance(error, LogBusyError | LogUnavailableError):
        busy = isinstance(error, LogBusyError)
        code, problem = (
            ("busy", "too many rows are queued") if busy else ("log_unavailable", "the log cannot be written")
        )
        response = HttpError(503, code, f"{problem}; this request was not stored. Send it again")
        response.headers["Retry-After"] = "1"
        return response
    location = "; ".join(f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)[-6:])
    LOGGER.error("a request failed: %s at %s", type(error).__name__, location)
    return HttpError(500, "internal_error", "internal error; see the server log")
