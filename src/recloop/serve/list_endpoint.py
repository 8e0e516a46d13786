"""Lean path of ``GET /v1/recommend/{user_id}``: no router, one write.

The checks, errors and headers equal those of the routes; `ListApplication` and `ListProtocol` both answer through here.
"""

from __future__ import annotations

import random
import time
from asyncio import Task
from collections import deque
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

import httptools
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from recloop.config import Serve
from recloop.serve import limits
from recloop.serve.access import AccessRules, Head
from recloop.serve.client_address import ClientRates
from recloop.serve.event_endpoint import EVENTS_PATH, EventEndpoint
from recloop.serve.http_protocol import BoundedProtocol, encode, refusal_reply
from recloop.serve.live_config import LiveConfig
from recloop.serve.middleware import REQUEST_IDS, Reply, client_id, error_reply, json_reply
from recloop.serve.recommend_routes import RecommendRoutes, RequestKeys
from recloop.serve.request import RECOMMEND_PARAMETERS, check_names, list_parameters, names_of
from recloop.serve.request_metrics import RequestMetrics
from recloop.serve.schemas import HttpError
from recloop.storage.api_keys import KeyScope

LIST_PREFIX: Final = "/v1/recommend/"
LIST_ROUTE: Final = "/v1/recommend/{user_id}"
PAGE_PATHS: Final = (LIST_PREFIX, EVENTS_PATH)
"""Paths that accept page tokens."""
LIST_PREFIX_BYTES: Final = LIST_PREFIX.encode()
ALLOWED_NAMES: Final = names_of(RECOMMEND_PARAMETERS)
SLICE_SECONDS: Final = 0.005
MAX_DIRECT_LISTS: Final = 8
RATE_WEIGHT: Final = 0.2
"""Weight of the newest slice in the time per list."""
REFUSED_SHARE: Final = 0.75
"""Share of the deadline above which a new list is refused; the ranker is left out from half of it."""
UNREAD_SECONDS: Final = (0.25, 0.75)
"""Range of the time for which a connection is not read after a list was refused on it."""


class ListRequest(NamedTuple):
    """Arguments of `ListEndpoint.reply`, and the time of arrival."""

    path: str
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    arrived: float  # by `time.perf_counter`


class ListEndpoint:
    """Answers list requests in one synchronous call on the event loop."""

    def __init__(self, routes: RecommendRoutes, rules: AccessRules) -> None:
        self._routes = routes
        self._rules = rules

    def reply(self, path: str, query_string: bytes, headers: list[tuple[bytes, bytes]], waited: float = 0.0) -> Reply:
        """Answer a request of this path, which starts with `LIST_PREFIX`; never raises.

        Args:
            waited: Seconds since its arrival.
        """
        head = Head(headers)
        ids = RequestKeys(REQUEST_IDS.next(), client_id(head.request_id))
        try:
            self._rules.check(head, for_page=True)
            page = self._rules.authorize(head, KeyScope.READ, for_page=True)
            parameters = list_parameters(query_string)
            check_names(parameters.names, ALLOWED_NAMES)
            time_header = None if head.time is None else head.time.decode("latin-1")
            user_id = path[len(LIST_PREFIX) :]
            body = self._routes.recommend_body(user_id, parameters, ids, time_header, page, waited)
            reply = json_reply(body)
        except Exception as error:  # noqa: BLE001 - the client gets a JSON error for every failure
            reply = error_reply(error)
        reply.headers.append((b"x-request-id", (ids.client_request_id or ids.request_id).encode()))
        reply.headers.extend(self._rules.cors_headers(head))
        return reply

    def preflight(self, headers: list[tuple[bytes, bytes]]) -> Reply | None:
        """Answer the preflight request of a page; None for an unknown origin."""
        allowed = self._rules.preflight(Head(headers))
        return Reply(HTTPStatus.NO_CONTENT, allowed, b"") if allowed else None


class ListApplication(Starlette):
    """Application that answers lists and events before its middleware and routes.

    Attributes:
        lists: Endpoint of list requests; None until the routes exist.
        events: Endpoint of posted events; None if the routes answer them.
        live: Settings in force.
        requests: Counts of this process's requests.
        client_rates: Budgets of clients.
        waiting: Lists that wait for the event loop.
        reads, writes: Other requests under way.
    """

    lists: ListEndpoint | None = None
    events: EventEndpoint | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.live = LiveConfig(Serve())
        self.requests = RequestMetrics()
        self.client_rates = ClientRates()
        self.waiting = ListQueue()
        self.reads: set[Task[None]] = set()
        self.writes: set[Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        self.requests.n_in_flight += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.requests.n_in_flight -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        arrived = time.perf_counter()
        path, method = scope["path"], scope["method"]
        route = LIST_ROUTE if path.startswith(LIST_PREFIX) else EVENTS_PATH
        reply = None
        if self.lists is not None and method == "GET" and route == LIST_ROUTE:
            reply = self.lists.reply(path, scope["query_string"], scope["headers"])
        elif self.lists is not None and method == "OPTIONS" and path.startswith(PAGE_PATHS):
            reply = self.lists.preflight(scope["headers"])
        elif self.events is not None and method == "POST" and path == EVENTS_PATH:
            try:
                reply = await self.events.reply(scope, receive)
            except ClientDisconnect:
                return
        if reply is None:
            await super().__call__(scope, receive, send)
            return
        self.requests.add(method, route, reply.status, time.perf_counter() - arrived)
        if self.state.draining:
            reply.headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await send({"type": "http.response.body", "body": reply.body})


class ListQueue:
    """Lists that wait for their answer, oldest first.

    They are answered in slices of `SLICE_SECONDS`, between which the event loop accepts connections and does all else.
    Without a queue, `MAX_DIRECT_LISTS` are answered as they arrive before one waits, which saves turns of the loop.
    """

    def __init__(self) -> None:
        self._waiting: deque[ListProtocol] = deque()
        self._n_direct = 0  # since the last slice
        self._slice: tuple[float, int] | None = None  # begin and lists of the last slice; None after an empty queue
        self._seconds_per_list = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def expected_seconds(self) -> float:
        """Expected waiting time of a new list, by the rate of the last slices."""
        return len(self._waiting) * self._seconds_per_list

    def add(self, protocol: ListProtocol) -> None:
        """Answer the list of a connection now, or add it to the queue."""
        if not self._waiting and self._n_direct < MAX_DIRECT_LISTS:
            self._n_direct += 1
            protocol.answer_waiting()
            return
        if not self._waiting:
            protocol.loop.call_soon(self._answer)
        self._waiting.append(protocol)

    def _answer(self) -> None:
        self._n_direct = 0
        begin = time.perf_counter()
        if self._slice is not None:  # between two slices the loop refuses requests and does all else
            per_list = (begin - self._slice[0]) / self._slice[1]
            self._seconds_per_list += RATE_WEIGHT * (per_list - self._seconds_per_list)
        loop = self._waiting[0].loop
        n_lists = 0
        try:
            while self._waiting:
                n_lists += 1
                self._waiting.popleft().answer_waiting()
                if time.perf_counter() > begin + SLICE_SECONDS:
                    return
        finally:
            self._slice = (begin, n_lists) if self._waiting else None
            if self._waiting:
                loop.call_soon(self._answer)


class ListProtocol(BoundedProtocol):
    """Protocol that answers list requests without a task and in one write.

    A list is computed synchronously, so a task, its events and a second system call would only add time. A request
    takes uvicorn's own path if it follows another one in the same read (pipelining), if an earlier response is
    incomplete, or if it is unusual in any other way.
    """

    _is_list = False
    _keeps_alive = True
    _answered_in_read = False
    _waiting: ListRequest | None = None

    def data_received(self, data: bytes) -> None:
        self._answered_in_read = False
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._waiting = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        self.answer_waiting()
        super().shutdown()

    def refuse(self, error: HttpError) -> None:
        self.answer_waiting()
        super().refuse(error)

    def on_message_begin(self) -> None:
        self.answer_waiting()  # answers keep the order of the requests
        super().on_message_begin()

    def begin_request(self) -> None:
        self._is_list = self._takes_list_path()
        if self._is_list:
            self._keeps_alive = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        else:
            super().begin_request()

    def on_body(self, body: bytes) -> None:
        if not self._is_list:  # the body of a GET is ignored
            super().on_body(body)

    def end_request(self) -> None:
        if not self._is_list:
            super().end_request()
            return
        self._is_list = False
        application: Any = self.app
        url: Any = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        arrived = time.perf_counter()
        self._waiting = ListRequest(unquote(path) if "%" in path else path, url.query or b"", self.headers, arrived)
        try:
            self._check_waiting(application.waiting)
            self.check_rate(self.headers)
        except HttpError as error:
            self._waiting = None
            self._write(refusal_reply(error), arrived)
            if error.status == HTTPStatus.SERVICE_UNAVAILABLE:
                self._read_later()
        else:
            application.waiting.add(self)

    def _read_later(self) -> None:
        """Leave the next request of a refused client unread for a while.

        A client that asks again at once would cost more than the lists of the others.
        """
        seconds = min(random.uniform(*UNREAD_SECONDS), self.application.live.limits.keep_alive_seconds / 2)
        if not self.transport.is_closing():
            self.flow.pause_reading()
            self.loop.call_later(seconds, self._read_again)

    def _read_again(self) -> None:
        if not self.transport.is_closing():
            self.flow.resume_reading()

    def _check_waiting(self, waiting: ListQueue) -> None:
        """Check the number of waiting lists and their expected time.

        Raises:
            HttpError: 503, they are as many as the limit, or a further one would wait too long for a whole answer.
        """
        allowed = self.application.live.limits
        if len(waiting) >= allowed.waiting_lists:
            raise limits.busy(f"at most {allowed.waiting_lists} waiting lists")
        if waiting.expected_seconds() > REFUSED_SHARE * allowed.list_seconds:
            raise limits.busy(f"lists that wait at most {REFUSED_SHARE * allowed.list_seconds:g} s")

    def answer_waiting(self) -> None:
        """Answer the list that waits, if any and if the client is still connected."""
        request, self._waiting = self._waiting, None
        if request is not None and not self.transport.is_closing():
            application: Any = self.app
            waited = time.perf_counter() - request.arrived
            reply = application.lists.reply(request.path, request.query_string, request.headers, waited)
            self._write(reply, request.arrived)

    def _is_idle(self) -> bool:
        return self._waiting is None and super()._is_idle()

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
        )

    def _write(self, reply: Reply, arrived: float) -> None:
        application: Any = self.app
        application.requests.add("GET", LIST_ROUTE, reply.status, time.perf_counter() - arrived)
        is_last = application.state.draining or not self._keeps_alive
        self._answered_in_read = True
        self.transport.write(encode(reply, self.server_state.default_headers, is_last))
        if is_last:
            self.transport.close()
        self.on_response_complete()
