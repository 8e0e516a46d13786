"""Bulk ingest: rows of a file or of stdin, checked like posted rows.

Without a server, the command holds the writer lock and writes the log through the service's writer thread. With
``--url``, it posts to a running service.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec
import polars as pl

from recloop.client.batches import MAX_BATCH_BYTES, MAX_BATCH_EVENTS, NDJSON, STATUSES, batches
from recloop.config import Columns, Config, Limits
from recloop.data.guests import GUEST_REFUSED
from recloop.data.rejected_rows import GUEST_REASON
from recloop.errors import Locked, UserError
from recloop.features.labels import EventLabeler
from recloop.files import JsonTree
from recloop.ingest import parse
from recloop.ingest.body import Rejected, parse_rows
from recloop.ingest.client import Client, iso
from recloop.ingest.file_rows import read_arrivals
from recloop.ingest.writer import LogUnavailableError, LogUncertainError, Writer
from recloop.progress import Progress, printable
from recloop.project import Project
from recloop.recommend import loading
from recloop.records import DEFAULT_EVENT_TYPE, RECEIVED_AT, RULE, SEQ, Event, now
from recloop.storage import admin_token, locks

STDIN: Final = "-"
KEY_VARIABLE: Final = "RECLOOP_KEY"  # environment variable with the key for ``--url``
MAX_BATCH_ROWS: Final = 50_000  # rows per commit
MAX_CHUNK_BYTES: Final = 1 << 22  # most bytes of stdin per batch
BODY_SHARE: Final = 0.75  # of `serve.limits.body_bytes`
RETRIED_STATUSES: Final = (429, 503)
MAX_POST_ATTEMPTS: Final = 10  # attempts to post to an overloaded service, one per second
MAX_PRINTED_ROWS: Final = 100  # most printed lines about rows that were not stored


class RejectedRow(NamedTuple):
    """Rejected row: its position in the input, the reason and its text."""

    place: str
    reason: str
    raw: str


class Batch(NamedTuple):
    """Valid events and rejected rows; ``share`` is the progress (0 if unknown)."""

    events: list[Event]
    wrong: list[RejectedRow]
    share: float = 0.0


class Outcome(NamedTuple):
    """Status of an event, and the service's reason if there is one."""

    status: str
    reason: str | None = None


Sink = Callable[[list[Event]], Sequence[Outcome]]
"""Stores events durably and returns the outcome of each, in order."""


@dataclass
class IngestResult:
    """Row counts by status, with the keys of ``recloop ingest --json``.

    ``guests``: rejected rows without a user. ``seconds``: duration.
    """

    counts: Counter[str] = field(default_factory=Counter)
    guests: int = 0
    shown: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, int]:
        return {status: self.counts[status] for status in STATUSES}

    @property
    def whole(self) -> bool:
        """True if no row with a user was rejected or in conflict with an earlier row."""
        return self.counts["rejected"] == self.guests and not self.counts["conflict"]


def ingest(project: Project, file: str, url: str, teller: Progress) -> IngestResult:
    """Add the rows of a file or of stdin (``-``, JSON lines); report rejected ones.

    A file is read completely before the first row is stored, so an unreadable file leaves the log unchanged. Rows with
    an event_id can be sent again and count as duplicates.

    Args:
        url: Running service to post to, with the key in ``RECLOOP_KEY``; empty to write this folder's log.

    Raises:
        UserError: missing file or column, no live bundle, or no service at ``url``.
        Locked: a service or another writer uses this folder.
    """
    started = time.monotonic()
    result = IngestResult()
    with ExitStack() as stack:
        store = _service_sink(project, url, stack) if url else into_log(project, file, stack)
        for batch in _lines(project) if file == STDIN else _file(project, file):
            outcomes = store(batch.events) if batch.events else ()
            rejected = list(batch.wrong)
            for event, outcome in zip(batch.events, outcomes, strict=True):
                result.counts[outcome.status] += 1
                if outcome.status in {"rejected", "conflict"}:
                    reason = outcome.reason or "this event_id was received before with other content"
                    rejected.append(RejectedRow(f"event_id={event.event_id}", reason, _text(event)))
            result.counts["rejected"] += len(batch.wrong)
            result.guests += sum(row.reason in {GUEST_REASON, GUEST_REFUSED} for row in batch.wrong)
            _tell(teller, result, rejected)
            if batch.share:
                teller.bar("ingest", round(batch.share * 1000), 1000)
    if result.shown > MAX_PRINTED_ROWS:
        teller.say("ingest", f"... and {result.shown - MAX_PRINTED_ROWS:,} more rows that were not stored")
    result.seconds = time.monotonic() - started
    return result


def _tell(teller: Progress, result: IngestResult, rejected: Sequence[RejectedRow]) -> None:
    for row in rejected[: max(0, MAX_PRINTED_ROWS - result.shown)]:
        teller.say("ingest", printable(f"{row.place}: {row.reason}: {row.raw[:300]}"))
    result.shown += len(rejected)


# -- rows


def _file(project: Project, file: str) -> Iterator[Batch]:
    received_at = now()
    raw = read_arrivals(project.root, file, project.config.data, received_at)
    yield Batch([], [RejectedRow(row.place, row.reason, row.raw) for row in raw.rejects])
    rows = raw.frame.drop(RECEIVED_AT)
    for start in range(0, len(rows), MAX_BATCH_ROWS):
        batch_rows = rows[start : start + MAX_BATCH_ROWS]
        rows_with_arrival = batch_rows.with_columns(pl.lit(received_at).alias(RECEIVED_AT)).to_dicts()
        events = msgspec.convert(rows_with_arrival, list[Event])
        yield Batch(events, [], (start + len(batch_rows)) / len(rows))


def _lines(project: Project) -> Iterator[Batch]:
    """Read rows of stdin as they arrive and check them.

    Rows are named as for ``POST /v1/events`` or as in ``[data.columns]``.
    """
    line_count = 0
    remainder = b""
    at_end = False
    while not at_end:
        text, at_end = _read()
        *lines, remainder = (remainder + text + b"\n" * at_end).split(b"\n")
        numbered = [(number, line) for number, line in enumerate(lines, line_count + 1) if line.strip()]
        line_count += len(lines)
        for start in range(0, len(numbered), MAX_BATCH_ROWS):
            yield _checked_batch(numbered[start : start + MAX_BATCH_ROWS], project.config)


def _checked_batch(numbered: Sequence[tuple[int, bytes]], config: Config) -> Batch:
    """Check numbered lines like posted rows."""
    data, limits = config.data, config.serve.limits
    batch = Batch([], [])
    received_at = now()
    for start in range(0, len(numbered), limits.rows):
        lines = numbered[start : start + limits.rows]
        body = b"\n".join(line for _, line in lines)
        if _has_own_names(data.columns):
            checked = parse.parse_events(body, NDJSON, received_at, data, limits)
        else:
            rows = (_named(row, data.columns) for row in parse_rows(body, NDJSON, limits))
            checked = [parse.check_event(row, received_at, data, limits) for row in rows]
        for (number, line), event in zip(lines, checked, strict=True):
            if isinstance(event, Rejected):
                batch.wrong.append(
                    RejectedRow(f"stdin:{number}", event.reason, line.decode("utf-8", "replace").strip())
                )
            else:
                batch.events.append(event)
    return batch


def _read() -> tuple[bytes, bool]:
    """Read about `MAX_CHUNK_BYTES` bytes of stdin at most; True at the end of input.

    Blocks until at least one byte is available.
    """
    stdin = sys.stdin.fileno()
    content = b""
    while len(content) < MAX_CHUNK_BYTES:
        chunk = os.read(stdin, MAX_CHUNK_BYTES)
        if not chunk:
            return content, True
        content += chunk
        if not select.select([stdin], [], [], 0)[0]:
            break
    return content, False


def _has_own_names(columns: Columns) -> bool:
    """True if `_named` changes no row with recloop's names."""
    return (
        not columns.time_offset
        and all(column in {name, ""} for name, column in columns if name != "event_type")
        and (columns.event_type == "event_type")
    )


def _named(row: Any, columns: Columns) -> Any:
    """Rename a row's columns to recloop's; set the default type if it has none."""
    if not isinstance(row, dict):
        return row
    for name, column in columns:
        if column and name not in row and column in row:
            row[name] = row.pop(column)
    if (
        columns.time_offset
        and isinstance(clock := row.get("time_offset"), str)
        and isinstance(row.get("timestamp"), str)
    ):
        row["timestamp"] = f"{row['timestamp']} {clock}"
        del row["time_offset"]
    if not columns.event_type:
        row.setdefault("event_type", DEFAULT_EVENT_TYPE)
    return row


def _text(event: Event) -> str:
    return json.dumps(_row(event), ensure_ascii=False)


def _row(event: Event) -> JsonTree:
    """Format an event for posting; a defaulted timestamp is omitted."""
    row = {name: value for name, value in msgspec.structs.asdict(event).items() if value is not None}
    for name in (SEQ, RULE, RECEIVED_AT):
        row.pop(name, None)
    if event.timestamp == event.received_at:
        row.pop("timestamp")
    else:
        row["timestamp"] = iso(event.timestamp)
    if event.context is not None:
        row["context"] = json.loads(event.context)
    return row


# -- sinks


def into_log(project: Project, file: str, stack: ExitStack) -> Sink:
    """Open a sink that writes this folder's log through the service's writer."""
    try:
        stack.enter_context(locks.writer_lock(project.root, "ingest"))
    except Locked as error:
        serve = project.config.serve
        fix = f"recloop ingest {file} --url http://{serve.host}:{serve.port}"
        raise Locked(error.lock, error.holder, f"{fix} (posts to the running service)") from None
    loading.check_complete(project)
    spec = project.load_bundle().spec
    archive = project.open_archive()
    archive.load_ids()
    log = stack.enter_context(project.open_log(write=True))
    log.start_at(archive.watermark)
    writer = Writer(log, archive, EventLabeler.from_spec(spec), lambda *_: None)
    stack.callback(writer.close)
    runner = stack.enter_context(asyncio.Runner())

    def store(events: list[Event]) -> Sequence[Outcome]:
        try:
            job = runner.run(writer.write(events=events))
        except (LogUnavailableError, LogUncertainError):
            raise UserError(
                "stores.log", project.config.stores.log, "a writable disk with free space",
                f"free space, then run again: recloop ingest {file} (rows with an event_id count once)",
            ) from None  # fmt: skip
        return [Outcome(receipt.status) for receipt in job.receipts]

    return store


def into_service(url: str, stack: ExitStack, key: str, limits: Limits) -> Sink:
    """Open a sink that posts to a running service in bodies of allowed size.

    Args:
        limits: ``serve.limits`` of this project.
        key: API key or admin token; empty for none.
    """
    try:
        client = stack.enter_context(closing(Client(url.rstrip("/"), token=key)))
    except ValueError as error:
        raise UserError("--url", url, f"the address of a service ({error})", "recloop serve") from None

    max_bytes = min(MAX_BATCH_BYTES, BODY_SHARE * limits.body_bytes)

    def store(events: list[Event]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        for batch in batches(map(_row, events), min(limits.ndjson_rows, MAX_BATCH_EVENTS), max_bytes):
            response = call_service(client, "POST", "/v1/events", batch.body)
            outcomes += [Outcome(row["status"], row["reason"]) for row in response["rows"]]
        return outcomes

    return store


def _service_sink(project: Project, url: str, stack: ExitStack) -> Sink:
    return into_service(url, stack, _key(project, url), project.config.serve.limits)


def _key(project: Project, url: str) -> str:
    """Return ``RECLOOP_KEY``, or the admin token for the service of this folder."""
    own = url.rstrip("/") == locks.server_url(project.root)
    return os.environ.get(KEY_VARIABLE, "") or (admin_token.read(project.root) if own else "")


def call_service(client: Client, method: str, path: str, body: bytes, name: str = "--url") -> JsonTree:
    """Send rows to a service, again while it is overloaded; the body is JSON lines.

    Args:
        name: Setting or argument that names the service, for errors.

    Raises:
        UserError: the service cannot be reached, refuses the rows, or stays overloaded.
    """
    problem = ""
    for _ in range(MAX_POST_ATTEMPTS):
        try:
            return client.send(method, path, body, NDJSON)
        except urllib.error.HTTPError as error:
            problem = error.read().decode("utf-8", "replace")[:300]
            if error.code not in RETRIED_STATUSES:
                raise UserError(
                    name, client.url, f"a service that accepts rows ({error.code}: {problem})", "recloop serve"
                ) from None
        except (OSError, ValueError) as error:
            raise UserError(name, client.url, f"a running service ({error})", "recloop serve") from None
        time.sleep(1)
    expected = f"a service that is not overloaded, but {MAX_POST_ATTEMPTS} attempts were refused ({problem})"
    raise UserError(name, client.url, expected, "run the command again later")
