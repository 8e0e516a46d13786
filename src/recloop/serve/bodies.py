"""From a request's bytes to checked rows: what is refused whole, and what is one rejected row among others."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from recloop.backends.log import object_text
from recloop.config import Data
from recloop.features.stamp_text import EXPECTED, read_stamp
from recloop.project import Project
from recloop.records import Event, Item, User
from recloop.serve.shapes import EventRow, HttpError, ItemRow, UserRow, unprocessable

LIMIT = 5 * 1024 * 1024  # bytes of a body
ROWS = 1_000
DEPTH = 32  # levels of attributes and context
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")
NAMES = "user_id", "item_id", "event_id"

Row = TypeVar("Row", EventRow, ItemRow, UserRow)


class Rejected(msgspec.Struct):
    """A row that is answered and not kept; ``ids`` are those of it that are text."""

    ids: dict[str, str]
    reason: str


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


def rows_of(body: bytes, content_type: str) -> list[Any]:
    """The rows of a body: an object, an array, or NDJSON; a line of NDJSON that is no JSON is a `Rejected`.

    NDJSON is known by its content type, or by a first line that is a whole object with another line after it.

    Raises:
        HttpError: 400 for what is not JSON, 422 for neither object nor array, or for more than 1,000 rows.
    """
    lines = [line for line in body.split(b"\n") if line.strip()]
    if content_type.partition(";")[0].strip().lower() in NDJSON:
        rows = [_line(line) for line in _counted(lines)]
    else:
        try:
            whole = _decode(body)
        except ValueError as error:
            if len(lines) < 2 or not isinstance(_line(lines[0]), dict):
                raise HttpError(
                    400, "not_json", f"the body is not JSON: {error}", "body", "JSON in UTF-8, without NaN or Infinity"
                ) from None
            rows = [_line(line) for line in _counted(lines)]
        else:
            rows = _counted(whole) if isinstance(whole, list) else [whole]
            if not isinstance(whole, list | dict):
                raise HttpError(422, "not_rows", "the body is neither an object nor an array", "body", "rows")
    return rows


def check_event(raw: Any, received_at: int, data: Data) -> Event | Rejected:
    """The event of a row, or why it is none."""
    row = _shaped(raw, EventRow)
    if isinstance(row, Rejected):
        return row
    try:
        stamp = received_at if row.timestamp is None else read_stamp(row.timestamp, data)
    except ValueError as error:
        told = str(row.timestamp)[:60]
        return Rejected(_ids(raw), f"timestamp={told}: expected {EXPECTED}; {error}")
    return Event(
        user_id=row.user_id,
        item_id=row.item_id,
        timestamp=stamp,
        received_at=received_at,
        event_type=row.event_type,
        value=row.value,
        quantity=row.quantity,
        group_id=row.group_id,
        event_id=row.event_id,
        anonymous_id=row.anonymous_id,
        session_id=row.session_id,
        placement=row.placement,
        request_id=row.request_id,
        context=None if row.context is None else object_text(row.context),
    )


def check_item(raw: Any, received_at: int) -> Item | Rejected:
    """The version of an item of a row, or why it is none."""
    row = _shaped(raw, ItemRow)
    if isinstance(row, Rejected):
        return row
    return Item(item_id=row.item_id, attributes=row.attributes, hidden=row.hidden, received_at=received_at)


def check_user(raw: Any, received_at: int) -> User | Rejected:
    """The version of a user of a row, or why it is none."""
    row = _shaped(raw, UserRow)
    if isinstance(row, Rejected):
        return row
    return User(user_id=row.user_id, attributes=row.attributes, received_at=received_at)


def now_of(request: Request, project: Project, clock: Callable[[], int]) -> int:
    """The clock's now, or the one that a replayed request carries.

    Raises:
        HttpError: 422 for a header that is no stamp.
    """
    told = request.headers.get("x-recloop-now")
    if told is None or not project.config.serve.replay:
        return clock()
    stamp = stamp_of(told, project.config.data)
    if stamp is None:
        raise unprocessable("X-Recloop-Now", told, "ISO 8601, such as 2025-01-31T12:00:00Z")
    return stamp


def stamp_of(given: str, data: Data) -> int | None:
    """Microseconds of a stamp as `read_stamp` reads it; None where it is none."""
    try:
        return read_stamp(given, data)
    except ValueError:
        return None


def _shaped(raw: Any, shape: type[Row]) -> Row | Rejected:
    if isinstance(raw, Rejected):
        return raw
    try:
        row = msgspec.convert(raw, shape)
    except msgspec.ValidationError as error:
        return Rejected(_ids(raw), _reason(str(error)))
    except OverflowError:
        return Rejected(_ids(raw), "a number is too large")
    if not _storable(raw.get("context", raw.get("attributes"))):
        return Rejected(_ids(raw), f"expected whole numbers of at most 64 bits, and no more than {DEPTH} levels")
    return row


def _ids(raw: Any) -> dict[str, str]:
    return {name: raw[name] for name in NAMES if isinstance(raw.get(name), str)} if isinstance(raw, dict) else {}


def _counted(rows: Sequence[Any]) -> list[Any]:
    if len(rows) > ROWS:
        raise HttpError(422, "too_many_rows", f"{len(rows)} rows in one request", "body", f"at most {ROWS} rows")
    return list(rows)


def _line(line: bytes) -> Any:
    try:
        return _decode(line)
    except ValueError as error:
        return Rejected({}, f"not JSON: {error}")


def _decode(data: bytes) -> Any:
    """JSON of bytes.

    Raises:
        ValueError: it is none, is no UTF-8, holds a lone surrogate, a number out of range, or nests too deep.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _storable(tree: Any, depth: int = 0) -> bool:
    """Whether every reader of the log can hold it."""
    if isinstance(tree, int):
        return -(2**63) <= tree < 2**64
    if isinstance(tree, dict | list):
        parts = tree.values() if isinstance(tree, dict) else tree
        return depth < DEPTH and all(_storable(part, depth + 1) for part in parts)
    return True


def _reason(message: str) -> str:
    """The sentence of msgspec with the field in front: ``user_id: expected `str`, got `int```."""
    found = re.fullmatch(r"(.*) - at `\$\.?(.*)`", message)
    if found:
        return f"{found[2]}: {found[1][0].lower()}{found[1][1:]}"
    return message[0].lower() + message[1:]
