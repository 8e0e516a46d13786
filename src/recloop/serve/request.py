"""Read the body and the time of a request."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request

from recloop.ingest.parse import timestamp_or_none
from recloop.project import Project
from recloop.serve.schemas import HttpError, unprocessable

LIMIT = 5 * 1024 * 1024  # bytes of a body


async def read_body(request: Request) -> bytes:
    """The body, at most 5 MiB of it: a larger one is refused before it is read.

    Raises:
        HttpError: 413.
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
    """The clock's now, or the one that a replayed request carries.

    Raises:
        HttpError: 422 for a header that is no stamp.
    """
    told = request.headers.get("x-recloop-now")
    if told is None or not project.config.serve.replay:
        return clock()
    stamp = timestamp_or_none(told, project.config.data)
    if stamp is None:
        raise unprocessable("X-Recloop-Now", told, "ISO 8601, such as 2025-01-31T12:00:00Z")
    return stamp
