"""Admin routes promote, rollback, reject and reload; in force before they respond.

They call the same functions as the command line and return the same result.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from recloop.errors import BundleError, Refused, UserError
from recloop.files import JsonTree
from recloop.ingest import parse
from recloop.release import transitions
from recloop.serve import comparisons
from recloop.serve import request as request_parts
from recloop.serve.access import AccessRules, ScopedRoute
from recloop.serve.config_reload import ConfigReloader
from recloop.serve.middleware import json_response
from recloop.serve.request import only
from recloop.serve.schemas import HttpError, ReleaseRequest, ReleaseResponse, ReloadRequest
from recloop.serve.service import Service
from recloop.storage.api_keys import KeyScope

T = TypeVar("T")


def admin_routes(service: Service, rules: AccessRules, reloader: ConfigReloader) -> list[Route]:
    """Build the routes ``/v1/admin/promote``, ``rollback``, ``reject`` and ``reload``."""
    verbs = ("promote", "rollback", "reject")
    admin, post = KeyScope.ADMIN, ["POST"]
    routes = [
        ScopedRoute(f"/v1/admin/{verb}", only(AdminRoutes(service, rules, verb).move), admin, rules, post)
        for verb in verbs
    ]
    routes.append(ScopedRoute("/v1/admin/reload", only(ReloadRoute(rules, reloader).reload), admin, rules, post))
    return [*routes, ScopedRoute("/v1/admin/refuse", _renamed, admin, rules, post, include_in_schema=False)]


class AdminRoutes:
    """Handler of one release verb."""

    def __init__(self, service: Service, rules: AccessRules, verb: str) -> None:
        self._service = service
        self._rules = rules
        self._verb = verb

    async def move(self, request: Request) -> Response:
        """Make one release move and deploy it before the response."""
        release_request = await _parse_body(request, ReleaseRequest, "{bundle, to, reason}")
        try:
            origin = self._rules.origin(f"POST /v1/admin/{self._verb}", request)
            result = await run_in_threadpool(self._move, release_request, self._at(request), origin)
        except BundleError as error:
            raise HttpError(409, "bad_bundle", str(error), "bundle", error.expected) from None
        except UserError as error:
            field = error.name.removeprefix("--")
            status = {"bundle": 404, "comparison": 503}.get(field, 422)
            raise HttpError(status, f"bad_{field}", str(error), field, error.expected) from None
        except Refused as error:
            raise HttpError(409, "refused", str(error), error.gate, str(error.threshold)) from None
        await self._service.reload()
        return Response(msgspec.json.encode(msgspec.convert(result, ReleaseResponse)), media_type="application/json")

    def _move(self, move: ReleaseRequest, at: int, origin: str) -> JsonTree:
        project = self._service.project
        if self._verb == "rollback":
            return transitions.rollback(project, move.reason, origin, at)
        if self._verb == "reject":
            return transitions.reject(project, move.bundle, move.reason, origin, at)
        return transitions.promote(
            project, move.bundle, move.to, move.reason, origin, at, measure=comparisons.measure_steps
        )

    def _at(self, request: Request) -> int:
        """Time of the move: the clock, or ``X-Recloop-Now`` of a replayed request."""
        header = request.headers.get("x-recloop-now", "")
        config = self._service.project.config
        replayed = parse.timestamp_or_none(header, config.data) if header and config.serve.allow_time_header else None
        return self._service.clock() if replayed is None else replayed


class ReloadRoute:
    """Handler of ``POST /v1/admin/reload``."""

    def __init__(self, rules: AccessRules, reloader: ConfigReloader) -> None:
        self._rules = rules
        self._reloader = reloader

    async def reload(self, request: Request) -> Response:
        """Apply changed limits, hosts, proxies and keys."""
        await _parse_body(request, ReloadRequest, "{}")
        try:
            return json_response(await self._reloader.reload(self._rules.origin("POST /v1/admin/reload", request)))
        except UserError as error:
            raise HttpError(422, "bad_config", str(error), error.name, error.expected) from None


async def _renamed(_: Request) -> Response:
    raise HttpError(410, "renamed", "/v1/admin/refuse is now /v1/admin/reject", None, "/v1/admin/reject")


async def _parse_body(request: Request, shape: type[T], expected: str) -> T:
    """Parse a JSON body; an empty one is an empty object."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HttpError(415, "not_json", "the request is not JSON", "Content-Type", "application/json")
    content = await request_parts.read_body(request) or b"{}"
    try:
        return msgspec.json.decode(content, type=shape)
    except msgspec.ValidationError as error:
        raise HttpError(422, "bad_body", str(error), "body", expected) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HttpError(400, "not_json", f"the body is not JSON: {error}", "body", expected) from None
