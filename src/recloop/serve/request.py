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

MAX_BODY_BYTES = 5 * 1024 * 1024  # bytes per body
MAX_LIST_ITEMS = 1_000  # longest list
MAX_SHOWN_CHARACTERS = 100  # characters of an unknown name in the error
MIN_NAME_SIMILARITY = 0.7  # difflib similarity from which a name counts as misspelt
Handler = Callable[[Request], Awaitable[Response]]


class Parameter(NamedTuple):
    """Query parameter; ``schema`` is its OpenAPI schema."""

    name: str
    schema: JsonTree
    text: str
    required: bool = False


TEXT_SCHEMA: Final = {"type": "string"}
FILTER_PARAMETERS: Final = (
    Parameter("exclude", TEXT_SCHEMA, "comma-separated item ids to exclude; if repeated, each value is one id"),
    Parameter("filter", TEXT_SCHEMA, "condition on item fields, such as category = 'tea' AND price < 5"),
    Parameter("properties", TEXT_SCHEMA, "comma-separated item attributes to add to each slot"),
)
CALLER_PARAMETERS: Final = (
    Parameter("session_id", TEXT_SCHEMA, "recorded with the decision"),
    Parameter("anonymous_id", TEXT_SCHEMA, "recorded with the decision"),
)
LENGTH_PARAMETER: Final = Parameter(
    "n", {"type": "integer", "minimum": 1, "maximum": MAX_LIST_ITEMS}, "length of the list; default: the placement's n"
)
RECOMMEND_PARAMETERS: Final = (
    LENGTH_PARAMETER,
    Parameter("placement", {**TEXT_SCHEMA, "default": "home"}, "placement of the live bundle"),
    *FILTER_PARAMETERS,
    Parameter("item", TEXT_SCHEMA, "query item, for a placement with list similar"),
    *CALLER_PARAMETERS,
)
RECOMMEND_BY_QUERY_PARAMETERS: Final = (
    Parameter("user_id", {**TEXT_SCHEMA, "minLength": 1}, "the user", required=True),
    *RECOMMEND_PARAMETERS,
)
SIMILAR_PARAMETERS: Final = (
    Parameter("user_id", TEXT_SCHEMA, "user whose disliked items are excluded"),
    LENGTH_PARAMETER,
    Parameter("placement", {**TEXT_SCHEMA, "default": "similar"}, "placement of the live bundle with list similar"),
    *FILTER_PARAMETERS,
    *CALLER_PARAMETERS,
)
NO_PARAMETERS: Final[tuple[Parameter, ...]] = ()


async def read_body(request: Request) -> bytes:
    """Read the body of at most 5 MiB; a larger one is refused before it is complete.

    Raises:
        HttpError: 413 for a larger body.
    """
    too_large = HttpError(413, "too_large", "the body is larger than 5 MiB", "body", f"at most {MAX_BODY_BYTES} bytes")
    content_length = request.headers.get("content-length", "")
    if content_length.isdigit() and int(content_length) > MAX_BODY_BYTES:
        raise too_large
    chunks = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


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


def only(handler: Handler, parameters: tuple[Parameter, ...] = NO_PARAMETERS) -> Handler:
    """Wrap a handler to answer 422 for query parameters other than these."""
    names = frozenset(parameter.name for parameter in parameters)

    async def checked(request: Request) -> Response:
        if request.scope["query_string"]:
            for name in request.query_params:
                if name not in names:
                    raise _unknown(name, names)
        return await handler(request)

    return checked


def _unknown(name: str, names: frozenset[str]) -> HttpError:
    matches = difflib.get_close_matches(name[:MAX_SHOWN_CHARACTERS], names, n=1, cutoff=MIN_NAME_SIMILARITY)
    if matches:
        expected = f"a known parameter; nearest: {matches[0]}"
    else:
        expected = f"one of {', '.join(sorted(names))}" if names else "no query parameters"
    shortened = name[:MAX_SHOWN_CHARACTERS]
    return HttpError(
        422, "unknown_parameter", f"unknown query parameter {shortened}: expected {expected}", shortened, expected
    )
