"""Body of a write: an object, an array or JSON lines, as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from recloop.config import Limits
from recloop.ingest.row_limits import DEFAULT_LIMITS

NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines")


class BadRequest(Exception):
    """Refusal of a whole request; ``status`` is its HTTP status."""

    def __init__(
        self, status: int, code: str, message: str, field: str | None = None, expected: str | None = None
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message
        self.field = field
        self.expected = expected


class Rejected(msgspec.Struct):
    """Rejected row with its reason; ``ids`` are its ids that are strings.

    ``raw`` is the row as it was sent: a JSON value, or the text of a line that is not JSON.
    """

    ids: dict[str, str]
    reason: str
    raw: Any = None


def parse_rows(body: bytes, content_type: str, limits: Limits = DEFAULT_LIMITS) -> list[Any]:
    """Parse a body (object, array or NDJSON) into rows.

    NDJSON is recognized by its content type, or by a first line that is a complete object followed by another line. An
    NDJSON line that is not JSON becomes a `Rejected`.

    Raises:
        BadRequest: 400 if the body is not JSON; 422 if it is neither object nor array, or has more rows than ``limits``.
    """
    lines = [line for line in body.split(b"\n") if line.strip()]
    if is_ndjson(content_type):
        rows = [_line(line) for line in _check_row_count(lines, limits.ndjson_rows)]
    else:
        try:
            tree = _decode(body)
        except ValueError as error:
            if len(lines) < 2 or not isinstance(_line(lines[0]), dict):
                raise BadRequest(
                    400, "not_json", f"the body is not JSON: {error}", "body", "JSON in UTF-8, without NaN or Infinity"
                ) from None
            rows = [_line(line) for line in _check_row_count(lines, limits.rows)]
        else:
            rows = _check_row_count(tree, limits.rows) if isinstance(tree, list) else [tree]
            if not isinstance(tree, list | dict):
                raise BadRequest(422, "not_rows", "the body is neither an object nor an array", "body", "rows")
    return rows


def is_ndjson(content_type: str) -> bool:
    """Return True if a body has one JSON value per line."""
    return content_type.partition(";")[0].strip().lower() in NDJSON


def _check_row_count(rows: Sequence[Any], max_rows: int) -> list[Any]:
    if len(rows) > max_rows:
        message = f"{len(rows)} rows in one request; expected at most {max_rows}"
        raise BadRequest(422, "too_many_rows", message, "body", f"at most {max_rows} rows")
    return list(rows)


def _line(line: bytes) -> Any:
    try:
        return _decode(line)
    except ValueError as error:
        return Rejected({}, f"not JSON: {error}", line.decode("utf-8", "replace"))


def _decode(data: bytes) -> Any:
    """Decode JSON.

    Raises:
        ValueError: invalid JSON or UTF-8, a lone surrogate, a number out of range, or too deep nesting.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
