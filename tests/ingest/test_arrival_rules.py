"""Causal rules on arrival: equal to those of the whole log, and reading only near rows."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recloop.config import Burst, Clean, Events
from recloop.features.labels import EventLabeler
from recloop.ingest import arrival_rules
from recloop.ingest.arrival_rules import ArrivalRules
from recloop.records import SECOND, SEQ, Event
from recloop.storage import EventLog, open_log
from recloop.storage.event_rows import RULED_SCHEMA, EventColumns

CLEAN = Clean(burst=Burst(events=3), keep="quantity IS NULL OR quantity <> 0", exclude_items=("post",))
LABELER = EventLabeler(Events(weights={"sale": 5.0, "click": 1.0}), CLEAN)
NOW = 1_795_010_112 * SECOND
EVENTS = st.builds(
    Event,
    user_id=st.sampled_from("uv"),
    item_id=st.sampled_from(["i", "post"]),
    timestamp=st.one_of(
        st.integers(NOW, NOW + 4 * SECOND), st.sampled_from([NOW, NOW + SECOND, -5, NOW + 900 * SECOND])
    ),
    received_at=st.just(NOW),
    event_type=st.sampled_from(["click", "click", "sale"]),
    quantity=st.sampled_from([None, 0.0, 1.0]),
    group_id=st.sampled_from([None, None, "g"]),
)


class Archived:
    """Archive of the first rows."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame

    def between(self, users: Sequence[str], after: int, until: int) -> pl.DataFrame:
        in_window = (pl.col("timestamp") > after) & (pl.col("timestamp") <= until)
        return self.frame.filter(pl.col("user_id").is_in(list(users)) & in_window).select(*RULED_SCHEMA)


def commit(log: EventLog, rules: ArrivalRules, events: Sequence[Event], archive: Archived) -> list[str | None]:
    with log.commit():
        arrivals = log.find_duplicates(events, {})
        judged: list[str | None] = rules.judge(EventColumns.of_rows(arrivals.rows), archive)
        log.insert_events(arrivals.rows, judged)
    return judged


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with open_log("sqlite:///log.db", tmp_path, write=True) as log:
        log._writer.execute("PRAGMA synchronous = OFF")  # type: ignore[union-attr]
        yield log


def test_rules_on_arrival_equal_those_of_the_whole_log(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival_rules, "MAX_HOT_ACTS", 4)

    @given(st.lists(EVENTS, min_size=1, max_size=24), st.integers(1, 6), st.sampled_from([1, 3, 256]))
    @settings(max_examples=25)
    def check(events: list[Event], size: int, hot_rows: int) -> None:
        monkeypatch.setattr(arrival_rules, "HOT_ROWS", hot_rows)
        log._writer.execute("DELETE FROM events")  # type: ignore[union-attr]
        rules = ArrivalRules(LABELER, log)
        arrived: list[str | None] = []
        archive = Archived(log.events())
        for start in range(0, len(events), size):
            arrived += commit(log, rules, events[start : start + size], archive)
            if start == size:  # an update archives the first rows; the log keeps some of them
                archive = Archived(log.events())
                log.delete_events(archive.frame["seq"].to_list()[:size])
        whole = pl.DataFrame(
            [[seq, *row[1:]] for seq, row in enumerate(_rows(events), 1)], schema=archive.frame.schema, orient="row"
        ).drop("rule")
        assert arrived == LABELER.causal_rule(whole).to_list()

    check()


def _rows(events: Sequence[Event]) -> list[tuple[object, ...]]:
    return [tuple(getattr(event, name) for name in RULED_SCHEMA) for event in events]


def test_rules_of_a_crawler_read_its_rows_once(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """A night's rows under one id at one stamp, and a crawler with a row per millisecond."""
    monkeypatch.setattr(arrival_rules, "HOT_ROWS", 50)
    read = 0
    recent = EventLog.recent

    def counted(self: EventLog, windows: Sequence[object]) -> pl.DataFrame:
        nonlocal read
        rows = recent(self, windows)  # type: ignore[arg-type]
        read += len(rows)
        return rows

    monkeypatch.setattr(EventLog, "recent", counted)
    rules = ArrivalRules(LABELER, log)
    archive = Archived(pl.DataFrame(schema=RULED_SCHEMA))
    for start in range(0, 400, 20):
        night = [Event(user_id="shop", item_id=f"i{n}", timestamp=NOW, received_at=NOW) for n in range(20)]
        stamps = range(NOW + start * 1_000, NOW + (start + 20) * 1_000, 1_000)
        crawler = [Event(user_id="bot", item_id="i", timestamp=stamp, received_at=NOW) for stamp in stamps]
        judged = commit(log, rules, [*night, *crawler], archive)
        assert judged[:20] == [None] * 20
        assert set(judged[22:]) == {"burst"}
    assert read < 300


def test_rules_read_only_windows_near_the_rows(log: EventLog) -> None:
    log.append_events([Event(user_id="u", item_id="i", timestamp=NOW + n * SECOND) for n in range(100)])
    rules = ArrivalRules(LABELER, log)
    events = [Event(user_id="u", item_id="i", timestamp=NOW + n * SECOND + 1, received_at=NOW) for n in (5, 90)]
    windows = rules._windows(
        EventColumns.of_rows([(n, *_rows([event])[0][1:-1]) for n, event in enumerate(events)]),
        np.zeros(2, dtype=bool),
        SECOND,
    )
    assert log.recent(windows)[SEQ].to_list() == [6, 91]
    plan = log._writer.execute(  # type: ignore[union-attr]
        "EXPLAIN QUERY PLAN SELECT * FROM events WHERE user_id = 'u' AND timestamp > 1 AND timestamp <= 2"
    ).fetchall()
    assert "USING INDEX events_user_time (user_id=? AND timestamp>? AND timestamp<?)" in plan[0][3]
    by_seq = log._writer.execute(  # type: ignore[union-attr]
        "EXPLAIN QUERY PLAN SELECT * FROM events WHERE seq > 1 AND seq <= 9 AND user_id = 'u' ORDER BY seq LIMIT 9"
    ).fetchall()
    assert "USING INDEX events_user_time (user_id=?)" in by_seq[0][3]


@pytest.mark.parametrize("keep", ["quantity <> 0", "value >= 2 OR quantity IS NULL", "item_id <> 'a'", "1 = 0", ""])
def test_rules_with_a_remembered_keep_equal_the_labeler(log: EventLog, keep: str) -> None:
    labeler = EventLabeler(Events(), Clean(keep=keep, exclude_items=("post",)))
    rules = ArrivalRules(labeler, log)
    draw = random.Random(keep)
    archive = Archived(pl.DataFrame(schema=RULED_SCHEMA))
    for _ in range(20):
        events = [
            Event(
                user_id=f"u{draw.random()}", item_id=draw.choice(["a", "a", "b", "post"]), timestamp=NOW, received_at=NOW,
                value=draw.choice([None, 1.0, 2.0]), quantity=draw.choice([None, 0.0, 1.0]),
            )
            for _ in range(draw.randint(1, 3))
        ]  # fmt: skip
        rows = EventColumns.of_rows([(n, *_rows([event])[0][1:-1]) for n, event in enumerate(events)])
        assert rules.judge(rows, archive) == labeler.causal_rule(rows.frame).to_list()
