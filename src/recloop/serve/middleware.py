"""The one door of the service: a name for each request, an error shape for every failure, a farewell when it ends."""

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
NAME = re.compile(r"[\x21-\x7e]{1,200}")


class RequestMiddleware:
    """ASGI middleware: a fresh id for each request, errors in one shape, ``Connection: close`` while draining.

    The client's ``X-Request-Id`` (1 to 200 visible ASCII characters) is echoed and kept beside the id, never used as it.

    No id of a user is ever logged: an unexpected error leaves its type and where it happened, not its message.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get("x-request-id")
        request_id = uuid.uuid4().hex
        client_request_id = told if told is not None and NAME.fullmatch(told) else None
        scope.setdefault("state", {}).update(request_id=request_id, client_request_id=client_request_id)
        state: State = scope["app"].state
        begun = False

        async def pass_on(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = client_request_id or request_id
                if state.draining:
                    headers["connection"] = "close"
            await send(message)

        try:
            await self._app(scope, receive, pass_on)
        except ClientDisconnect:
            return
        except Exception as error:  # noqa: BLE001 - whatever happens, the client gets one shape
            if not begun:
                await problem_response(_known(error))(scope, receive, pass_on)


def json_response(made: msgspec.Struct, status: int = 200) -> Response:
    """A shape as its answer."""
    return Response(msgspec.json.encode(made), status, media_type="application/json")


def problem_response(error: HttpError, headers: Mapping[str, str] | None = None) -> Response:
    """An error as its answer."""
    return Response(
        msgspec.json.encode(error.answer), error.status, {**(headers or {}), **error.headers}, "application/json"
    )


def _known(error: Exception) -> HttpError:
    if isinstance(error, HttpError):
        return error
    if isinstance(error, LogUncertainError):
        why = "the log failed while it committed; the rows of this request may be kept: send them again with their event_id"
        made = HttpError(503, "log_uncertain", why)
        made.headers["Retry-After"] = "1"
        return made
    if isinstance(error, LogBusyError | LogUnavailableError):
        busy = isinstance(error, LogBusyError)
        code, why = ("busy", "too many rows wait") if busy else ("log_unavailable", "the log cannot be written")
        made = HttpError(503, code, f"{why}; nothing of this request was kept: send it again")
        made.headers["Retry-After"] = "1"
        return made
    where = "; ".join(f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)[-6:])
    LOGGER.error("a request failed: %s at %s", type(error).__name__, where)
    return HttpError(500, "internal_error", "a mistake of ours; the server's log says where")
