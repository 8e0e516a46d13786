"""The service over HTTP: routes, each a few lines from the request to `Service` and back.

recloop serve                      # ready http://127.0.0.1:8088 bundle=...
curl 'http://127.0.0.1:8088/v1/recommend/USER?n=5'
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from recloop.backends import locks
from recloop.backends.log import Receipt
from recloop.config import Project
from recloop.errors import UserError
from recloop.records import Query
from recloop.serve import admin, bodies, openapi, process
from recloop.serve.bodies import Rejected
from recloop.serve.door import Door, problem_response
from recloop.serve.service import Clock, Service, system_clock
from recloop.serve.shapes import (
    EventResult,
    EventsAnswer,
    HealthAnswer,
    HttpError,
    ItemAnswer,
    ItemResult,
    ItemsAnswer,
    PastEvent,
    StatusAnswer,
    Temperature,
    UserAnswer,
    UserResult,
    UsersAnswer,
)

MOST = 1_000  # items of a list
LAST_EVENTS = 20
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
REPEATED = {
    "duplicate": "this event_id came before",
    "conflict": "this event_id came before with other content",
}
QUARANTINED = {
    "burst": "rule burst: too many rows of this user within a moment",
    "keep": "rule keep: the row does not meet clean.keep",
}


def create(project: Project, clock: Clock = system_clock) -> Starlette:
    """The application over a project folder; ``app.state.service`` is its `Service`.

    It holds the folder's writer lock until its lifespan ends (or ``app.state.service.close()``).

    Raises:
        Locked, UserError, BundleError: see `Service`.
    """
    return build(Service(project, clock))


def run(
    project: Project,
    host: str | None = None,
    port: int | None = None,
    json: bool = False,
    tamper: Callable[[Service], None] | None = None,
    dress: Callable[[Starlette, Service], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; the first line on stdout says where and what.

    Args:
        host, port: In place of the configuration's; port 0 is a free one.
        json: The first line as a JSON object.
        tamper: Changes the opened service before it answers: how a proof plants the skew that it must find.
        dress: Puts something at ``/`` beside the routes, such as the console.

    Raises:
        Locked: another server has this folder.
        UserError: the port is taken, the host is not loopback, nothing is live.
    """
    serve = project.config.serve
    host, port = serve.host if host is None else host, serve.port if port is None else port
    process.check_host(host)
    with ExitStack() as stack:
        stack.enter_context(locks.writer_lock(project.root))
        listening = stack.enter_context(process.listen(host, port))
        service = Service(project, locked=True)
        stack.callback(service.close)
        if tamper is not None:
            tamper(service)
        app = build(service)
        if dress is not None:
            dress(app, service)
        process.serve(app, listening, process.ready_line(listening, service.arm.bundle, json))


def build(service: Service) -> Starlette:
    """The routes over an open service."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        following = asyncio.create_task(admin.follow(service))
        try:
            yield
        finally:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await following
            await run_in_threadpool(service.close)

    handlers = Handlers(service)
    get, post = ["GET"], ["POST"]
    app = Starlette(
        routes=[
            Route("/v1/recommend", handlers.recommend, methods=get),
            Route("/v1/recommend/{user_id:path}", handlers.recommend, methods=get),
            Route("/v1/events", handlers.post_events, methods=post),
            Route("/v1/items", handlers.post_items, methods=post),
            Route("/v1/users", handlers.post_users, methods=post),
            Route("/v1/items/{item_id:path}", handlers.get_item, methods=get),
            Route("/v1/users/{user_id:path}", handlers.get_user, methods=get),
            Route("/v1/health/live", handlers.live, methods=get),
            Route("/v1/health/ready", handlers.ready, methods=get),
            Route("/v1/status", handlers.status, methods=get),
            Route("/metrics", handlers.metrics, methods=get),
            Route("/openapi.json", handlers.openapi, methods=get),
            *admin.routes(service),
        ],
        exception_handlers={HTTPException: _http_exception, HttpError: _http_error},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.add_middleware(Door)
    app.state.service = service
    app.state.draining = False
    return app


class Handlers:
    """One method a route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._openapi = msgspec.json.encode(openapi.document())

    async def recommend(self, request: Request) -> Response:
        started = time.perf_counter()
        query = self._query(request)
        given = request.query_params
        try:
            answer, decision = self._service.recommend(
                query, started=started, session_id=given.get("session_id"), anonymous_id=given.get("anonymous_id")
            )
        except UserError as error:
            raise _unprocessable(error.name, str(error.value), error.expected) from None
        response = _answer(self._service.reply(query, answer, decision))
        if self._service.behind:
            response.background = BackgroundTask(self._rehearse)
        return response

    async def _rehearse(self) -> None:
        """Behind an answer that is on its way: on the loop, as of the same seq."""
        self._service.behind.rehearse()

    async def post_events(self, request: Request) -> Response:
        now, rows = await self._rows(request)
        checked = [bodies.check_event(row, now) for row in rows]
        events = [event for event in checked if not isinstance(event, Rejected)]
        receipts = iter((await self._service.writer.write(events=events)).receipts if events else ())
        results = []
        for event in checked:
            if isinstance(event, Rejected):
                results.append(EventResult(event.ids.get("event_id"), "rejected", event.reason))
            else:
                receipt = next(receipts)
                results.append(EventResult(event.event_id, receipt.status, _reason(receipt)))
        counts = Counter[str](result.status for result in results)
        names = ("accepted", "duplicate", "conflict", "quarantined", "rejected")
        answer = EventsAnswer(**{name: counts[name] for name in names}, rows=results)
        mixed = answer.conflict + answer.quarantined + answer.rejected > 0
        return _answer(answer, 207 if mixed else 200)

    async def post_items(self, request: Request) -> Response:
        now, rows = await self._rows(request)
        checked = [bodies.check_item(row, now) for row in rows]
        items = [item for item in checked if not isinstance(item, Rejected)]
        if items:
            await self._service.writer.write(items=items)
        results = [
            ItemResult(item.ids.get("item_id"), "rejected", item.reason)
            if isinstance(item, Rejected)
            else ItemResult(item.item_id, "accepted")
            for item in checked
        ]
        rejected = len(rows) - len(items)
        return _answer(ItemsAnswer(len(items), rejected, results), 207 if rejected else 200)

    async def post_users(self, request: Request) -> Response:
        now, rows = await self._rows(request)
        checked = [bodies.check_user(row, now) for row in rows]
        users = [user for user in checked if not isinstance(user, Rejected)]
        if users:
            await self._service.writer.write(users=users)
        results = [
            UserResult(user.ids.get("user_id"), "rejected", user.reason)
            if isinstance(user, Rejected)
            else UserResult(user.user_id, "accepted")
            for user in checked
        ]
        rejected = len(rows) - len(users)
        return _answer(UsersAnswer(len(users), rejected, results), 207 if rejected else 200)

    async def get_item(self, request: Request) -> Response:
        item_id = request.path_params["item_id"]
        service = self._service
        item = service.catalogue.get(item_id)
        hot = service.bundle.items.ids.index(item_id) > 0
        if item is None and not hot and not await run_in_threadpool(service.heard_of_item, item_id):
            raise HttpError(404, "not_found", "no event and no catalogue names this item", "item_id")
        warm = item is not None and bool(item.attributes)
        state: Temperature = "hot" if hot else "warm" if warm else "cold"
        attributes, hidden = ({}, False) if item is None else (item.attributes, item.hidden)
        return _answer(ItemAnswer(item_id, attributes, hidden, state))

    async def get_user(self, request: Request) -> Response:
        user_id = request.path_params["user_id"]
        state = self._service.user_state(user_id)
        heard = state.moments or state.negatives or state.groups or state.attributes is not None
        if not heard and not await run_in_threadpool(self._service.heard_of_user, user_id):
            raise HttpError(404, "not_found", "no event and no attributes name this user", "user_id")
        past = [
            PastEvent(item, _iso(stamp)) for stamp, items in reversed(state.moments[-LAST_EVENTS:]) for item in items
        ]
        return _answer(
            UserAnswer(
                user_id=user_id,
                attributes=state.attributes or {},
                state="hot" if state.moments else "warm" if state.attributes else "cold",
                events=state.positives,
                last_events=past[:LAST_EVENTS],
            )
        )

    async def live(self, _: Request) -> Response:
        return _answer(HealthAnswer("live"))

    async def ready(self, request: Request) -> Response:
        if request.app.state.draining:
            return _answer(HealthAnswer("draining", "this process is ending"), 503)
        reason = self._service.ready()
        return _answer(HealthAnswer("not ready", reason), 503) if reason else _answer(HealthAnswer("ready"))

    async def status(self, _: Request) -> Response:
        table = await run_in_threadpool(self._service.table)
        return _answer(msgspec.convert(table, StatusAnswer))

    async def metrics(self, _: Request) -> Response:
        return Response(await run_in_threadpool(self._service.metrics), media_type="text/plain; version=0.0.4")

    async def openapi(self, _: Request) -> Response:
        return Response(self._openapi, media_type="application/json")

    def _query(self, request: Request) -> Query:
        given = request.query_params
        user_id = request.path_params.get("user_id", given.get("user_id", ""))
        if not user_id:
            raise _unprocessable("user_id", "", "a user id, in the path or as ?user_id=")
        n = given.get("n")
        if n is not None and not (re.fullmatch(r"[0-9]{1,4}", n) and 1 <= int(n) <= MOST):
            raise _unprocessable("n", n, f"a whole number from 1 to {MOST}")
        return Query(
            user_id=user_id,
            now=self._now(request),
            k=int(n) if n else 0,
            placement=given.get("placement", "home"),
            exclude=_listed(given.getlist("exclude")),
            filter=given.get("filter", "").strip(),
            properties=_listed(given.getlist("properties")),
            request_id=request.state.request_id,
        )

    def _now(self, request: Request) -> int:
        """The clock's now, or the one that a replayed request carries."""
        told = request.headers.get("x-recloop-now")
        if told is None or not self._service.project.config.serve.replay:
            return self._service.clock()
        stamp = bodies.stamp_of(told)
        if stamp is None:
            raise _unprocessable("X-Recloop-Now", told, "ISO 8601, such as 2025-01-31T12:00:00Z")
        return stamp

    async def _rows(self, request: Request) -> tuple[int, list[Any]]:
        body = await bodies.read_body(request)
        return self._now(request), bodies.rows_of(body, request.headers.get("content-type", ""))


def _answer(answer: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


def _reason(receipt: Receipt) -> str | None:
    if receipt.status == "quarantined":
        return QUARANTINED.get(receipt.rule or "", f"rule {receipt.rule}")
    return REPEATED.get(receipt.status)


def _listed(values: list[str]) -> tuple[str, ...]:
    """``a,b`` and ``a`` beside ``b``: the names, in order, each once."""
    return tuple(dict.fromkeys(part for value in values for part in value.split(",") if part))


def _iso(stamp: int) -> str:
    try:
        return (EPOCH + timedelta(microseconds=stamp)).isoformat().replace("+00:00", "Z")
    except OverflowError:
        return str(stamp)


def _unprocessable(field: str, value: str, expected: str) -> HttpError:
    shown = value if len(value) <= 100 else value[:97] + "..."
    return HttpError(
        422, f"bad_{field.lower().replace('-', '_')}", f"{field}={shown}: expected {expected}", field, expected
    )


async def _http_exception(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    allowed = (error.headers or {}).get("Allow")
    expected = f"one of {allowed}" if allowed else "a route of /openapi.json"
    return problem_response(HttpError(error.status_code, code, error.detail, None, expected), error.headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return problem_response(error)
