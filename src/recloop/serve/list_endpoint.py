"""Lean path of ``GET /v1/recommend/{user_id}``: no router, one write.

The checks, errors and headers equal those of the routes; `ListApplication` and `ListProtocol` both answer through here.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

import httptools
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from recloop.serve.access import AccessRules, Head
from recloop.serve.event_endpoint import EVENTS_PATH, EventEndpoint
from recloop.serve.middleware import REQUEST_IDS, Reply, client_id, error_reply, json_reply
from recloop.serve.recommend_routes import RecommendRoutes, RequestKeys
from recloop.serve.request import RECOMMEND_PARAMETERS, check_names, list_parameters, names_of

LIST_PREFIX: Final = "/v1/recommend/"
LIST_PREFIX_BYTES: Final = LIST_PREFIX.encode()
ALLOWED_NAMES: Final = names_of(RECOMMEND_PARAMETERS)


class ListEndpoint:
    """Answers list requests in one synchronous call on the event loop."""

    def __init__(self, routes: RecommendRoutes, rules: AccessRules) -> None:
        self._routes = routes
        self._rules = rules

    def reply(self, path: str, query_string: bytes, headers: list[tuple[bytes, bytes]]) -> Reply:
        """Answer a request of this path, which starts with `LIST_PREFIX`; never raises."""
        head = Head(headers)
        ids = RequestKeys(REQUEST_IDS.next(), client_id(head.request_id))
        try:
            self._rules.check(head)
            parameters = list_parameters(query_string)
            check_names(parameters.names, ALLOWED_NAMES)
            time_header = None if head.time is None else head.time.decode("latin-1")
            body = self._routes.recommend_body(path[len(LIST_PREFIX) :], parameters, ids, time_header)
            reply = json_reply(body)
        except Exception as error:  # noqa: BLE001 - the client gets a JSON error for every failure
            reply = error_reply(error)
        reply.headers.append((b"x-request-id", (ids.client_request_id or ids.request_id).encode()))
        return reply


class ListApplication(Starlette):
    """Application that answers lists and events before its middleware and routes.

    Attributes:
        lists: Endpoint of list requests; None until the routes exist.
        events: Endpoint of posted events; None if the routes answer them.
    """

    lists: ListEndpoint | None = None
    events: EventEndpoint | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = None
        if scope["type"] == "http":
            path = scope["path"]
            if self.lists is not None and scope["method"] == "GET" and path.startswith(LIST_PREFIX):
                reply = self.lists.reply(path, scope["query_string"], scope["headers"])
            elif self.events is not None and scope["method"] == "POST" and path == EVENTS_PATH:
                try:
                    reply = await self.events.reply(scope, receive)
                except ClientDisconnect:
                    return
        if reply is None:
            await super().__call__(scope, receive, send)
            return
        if self.state.draining:
            reply.headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await send({"type": "http.response.body", "body": reply.body})


class ListProtocol(HttpToolsProtocol):
    """uvicorn's protocol that answers list requests without a task and in one write.

    A list is computed synchronously, so a task, its events and a second system call would only add time. A request
    takes uvicorn's own path if it follows another one in the same read (pipelining), if an earlier response is
    incomplete, or if it is unusual in any other way.
    """

    _is_list = False
    _keeps_alive = True
    _answered_in_read = False

    def data_received(self, data: bytes) -> None:
        self._answered_in_read = False
        super().data_received(data)

    def on_headers_complete(self) -> None:
        self._is_list = self._takes_list_path()
        if self._is_list:
            self._keeps_alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_list:  # the body of a GET is ignored
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._is_list:
            self._is_list = False
            self._answer_list()
        else:
            super().on_message_complete()

    def _takes_list_path(self) -> bool:
        earlier: Any = self.cycle  # None before the first request
        return (
            self.url.startswith(LIST_PREFIX_BYTES)
            and self.parser.get_method() == b"GET"
            and isinstance(self.app, ListApplication)
            and self.app.lists is not None
            and self.url.isascii()
            and not self._answered_in_read
            and not self.pipeline
            and (earlier is None or earlier.response_complete)
            and not self.expect_100_continue
            and not self.flow.write_paused
            and not self.parser.should_upgrade()
        )

    def _answer_list(self) -> None:
        application: Any = self.app
        url: Any = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        reply = application.lists.reply(unquote(path) if "%" in path else path, url.query or b"", self.headers)
        content = [STATUS_LINE[reply.status]]
        for name, value in (*self.server_state.default_headers, *reply.headers):
            content += (name, b": ", value, b"\r\n")
        is_last = application.state.draining or not self._keeps_alive
        content += (b"connection: close\r\n\r\n" if is_last else b"\r\n", reply.body)
        self._answered_in_read = True
        self.transport.write(b"".join(content))
        if is_last:
            self.transport.close()
        self.on_response_complete()
