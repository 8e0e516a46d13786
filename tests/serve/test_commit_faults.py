"""Faults in the commit path: each request is answered as stored, and none waits forever."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import polars as pl
import pytest
from servers import inside

from recloop.config import Clean, Events
from recloop.features.labels import EventLabeler
from recloop.ingest import writer as writing
from recloop.ingest.arrival_rules import ArrivalRules
from recloop.ingest.writer import LogUnavailableError, LogUncertainError, Writer, WriteRequest
from recloop.project import Project
from recloop.records import EVENT_SCHEMA, RULE, Event, Item, User
from recloop.serve.app import create
from recloop.serve.service import Service
from recloop.storage import EventLog, Retraction, open_log
from recloop.storage.event_rows import EventColumns, number_new

URL = "sqlite:///store/log.db"
KEPT, NOT_KEPT, UNCERTAIN = "kept", "not kept", "uncertain"


class EmptyArchive:
    """An archive without rows."""

    def known(self, _: Any) -> dict[str, Event]:
        return {}

    def between(self, *_: Any) -> pl.DataFrame:
        return pl.DataFrame(schema={**EVENT_SCHEMA, RULE: pl.String})


class FaultyConnection:
    """A connection that calls ``fault`` before and after each statement."""

    def __init__(self, real: sqlite3.Connection, fault: Callable[[str, bool], None]) -> None:
        self._real, self._fault = real, fault

    def execute(self, text: str, *rest: Any) -> Any:
        self._fault(text, False)
        done = self._real.execute(text, *rest)
        self._fault(text, True)
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def rows_of(name: str) -> dict[str, Any]:
    """One row of each kind, without an id that would hide a second copy."""
    return {
        "events": [Event(user_id=name, item_id="i", timestamp=1, received_at=1)],
        "items": [Item(item_id=name)],
        "users": [User(user_id=name)],
        "retractions": [Retraction(zlib.crc32(name.encode()), "duplicates")],
    }


def write_answers(
    log: EventLog, after_commit: Callable[[list[WriteRequest], int, object], None], names: Sequence[str] = ("r0",)
) -> list[str]:
    """Write rows and return each answer; check that the writer still writes."""
    writer = Writer(log, EmptyArchive(), EventLabeler(Events(), Clean()), after_commit)  # type: ignore[arg-type]

    async def one(name: str) -> str:
        try:
            await asyncio.wait_for(writer.write(**rows_of(name)), 20)
        except LogUncertainError:
            return UNCERTAIN
        except TimeoutError:
            return "waits forever"
        except Exception:  # noqa: BLE001 - any other error means that nothing was stored
            return NOT_KEPT
        return KEPT

    async def whole() -> list[str]:
        answers = await asyncio.gather(*[one(name) for name in names])
        assert await one(f"after-{names[0]}") == KEPT
        return list(answers)

    try:
        return asyncio.run(whole())
    finally:
        writer.close()


def stored_copies(root: Path, name: str) -> int:
    """Number of stored copies of a request; a partial copy is an error."""
    connection = sqlite3.connect(root / "store" / "log.db")
    queries = ("SELECT count(*) FROM events WHERE user_id = ?", "SELECT count(*) FROM users WHERE user_id = ?")
    counts = {connection.execute(text, (name,)).fetchone()[0] for text in queries}
    counts.add(connection.execute("SELECT count(*) FROM items WHERE item_id = ?", (name,)).fetchone()[0])
    connection.close()
    assert len(counts) == 1, counts
    return int(counts.pop())


def is_consistent(answer: str, copies: int) -> bool:
    return copies == {KEPT: 1, NOT_KEPT: 0}.get(answer, copies) and copies <= 1 and answer != "waits forever"


def raising(text: str, after: bool, error: Exception, once: bool = True) -> Callable[[str, bool], None]:
    left = [1 if once else 1_000_000]

    def fault(statement: str, done: bool) -> None:
        if statement.startswith(text) and done is after and left[0] > 0:
            left[0] -= 1
            raise error

    return fault


DISK = sqlite3.OperationalError("disk I/O error")
STATEMENTS = [
    ("BEGIN", False, NOT_KEPT),
    ("SELECT seq FROM counter", False, NOT_KEPT),
    ("UPDATE counter", False, NOT_KEPT),
    ("UPDATE counter", True, NOT_KEPT),
    ("COMMIT", False, NOT_KEPT),
    ("COMMIT", True, KEPT),
]


@pytest.mark.parametrize("error", [DISK, RuntimeError("a bug")], ids=["disk", "bug"])
@pytest.mark.parametrize(("text", "after", "expected"), STATEMENTS)
def test_writer_after_a_failed_statement_answers_as_stored(
    tmp_path: Path, text: str, after: bool, expected: str, error: Exception
) -> None:
    log = open_log(URL, tmp_path, write=True)
    assert log._writer is not None
    log._writer = FaultyConnection(log._writer, raising(text, after, error))  # type: ignore[assignment]
    (answer,) = write_answers(log, lambda *_: None)
    log.close()
    assert (answer, stored_copies(tmp_path, "r0")) == (expected, int(expected == KEPT))


@pytest.mark.parametrize(("after", "copies"), [(False, 0), (True, 1)])
def test_writer_after_a_failed_commit_and_read_answers_uncertain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool, copies: int
) -> None:
    log = open_log(URL, tmp_path, write=True)
    assert log._writer is not None
    log._writer = FaultyConnection(log._writer, raising("COMMIT", after, DISK))  # type: ignore[assignment]

    def unreadable(_: EventLog) -> int:
        raise DISK

    monkeypatch.setattr(EventLog, "last_seq", unreadable)
    (answer,) = write_answers(log, lambda *_: None)
    log.close()
    assert (answer, stored_copies(tmp_path, "r0")) == (UNCERTAIN, copies)


def test_writer_after_a_failed_rollback_stores_the_next_request(tmp_path: Path) -> None:
    log = open_log(URL, tmp_path, write=True)
    assert log._writer is not None
    first, second = raising("UPDATE counter", False, DISK), raising("ROLLBACK", False, DISK)
    log._writer = FaultyConnection(log._writer, lambda *given: (first(*given), second(*given)))  # type: ignore[assignment, arg-type]
    assert write_answers(log, lambda *_: None) == [NOT_KEPT]
    log.close()
    assert (stored_copies(tmp_path, "r0"), stored_copies(tmp_path, "after-r0")) == (0, 1)


@pytest.mark.parametrize("error", [DISK, RuntimeError("a bug")], ids=["disk", "bug"])
def test_writer_with_a_failing_after_commit_acknowledges_the_group(tmp_path: Path, error: Exception) -> None:
    log, left = open_log(URL, tmp_path, write=True), [1]

    def after_commit(*_: Any) -> None:
        if left.pop() if left else 0:
            raise error

    assert write_answers(log, after_commit, names=("r0", "r1", "r2")) == [KEPT] * 3
    log.close()
    assert [stored_copies(tmp_path, f"r{n}") for n in range(3)] == [1, 1, 1]


def test_writer_passes_the_labelled_valid_rows_of_each_commit(tmp_path: Path) -> None:
    log = open_log(URL, tmp_path, write=True)
    results: list[object] = []

    def label(rows: EventColumns) -> object:
        if "after-r0" in rows["user_id"]:
            raise RuntimeError("a bug")
        return list(zip(rows["seq"], rows["user_id"], strict=True))

    labeler = EventLabeler(Events(), Clean())
    writer = Writer(log, EmptyArchive(), labeler, lambda *given: results.append(given[1:]), label)  # type: ignore[arg-type]
    wrong_clock = Event(user_id="r0", item_id="i", timestamp=-1, received_at=1)

    async def whole() -> None:
        await writer.write(events=[*rows_of("r0")["events"], wrong_clock])
        for _ in range(2):
            await writer.write(events=[Event(user_id="r1", item_id="i", timestamp=1, received_at=1, event_id="e")])
        await writer.write(items=[Item(item_id="i")])
        await writer.write(events=rows_of("after-r0")["events"])

    asyncio.run(whole())
    writer.close()
    assert results == [(2, [(1, "r0")]), (3, [(3, "r1")]), (3, []), (4, None), (5, None)]
    assert log.last_seq() == 5
    log.close()


# -- a fault at each line

PATH: tuple[Callable[..., Any], ...] = (
    Writer._commit, Writer._append, EventLog.append_items, EventLog.append_users, EventLog.append_retractions, Writer._append_events,
    EventLog.find_duplicates, EventLog.insert_events, EventLog._append, EventLog.newest_in, EventLog._counter,
    EventLog._set_counter, Writer.causal_rules, ArrivalRules.judge, ArrivalRules._in_burst, number_new,
    EventColumns.of_rows,
    Writer._labelled, Writer._deliver,
)  # fmt: skip
CODES = {one.__code__ for one in PATH}
"""Code of the writer's thread up to the delivery; STATEMENTS covers BEGIN, COMMIT and ROLLBACK (a trace function that
raises where a ``with`` ends would keep its lock, which a fault of the code does not do)."""


class AtLine:
    """Trace function that raises at the n-th line of the commit path."""

    def __init__(self, at: int, error: Exception) -> None:
        self._at, self._error = at, error
        self.lines = 0
        self.where = ""

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code not in CODES:
            return None
        if event == "line":
            if self.lines == self._at:
                self.lines += 1
                self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                raise self._error
            self.lines += 1
        return self


@pytest.fixture
def traced() -> Iterator[None]:
    before = threading.gettrace()
    yield
    threading.settrace(before)  # type: ignore[arg-type]


@pytest.mark.usefixtures("traced")
def test_writer_with_a_fault_at_any_line_answers_as_stored(tmp_path: Path) -> None:
    log = open_log(URL, tmp_path, write=True)
    log._writer.execute("PRAGMA synchronous = OFF")  # type: ignore[union-attr]
    outside = ("Writer._commit", "Writer._labelled", "Writer._deliver")  # where a fault may leave the log unreadable

    def attempt(at: int) -> AtLine:
        tracer, name = AtLine(at, DISK if at % 2 else RuntimeError("a bug")), f"line-{at}"
        threading.settrace(tracer)
        try:
            (answer,) = write_answers(log, lambda *_: None, [name])
        finally:
            threading.settrace(None)  # type: ignore[arg-type]
        assert is_consistent(answer, stored_copies(tmp_path, name)), (
            answer,
            stored_copies(tmp_path, name),
            tracer.where,
        )
        assert answer != UNCERTAIN or tracer.where.startswith(outside), tracer.where
        return tracer

    lines = attempt(-1).lines // 2  # the write and the one after it
    assert lines > 80
    reached = [attempt(at).where for at in range(lines)]
    log.close()
    assert any(where.startswith("Writer._deliver") for where in reached)


def test_service_with_a_failing_state_update_is_degraded_until_it_follows(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = create(project, clock=lambda: 1_800_000_000_000_000)

    async def work(client: Any, service: Service) -> None:
        await client.get("/v1/recommend/u14")
        registry = type(service.user_states)
        apply = registry.apply
        monkeypatch.setattr(registry, "apply", lambda *_: 1 / 0)
        bought = {"user_id": "u14", "item_id": "i01", "event_type": "purchase", "event_id": "e"}
        before = service.user_state("u14").positives
        answer = await client.post("/v1/events", json=bought)
        assert (answer.status_code, answer.json()["accepted"]) == (200, 1)
        item = {"item_id": "unsettled", "attributes": {"category": "tea"}}
        assert (await client.post("/v1/items", json=item)).status_code == 200
        assert service.degraded == ["log"]
        monkeypatch.setattr(registry, "apply", apply)
        await service.reload()
        assert service.degraded == []
        assert service.user_state("u14").positives == before + 1
        assert service.catalog.get("unsettled") is not None
        assert service.as_of == service.log.last_seq()

    inside(app, work)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LogUnavailableError(), "log_unavailable"),
        (LogUncertainError(), "log_uncertain"),
        (OSError(errno.EMFILE, "Too many open files"), "busy"),
    ],
)
def test_post_events_with_a_log_error_answers_503_and_its_code(
    project: Project, monkeypatch: pytest.MonkeyPatch, error: Exception, code: str
) -> None:
    async def failing(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(writing.Writer, "write", failing)

    async def work(client: Any, _: Any) -> None:
        answer = await client.post("/v1/events", json={"user_id": "u", "item_id": "i", "event_type": "purchase"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
        assert ("this request was not stored" in answer.text) is (code == "log_unavailable")

    inside(create(project), work)
