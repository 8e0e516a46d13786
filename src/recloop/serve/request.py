"""Body, time and query parameters of a request."""

from __future__ import annotations

import difflib
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from recloop.files import JsonTree
from recloop.ingest.parse import timestamp_or_none
from recloop.project import Project
from recloop.serve.schemas import HttpError, unprocessable

LIMIT = 5 * 1024 * 1024  # bytes per body
MOST_ITEMS = 1_000  # longest list
SHOWN = 100  # characters of an unknown name in the error
NEAR = 0.7  # difflib similarity from which a name counts as misspelt
Handler = Callable[[Request], Awaitable[Response]]


class Parameter(NamedTuple):
    """Query parameter; ``schema`` is its OpenAPI schema."""

    name: str
    schema: JsonTree
    text: str
    required: bool = False


TEXT: Final = {"type": "string"}
FILTERS: Final = (
    Parameter("exclude", TEXT, "comma-separated item ids to exclude"),
    Parameter("filter", TEXT, "condition on item fields, such as category = 'tea' AND price < 5"),
    Parameter("properties", TEXT, "comma-separated item attributes to add to each slot"),
)
CALLER: Final = (
    Parameter("session_id", TEXT, "recorded with the decision"),
    Parameter("anonymous_id", TEXT, "recorded with the decision"),
)
LENGTH: Final = Parameter(
    "n", {"type": "integer", "minimum": 1, "maximum": MOST_ITEMS}, "length of the list; default: the placement's n"
)
RECOMMEND: Final = (
    LENGTH,
    Parameter("placement", {**TEXT, "default": "home"}, "placement of the live bundle"),
    *FILTERS,
    Parameter("item", TEXT, "query item, for a placement with list similar"),
    *CALLER,
)
RECOMMEND_BY_QUERY: Final = (Parameter("user_id", {**TEXT, "minLength": 1}, "the user", required=True), *RECOMMEND)
SIMILAR: Final = (
    Parameter("user_id", TEXT, "user whose disliked items are excluded"),
    LENGTH,
    Parameter("placement", {**TEXT, "default": "similar"}, "placement of the live bundle with list similar"),
    *FILTERS,
    *CALLER,
)
NONE: Final[tuple[Parameter, ...]] = ()


async def read_body(request: Request) -> bytes:
    """Read the body of at most 5 MiB; a larger one is refused before it is complete.

    Raises:
        HttpError: 413 for a larger body.
    """
    too_large = HttpError(413, "too_large", "the body is larger than 5 MiB", "body", f"at most {LIMIT} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > LIMIT:
        raise too_large
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > LIMIT:
            raise too_large
        parts.append(part)
    return b"".join(parts)


def request_time(request: Request, project: Project, clock: Callable[[], int]) -> int:
    """Return the time of the request: the clock, or ``X-Recloop-Now`` of a replay.

    Raises:
        HttpError: 422 for a header that is not a timestamp.
    """
    header = request.headers.get("x-recloop-now")
    if header is None or not project.config.serve.allow_time_header:
        return clock()
    stamp = timestamp_or_none(header, project.config.data)
    if stamp is None:
        raise unprocessable("X-Recloop-Now", header, "ISO 8601, such as 2025-01-31T12:00:00Z")
    return stamp


def only(handler: Handler, parameters: tuple[Parameter, ...] = NONE) -> Handler:
    """Wrap a handler to answer 422 for query parameters other than these."""
    known = frozenset(parameter.name for parameter in parameters)

    async def checked(request: Request) -> Response:
        if request.scope["query_string"]:
            for name in request.query_params:
                if name not in known:
                    raise _unknown(name, known)
        return await handler(request)

    return checked


def _unknown(name: str, known: frozenset[str]) -> HttpError:
    near = difflib.get_close_matches(name[:SHOWN], known, n=1, cutoff=NEAR)
    if near:
        expected = f"a known parameter; nearest: {near[0]}"
    else:
        expected = f"one of {', '.join(sorted(known))}" if known else "no query parameters"
    shown = name[:SHOWN]
    return HttpError(422, "unknown_parameter", f"unknown query parameter {shown}: expected {expected}", shown, expected)
