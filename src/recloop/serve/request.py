"""Body and time of a request."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from recloop.ingest.parse import timestamp_or_none
from recloop.project import Project
from recloop.serve.schemas import HttpError, unprocessable

LIMIT = 5 * 1024 * 1024  # bytes per body


async def read_body(request: Request) -> bytes:
    """Read the body, at most 5 MiB; a larger one is refused before it is read.

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
