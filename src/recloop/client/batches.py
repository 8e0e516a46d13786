"""Batches of rows within the service's limits, and the counts of their answers."""

from __future__ import annotations

import json
import operator
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

NDJSON: Final = "application/x-ndjson"
MAX_BATCH_ROWS: Final = 1_000
"""Items or users of one request."""
MAX_BATCH_EVENTS: Final = 5_000
"""Events of one request, which the service stores in one commit."""
MAX_BATCH_BYTES: Final = 4_000_000  # below the service's 5 MiB
STATUSES: Final = ("accepted", "duplicate", "conflict", "quarantined", "rejected")

Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Rows of one request, and its body of JSON lines."""

    rows: list[Row]
    body: bytes


@dataclass
class SendResult:
    """Counts of sent rows by status, and the rows that are not stored as valid.

    Attributes:
        counts: Rows by `STATUSES`; their sum is the number of sent rows.
        problems: (row, answer of the service with ``status`` and ``reason``), without duplicates.
    """

    counts: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[Row, Row]] = field(default_factory=list)

    def add(self, batch: Batch, answer: Row) -> None:
        """Count the answer to a batch."""
        for row, result in zip(batch.rows, answer["rows"], strict=True):
            self.counts[result["status"]] += 1
            if result["status"] not in {"accepted", "duplicate"}:
                self.problems.append((row, result))


def with_event_ids(events: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Copy events and add missing event ids.

    A random ``event_id`` lets a retry count once.
    """
    for event in events:
        yield {**event, "event_id": event.get("event_id") or uuid.uuid4().hex}


def batches(rows: Iterable[Row], max_rows: int = MAX_BATCH_ROWS, max_bytes: float = MAX_BATCH_BYTES) -> Iterator[Batch]:
    """Split rows into batches within the limits of rows and bytes.

    A row above the limit is a batch of its own, which the service refuses.
    """
    batch: list[Row] = []
    texts: list[bytes] = []
    size = 0
    for row in rows:
        text = to_json(row)
        if batch and (len(batch) == max_rows or size + len(text) > max_bytes):
            yield Batch(batch, _lines(texts))
            batch, texts, size = [], [], 0
        batch.append(row)
        texts.append(text)
        size += len(text) + 1
    if batch:
        yield Batch(batch, _lines(texts))


def to_json(row: Row) -> bytes:
    """Encode a row; times as ISO 8601, integers of numpy as integers.

    Raises:
        TypeError, ValueError: the row has another value that JSON does not have.
    """
    return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain).encode()


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, date) else operator.index(value)  # type: ignore[arg-type]


def _lines(texts: list[bytes]) -> bytes:
    return b"\n".join(texts) + b"\n"
