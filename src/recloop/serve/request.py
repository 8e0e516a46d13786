"""Body, time and query parameters of a request."""

from __future__ import annotations

import difflib
import re
import zlib
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from recloop.config import Limits
from recloop.files import JsonTree
from recloop.ingest.parse import timestamp_or_none
from recloop.project import Project
from recloop.serve.limits import FREE_BODY_BYTES, ByteBudget
from recloop.serve.schemas import HttpError, unprocessable

MAX_LIST_ITEMS = 1_000  # longest list
MAX_SHOWN_CHARACTERS = 100  # characters of an unknown name in the error
MIN_NAME_SIMILARITY = 0.7  # difflib similarity from which a name counts as misspelt
BODIES = ByteBudget()
"""Bytes of the incomplete bodies of this process."""
IDENTITY: Final = (b"", b"identity")
GZIP: Final = (b"gzip", b"x-gzip")
GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
"""Argument of zlib for data with a gzip header."""
NUMBER: Final = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
"""Text of a number without a sign."""
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
    Parameter(
        "filter_seen", {"type": "boolean"}, "leave out what the user has taken; default: the placement's setting"
    ),
    Parameter("properties", TEXT_SCHEMA, "comma-separated item attributes to add to each slot"),
)
CALLER_PARAMETERS: Final = (
    Parameter("session_id", TEXT_SCHEMA, "recorded with the decision"),
    Parameter("anonymous_id", TEXT_SCHEMA, "the browser or device; without a user id, the list is for its person"),
)
LENGTH_PARAMETER: Final = Parameter(
    "n", {"type": "integer", "minimum": 1, "maximum": MAX_LIST_ITEMS}, "length of the list; default: the placement's n"
)
RECOMMEND_PARAMETERS: Final = (
    LENGTH_PARAMETER,
    Parameter("placement", {**TEXT_SCHEMA, "default": "home"}, "placement of the live bundle"),
    *FILTER_PARAMETERS,
    Parameter(
        "min_new",
        {"type": "number", "minimum": 0, "maximum": 1},
        "smallest share of items new to the user; default: the placement's setting",
    ),
    Parameter("item", TEXT_SCHEMA, "query item, for a placement with list similar"),
    *CALLER_PARAMETERS,
)
RECOMMEND_BY_QUERY_PARAMETERS: Final = (
    Parameter("user_id", {**TEXT_SCHEMA, "minLength": 1}, "the user; optional with anonymous_id"),
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
    """Read and unpack the body of a request.

    Raises:
        HttpError: see `read_messages` and `unpack`.
    """
    content_length = request.headers.get("content-length", "").encode("latin-1")
    limits = request.app.live.limits
    body = await read_messages(request.receive, content_length, limits)
    return unpack(body, request.headers.get("content-encoding", "").encode("latin-1"), limits)


async def read_messages(receive: Receive, content_length: bytes, limits: Limits) -> bytes:
    """Read a body as it is sent, and refuse a large one before it is complete.

    Args:
        content_length: Value of ``Content-Length``, or empty.

    Raises:
        HttpError: 413 above ``body_bytes``, 503 above ``body_bytes_in_flight``.
        ClientDisconnect: the client left before the body was complete.
    """
    if content_length.isdigit() and int(content_length) > limits.body_bytes:
        raise _too_large(int(content_length), limits.body_bytes)
    chunks: list[bytes] = []
    size = n_taken = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunks.append(message.get("body", b""))
            size += len(chunks[-1])
            if size > limits.body_bytes:
                raise _too_large(size, limits.body_bytes)
            if not message.get("more_body", False):
                return chunks[0] if len(chunks) == 1 else b"".join(chunks)
            if size - n_taken > FREE_BODY_BYTES:
                BODIES.take(size - n_taken - FREE_BODY_BYTES, limits.body_bytes_in_flight)
                n_taken = size - FREE_BODY_BYTES
    finally:
        BODIES.give_back(n_taken)


def unpack(body: bytes, encoding: bytes, limits: Limits) -> bytes:
    """Unpack a body by its ``Content-Encoding``.

    Raises:
        HttpError: 413 above ``unpacked_bytes``, 400 for a body that is not gzip, 415 for another encoding.
    """
    name = encoding.strip().lower()
    if name in IDENTITY:
        return body
    if name not in GZIP:
        shown = encoding.decode("latin-1")[:MAX_SHOWN_CHARACTERS]
        message = f"Content-Encoding is {shown}; expected gzip or none"
        raise HttpError(415, "unsupported_encoding", message, "Content-Encoding", "gzip")
    unpacked = b""
    while body:
        member = zlib.decompressobj(GZIP_WINDOW)
        try:
            unpacked += member.decompress(body, limits.unpacked_bytes + 1 - len(unpacked))
        except zlib.error as error:
            raise _not_gzip(str(error)) from None
        if len(unpacked) > limits.unpacked_bytes:
            raise _too_large(len(unpacked), limits.unpacked_bytes, "the unpacked body")
        if not member.eof:
            raise _not_gzip("it ends before the end of its data")
        body = member.unused_data
    return unpacked


def _not_gzip(problem: str) -> HttpError:
    return HttpError(400, "not_gzip", f"the body is not gzip: {problem}", "body", "a whole gzip file")


def _too_large(size: int, limit: int, what: str = "the body") -> HttpError:
    expected = f"at most {limit} bytes"
    return HttpError(413, "too_large", f"{what} has {size} bytes or more; expected {expected}", "body", expected)


class ListParameters(NamedTuple):
    """Query parameters of a list.

    Of a repeated parameter the last value counts, but ``exclude`` and ``properties`` keep all.

    Attributes:
        names: Names in the query string, for `check_names`.
        n: Unchecked text; see `length`.
    """

    names: tuple[str, ...] = ()
    user_id: str = ""
    n: str | None = None
    placement: str | None = None
    exclude: tuple[str, ...] = ()
    filter: str = ""
    properties: tuple[str, ...] = ()
    item: str = ""
    session_id: str | None = None
    anonymous_id: str | None = None
    filter_seen: str | None = None
    min_new: str | None = None

    def seen(self) -> bool | None:
        """Return ``filter_seen``; None without one.

        Raises:
            HttpError: 422 for another value than true or false.
        """
        if self.filter_seen is None:
            return None
        if self.filter_seen not in {"true", "false"}:
            raise unprocessable("filter_seen", self.filter_seen, "true or false")
        return self.filter_seen == "true"

    def new_share(self) -> float | None:
        """Return ``min_new``; None without one.

        Raises:
            HttpError: 422 for a value that is not a share.
        """
        return None if self.min_new is None else _share(self.min_new)

    def length(self) -> int:
        """Return ``n``; 0 without one.

        Raises:
            HttpError: 422 for a value that is not a length.
        """
        return 0 if self.n is None else _length(self.n)


@lru_cache(1024)
def _length(text: str) -> int:
    if not (re.fullmatch(r"[0-9]{1,4}", text) and 1 <= int(text) <= MAX_LIST_ITEMS):
        raise unprocessable("n", text, f"a whole number from 1 to {MAX_LIST_ITEMS}")
    return int(text)


@lru_cache(1024)
def _share(text: str) -> float:
    if not (NUMBER.fullmatch(text) and float(text) <= 1):
        raise unprocessable("min_new", text, "a number from 0 to 1")
    return float(text)


WITHOUT_PARAMETERS: Final = ListParameters()
CACHED_QUERY_BYTES = 200
"""Longest query string whose parameters are cached; a shop repeats a few of them."""


def list_parameters(query_string: bytes) -> ListParameters:
    """Parse the query string of a list."""
    if not query_string:
        return WITHOUT_PARAMETERS
    return _parse_cached(query_string) if len(query_string) <= CACHED_QUERY_BYTES else _parse(query_string)


def _parse(query_string: bytes) -> ListParameters:
    pairs = parse_qsl(query_string.decode("latin-1"), keep_blank_values=True)
    last = dict(pairs)
    return ListParameters(
        names=tuple(last),
        user_id=last.get("user_id", ""),
        n=last.get("n"),
        placement=last.get("placement"),
        exclude=_excluded([value for name, value in pairs if name == "exclude"]),
        filter=last.get("filter", "").strip(),
        properties=_distinct([value for name, value in pairs if name == "properties"]),
        item=last.get("item", ""),
        session_id=last.get("session_id"),
        anonymous_id=last.get("anonymous_id"),
        filter_seen=last.get("filter_seen"),
        min_new=last.get("min_new"),
    )


_parse_cached = lru_cache(1024)(_parse)


def _excluded(values: Sequence[str]) -> tuple[str, ...]:
    """Return the parts of a single value, or repeated values as they are."""
    return _distinct(values) if len(values) < 2 else tuple(dict.fromkeys(value for value in values if value))


def _distinct(values: Sequence[str]) -> tuple[str, ...]:
    """Split comma-separated and repeated values into distinct names, in order."""
    return tuple(dict.fromkeys(name for value in values for name in value.split(",") if name))


def request_time(header: str | None, project: Project, clock: Callable[[], int]) -> int:
    """Return the time of the request: the clock, or ``X-Recloop-Now`` of a replay.

    Raises:
        HttpError: 422 for a header that is not a timestamp.
    """
    if header is None or not project.config.serve.allow_time_header:
        return clock()
    stamp = timestamp_or_none(header, project.config.data)
    if stamp is None:
        raise unprocessable("X-Recloop-Now", header, "ISO 8601, such as 2025-01-31T12:00:00Z")
    return stamp


def only(handler: Handler, parameters: tuple[Parameter, ...] = NO_PARAMETERS) -> Handler:
    """Wrap a handler to answer 422 for query parameters other than these."""
    allowed = names_of(parameters)

    async def checked(request: Request) -> Response:
        if request.scope["query_string"]:
            check_names(request.query_params, allowed)
        return await handler(request)

    return checked


def names_of(parameters: Iterable[Parameter]) -> frozenset[str]:
    """Return the names of parameters."""
    return frozenset(parameter.name for parameter in parameters)


def check_names(names: Iterable[str], allowed: Collection[str]) -> None:
    """Refuse unknown query parameters.

    Raises:
        HttpError: 422, naming the first unknown parameter and the nearest known one.
    """
    for name in names:
        if name not in allowed:
            raise _unknown(name, allowed)


def _unknown(name: str, names: Collection[str]) -> HttpError:
    matches = difflib.get_close_matches(name[:MAX_SHOWN_CHARACTERS], names, n=1, cutoff=MIN_NAME_SIMILARITY)
    if matches:
        expected = f"a known parameter; nearest: {matches[0]}"
    else:
        expected = f"one of {', '.join(sorted(names))}" if names else "no query parameters"
    shortened = name[:MAX_SHOWN_CHARACTERS]
    return HttpError(
        422, "unknown_parameter", f"unknown query parameter {shortened}: expected {expected}", shortened, expected
    )
