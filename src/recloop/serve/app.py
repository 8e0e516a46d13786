"""ASGI application: routes, lifespan, status routes and error handlers.

recloop serve                      # ready http://127.0.0.1:8088 bundle=...
curl 'http://127.0.0.1:8088/v1/recommend/USER?n=5'
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from http import HTTPStatus

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Lifespan

from recloop.ingest.body import BadRequest
from recloop.project import Project
from recloop.records import now
from recloop.serve import admin_routes, openapi, reload, server
from recloop.serve.access import AccessMiddleware, AccessRules, ScopedRoute
from recloop.serve.config_reload import ConfigReloader
from recloop.serve.event_endpoint import EventEndpoint
from recloop.serve.event_routes import WriteRoutes
from recloop.serve.identify_routes import IdentifyRoutes
from recloop.serve.list_endpoint import ListApplication, ListEndpoint
from recloop.serve.middleware import RequestMiddleware, json_response, problem_response
from recloop.serve.person_routes import PersonRoutes
from recloop.serve.recommend_routes import RecommendRoutes
from recloop.serve.request import (
    NO_PARAMETERS,
    RECOMMEND_BY_QUERY_PARAMETERS,
    RECOMMEND_PARAMETERS,
    SIMILAR_PARAMETERS,
    Handler,
    Parameter,
    only,
)
from recloop.serve.schemas import HealthResponse, HttpError, StatusResponse
from recloop.serve.service import Clock, Service
from recloop.storage import api_keys, locks
from recloop.storage.api_keys import KeyScope


def create(project: Project, clock: Clock = now) -> Starlette:
    """Create the application of a project folder.

    ``app.state.service`` is its `Service`. It holds the folder's writer lock until its lifespan ends or ``app.state.service.close()`` is called.

    Raises:
        Locked, UserError, BundleError: see `Service`.
    """
    return build(Service(project, clock))


def run(
    project: Project,
    host: str | None = None,
    port: int | None = None,
    json: bool = False,
    workers: int | None = None,
    force: bool = False,
    descriptor: int | None = None,
    before_start: Callable[[Service], None] | None = None,
    mount: Callable[[Starlette, Service], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    The first line on stdout is `server.ready_line`; the next one on stderr is `server.token_line`, if any.

    Args:
        host, port, workers: Override the configuration; port 0 selects a free port.
        json: Print the first line as a JSON object.
        force: See `Service`.
        descriptor: Listening socket opened by another process, in place of host and port.
        before_start: Changes the opened service before it serves; tests use it to inject a skew.
        mount: Adds routes at ``/``, such as the console.

    Raises:
        Locked: another server uses this folder.
        UserError: the port is in use, the host is not loopback and the project has no API key, or no bundle is live.
    """
    serve = project.config.serve
    host = serve.host if host is None else host
    port = serve.port if port is None else port
    workers = server.check_workers(serve.workers if workers is None else workers)
    with ExitStack() as stack:
        if descriptor is not None:
            listening = stack.enter_context(server.adopt(descriptor))
            host = listening.getsockname()[0]
        server.check_host(host, has_keys=api_keys.read(project.root) is not None)
        lock = stack.enter_context(locks.writer_lock(project.root))
        if descriptor is None:
            listening = stack.enter_context(server.listen(host, port))
        with reload.gc_paused():  # up to the last import: a full collection visits everything that is not frozen
            service = Service(project, locked=True, force=force)
            stack.callback(service.close)
            if before_start is not None:
                before_start(service)
            app = build(service, host)
            if workers > 1:
                from recloop.serve.worker_pool import WorkerPool

                service.workers = WorkerPool(service, app, listening, host, workers - 1)
            if mount is not None:
                mount(app, service)
        note = server.token_line(listening, service.token, app.state.console, sys.stderr.isatty())
        lock.note(url=server.address(listening))
        service.lists.timer.start()
        server.serve(app, listening, server.ready_line(listening, service.arm.bundle, json), note, service.workers)


def build(
    service: Service,
    host: str = "",
    application: type[ListApplication] = ListApplication,
    lifespan: Lifespan[ListApplication] | None = None,
) -> ListApplication:
    """Build the application of an open service.

    Args:
        host: Listening address.
        lifespan: Work around serving; by default the releases are polled and the service is closed at the end.
    """
    reads, writes, rules = RecommendRoutes(service), WriteRoutes(service), AccessRules(service, host)
    reloader = ConfigReloader(service, rules)
    app = application(
        routes=_routes(service, rules, reads, writes, reloader),
        exception_handlers={HTTPException: _http_exception, HttpError: _http_error, BadRequest: _bad_request},
        lifespan=lifespan or _polling(service),
    )
    app.router.redirect_slashes = False
    app.add_middleware(AccessMiddleware, service=service, rules=rules)
    app.add_middleware(RequestMiddleware)
    app.state.service = service
    app.state.draining = False
    app.state.console = False  # set to True by `console.mount`
    app.state.on_drain = []  # coroutine functions that end long polls before the process waits for its requests
    app.live = service.live
    app.state.reload = reloader.reload_and_log
    app.lists = ListEndpoint(reads, rules)
    app.events = EventEndpoint(writes, rules)
    return app


def _polling(service: Service) -> Lifespan[ListApplication]:
    """Return a lifespan that polls the releases and closes the service at the end."""

    @contextlib.asynccontextmanager
    async def poll(_: ListApplication) -> AsyncIterator[None]:
        poll_task = asyncio.create_task(reload.poll_forever(service))
        if service.workers is not None:
            service.workers.start()
        try:
            yield
        finally:
            if service.workers is not None:
                await service.workers.close()
            poll_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await poll_task
            await run_in_threadpool(service.close)

    return poll


def _routes(
    service: Service, rules: AccessRules, reads: RecommendRoutes, writes: WriteRoutes, reloader: ConfigReloader
) -> list[Route]:
    """Return the routes of the interface, each with its scope."""
    status, persons, read = StatusRoutes(service), PersonRoutes(service, rules), KeyScope.READ

    def get(path: str, handler: Handler, scope: KeyScope, parameters: tuple[Parameter, ...] = NO_PARAMETERS) -> Route:
        return ScopedRoute(path, only(handler, parameters), scope, rules, ["GET"])

    def write(path: str, handler: Handler, method: str = "POST") -> Route:
        return ScopedRoute(path, only(handler), KeyScope.INGEST, rules, [method])

    return [
        get("/v1/recommend", reads.recommend, read, RECOMMEND_BY_QUERY_PARAMETERS),
        get("/v1/recommend/{user_id:path}", reads.recommend, read, RECOMMEND_PARAMETERS),
        write("/v1/events", writes.post_events),
        write("/v1/events/{event_id:path}", writes.delete_event, "DELETE"),
        write("/v1/items", writes.post_items),
        write("/v1/items", writes.patch_items, "PATCH"),
        write("/v1/items/{item_id:path}", writes.patch_item, "PATCH"),
        write("/v1/items/{item_id:path}", writes.delete_item, "DELETE"),
        write("/v1/users", writes.post_users),
        write("/v1/identify", IdentifyRoutes(service).identify),
        get("/v1/items/{item_id:path}/similar", reads.similar, read, SIMILAR_PARAMETERS),
        get("/v1/items/{item_id:path}", reads.get_item, read),
        get("/v1/users/{user_id:path}", reads.get_user, read),
        get("/v1/health/live", status.live, KeyScope.PUBLIC),
        get("/v1/health/ready", status.ready, KeyScope.PUBLIC),
        get("/v1/status", status.status, read),
        get("/metrics", status.metrics, read),
        get("/openapi.json", status.openapi, KeyScope.PUBLIC),
        ScopedRoute("/v1/users/{user_id:path}", only(persons.delete_user), KeyScope.ADMIN, rules, ["DELETE"]),
        ScopedRoute("/v1/admin/replay", only(writes.replay), KeyScope.ADMIN, rules, ["POST"]),
        ScopedRoute("/v1/admin/forget", only(persons.forget), KeyScope.ADMIN, rules, ["POST"]),
        *admin_routes.admin_routes(service, rules, reloader),
    ]


class StatusRoutes:
    """Handlers of health, status, metrics and OpenAPI; one method per route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._openapi = msgspec.json.encode(openapi.document())

    async def live(self, _: Request) -> Response:
        return json_response(HealthResponse("live"))

    async def ready(self, request: Request) -> Response:
        if request.app.state.draining:
            return json_response(HealthResponse("draining", "the process is shutting down"), 503)
        reason = self._service.ready()
        return (
            json_response(HealthResponse("not ready", reason), 503)
            if reason
            else json_response(HealthResponse("ready"))
        )

    async def status(self, _: Request) -> Response:
        table = await run_in_threadpool(self._service.summaries.status)
        return json_response(msgspec.convert(table, StatusResponse))

    async def metrics(self, request: Request) -> Response:
        app: ListApplication = request.app
        workers = self._service.workers
        requests = app.requests.snapshot(len(app.waiting) + (0 if workers is None else workers.n_in_flight))
        content = await run_in_threadpool(self._service.summaries.metrics, requests)
        return Response(content, media_type="text/plain; version=0.0.4")

    async def openapi(self, _: Request) -> Response:
        return Response(self._openapi, media_type="application/json")


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(_methods(request))
        problem = HttpError(405, "method_not_allowed", error.detail, None, f"one of {allowed}")
        return problem_response(problem, {"Allow": allowed})
    code = "not_found" if error.status_code == HTTPStatus.NOT_FOUND else "http_error"
    problem = HttpError(error.status_code, code, error.detail, None, "a route of /openapi.json")
    return problem_response(problem, error.headers)


def _methods(request: Request) -> list[str]:
    """Return the methods of a path over all routes; Starlette names the first route's."""
    routes = (route for route in request.app.routes if isinstance(route, ScopedRoute))
    found = (route.methods or () for route in routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for methods in found for method in methods})


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return problem_response(error)


async def _bad_request(_request: Request, error: Exception) -> Response:
    assert isinstance(error, BadRequest)
    return problem_response(HttpError(error.status, error.code, error.message, error.field, error.expected))
