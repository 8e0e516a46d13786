"""Counting of committed answers by period, in the thread that writes decisions.

The counts of the rows up to ``counted.decision_id`` are stored in one transaction with that id. So a crash, a restart and
a migration go on from there, and each answer counts once.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from recloop.storage.decision_periods import (
    COLD_USERS,
    CONTENT,
    COVERED_USERS,
    HISTORY_RANGES,
    KEPT_PERIODS,
    MINUTES_PER_HOUR,
    UNITS,
    USERS,
    GroupCounts,
    Key,
    PeriodContent,
    history_range,
    is_cold,
    is_personal,
    latency_buckets,
    period_of,
)
from recloop.storage.sqlite import insert_rows, transaction

MAX_COUNTED_ROWS = 2_000
"""Most rows of one transaction."""
MAX_KNOWN_ITEMS: Final = 200_000
"""Most item codes that `AnswerCounter` keeps in memory."""


class _Answer(msgspec.Struct, array_like=True):
    served_at: int
    user_id: str
    bundle: str
    variant: str
    placement: str
    positives: int
    latency_us: int
    is_degraded: int
    items: list[str]
    sources: list[str]


ANSWERS = """
SELECT '[' || coalesce(group_concat(CASE role WHEN 'answer' THEN '[' || served_at || ',' || json_quote(user_id) || ','
    || json_quote(bundle) || ',' || json_quote(variant) || ',' || json_quote(placement) || ',' || positives || ','
    || latency_us || ',' || (degraded <> '[]') || ',' || items || ',' || sources || ']' END), '') || ']',
    coalesce(max(id), 0)
FROM (SELECT * FROM decisions WHERE id > ? ORDER BY id LIMIT ?)"""
"""One JSON text of many rows: one step of SQLite, without the interpreter lock."""
DECODER = msgspec.json.Decoder(list[_Answer])


@dataclass
class _Tally:
    """Answers of one minute and group, counted when all are read."""

    counts: GroupCounts = field(default_factory=GroupCounts)
    items: list[str] = field(default_factory=list)
    bundles: list[str] = field(default_factory=list)
    sources: list[list[str]] = field(default_factory=lambda: [[] for _ in range(len(HISTORY_RANGES) + 1)])
    latency: list[int] = field(default_factory=list)

    def content(self, codes: Mapping[str, int]) -> PeriodContent:
        """Return the counts.

        Args:
            codes: Code of each item.
        """
        counts = self.counts
        return PeriodContent(
            counts.answers, counts.empty, counts.degraded, Counter(self.bundles),
            [Counter(sources) for sources in self.sources], *_repeats(latency_buckets(self.latency)),
            *_repeats([codes[item] for item in self.items]),
        )  # fmt: skip


def _repeats(values: ArrayLike) -> tuple[bytes, bytes]:
    """Return the distinct values, ascending, and how often each occurs, as int32."""
    distinct, repeats = np.unique(np.asarray(values, dtype=np.int32), return_counts=True)
    return distinct.astype("<i4").tobytes(), repeats.astype("<i4").tobytes()


class AnswerCounter:
    """Counter of the answers of one store.

    It keeps the codes of items, which never change.
    """

    def __init__(self, writer: sqlite3.Connection) -> None:
        self._writer = writer
        self._codes: dict[str, int] = {}

    def count_all(self) -> None:
        """Count all answers, `MAX_COUNTED_ROWS` per transaction."""
        while self.count():
            pass

    def count(self) -> bool:
        """Count the next answers in one transaction; return False if none is left."""
        with transaction(self._writer):
            newest_id, codes = _count_next(self._writer, self._codes)
        if len(self._codes) > MAX_KNOWN_ITEMS:
            self._codes.clear()
        self._codes |= codes  # not before the commit: a rollback takes the codes of new items back
        return newest_id > 0


def _count_next(writer: sqlite3.Connection, known: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Count the next answers; return the last id (0 if none) and the items' codes.

    Args:
        known: Codes of earlier items.
    """
    (last,) = writer.execute("SELECT decision_id FROM counted").fetchone()
    text, newest_id = writer.execute(ANSWERS, (last, MAX_COUNTED_ROWS)).fetchone()
    if not newest_id:
        return 0, {}
    answers = DECODER.decode(text)
    _add_totals(writer, answers)
    newest = writer.execute("SELECT max(served_at) FROM decisions").fetchone()[0]
    oldest = {unit: period_of(newest, unit) - periods for unit, periods in KEPT_PERIODS.items()}
    recent = [answer for answer in answers if period_of(answer.served_at, MINUTES_PER_HOUR) > oldest[MINUTES_PER_HOUR]]
    tallies = _tallies(recent, oldest[1])
    codes = _item_codes(writer, {item for tally in tallies.values() for item in tally.items}, known)
    _add_periods(writer, tallies, codes, oldest)
    _add_users(writer, recent)
    for bounds in oldest.items():
        for table in ("periods", "users_by_period", "events_by_period"):
            writer.execute(f"DELETE FROM {table} WHERE unit = ? AND period <= ?", bounds)
    writer.execute("UPDATE counted SET decision_id = ?", (newest_id,))
    return newest_id, codes


def _tallies(answers: Iterable[_Answer], oldest_minute: int) -> dict[Key, _Tally]:
    """Tally answers by minute and group.

    Answers up to ``oldest_minute`` count in the first minute of their hour.
    """
    tallies: dict[Key, _Tally] = {}
    for answer in answers:
        minute = period_of(answer.served_at)
        if minute <= oldest_minute:  # only its hour is kept
            minute -= minute % MINUTES_PER_HOUR
        key = (minute, answer.variant, answer.placement)
        tally = tallies.get(key)
        if tally is None:
            tally = tallies[key] = _Tally()
        counts = tally.counts
        counts.answers += 1
        counts.empty += not answer.items
        counts.degraded += answer.is_degraded
        tally.bundles.append(answer.bundle)
        is_user = is_cold(answer.user_id, answer.positives)
        tally.sources[history_range(answer.positives) if is_user else len(HISTORY_RANGES)] += answer.sources
        tally.latency.append(answer.latency_us)
        tally.items += answer.items
    return tallies


def _add_totals(writer: sqlite3.Connection, answers: Iterable[_Answer]) -> None:
    totals = Counter((answer.variant, answer.placement) for answer in answers)
    insert_rows(
        writer,
        "INSERT INTO totals (variant, placement, answers)",
        [(*group, count) for group, count in totals.items()],
        "ON CONFLICT DO UPDATE SET answers = answers + excluded.answers",
    )


def _add_periods(
    writer: sqlite3.Connection, tallies: Mapping[Key, _Tally], codes: Mapping[str, int], oldest: Mapping[int, int]
) -> None:
    """Add the answers to the rows of their minutes and hours.

    Args:
        codes: Code of each item.
        oldest: Newest period by unit that is not kept.
    """
    changed: dict[tuple[int, int, str, str], GroupCounts] = {}
    for (minute, variant, placement), tally in tallies.items():
        content = tally.content(codes)
        for unit in UNITS:
            if minute // unit <= oldest[unit]:
                continue
            key = (unit, minute // unit, variant, placement)
            if key not in changed:
                changed[key] = _stored(writer, key)
            changed[key].add(content)
    encode = msgspec.msgpack.encode
    insert_rows(
        writer,
        "INSERT OR REPLACE INTO periods (unit, period, variant, placement, answers, content)",
        [(*key, counts.answers, encode(counts.content())) for key, counts in changed.items()],
    )


def _stored(writer: sqlite3.Connection, key: tuple[int, int, str, str]) -> GroupCounts:
    where = "unit = ? AND period = ? AND variant = ? AND placement = ?"
    row = writer.execute(f"SELECT content FROM periods WHERE {where}", key).fetchone()
    counts = GroupCounts()
    if row is not None:
        counts.add(CONTENT.decode(row[0]))
    return counts


def _item_codes(writer: sqlite3.Connection, items: Collection[str], known: Mapping[str, int]) -> dict[str, int]:
    """Return the codes of items; a new item gets the next code."""
    codes = {item: known[item] for item in items if item in known}
    if len(codes) < len(items):
        text = msgspec.json.encode([item for item in items if item not in codes]).decode()
        writer.execute("INSERT OR IGNORE INTO item_codes (item_id) SELECT value FROM json_each(?)", (text,))
        pairs = writer.execute(
            """SELECT '[' || coalesce(group_concat('[' || json_quote(item_id) || ',' || code || ']'), '') || ']'
            FROM json_each(?) JOIN item_codes ON item_id = value""",
            (text,),
        ).fetchone()[0]
        codes |= msgspec.json.decode(pairs, type=list[tuple[str, int]])
    return codes


MOVED_USERS = f"""
WITH moved AS (
    SELECT batch.variant, batch.placement, batch.kind, batch.minute AS newer, last_seen.minute AS older
    FROM batch_users AS batch LEFT JOIN last_seen USING (user_id, variant, placement, kind)
    WHERE last_seen.minute IS NULL OR last_seen.minute < batch.minute)
INSERT INTO users_by_period (unit, period, variant, placement, kind, users)
SELECT unit.column1, minute / unit.column1, variant, placement, kind, sum(change)
FROM (SELECT variant, placement, kind, newer AS minute, 1 AS change FROM moved
    UNION ALL SELECT variant, placement, kind, older, -1 FROM moved WHERE older IS NOT NULL),
    (VALUES {", ".join(f"({unit})" for unit in UNITS)}) AS unit
WHERE true GROUP BY 1, 2, 3, 4, 5
ON CONFLICT DO UPDATE SET users = users + excluded.users"""
"""Moves each user from the period of the previous answer to that of the newest one."""


def _add_users(writer: sqlite3.Connection, answers: Iterable[_Answer]) -> None:
    newest: dict[tuple[str, str, str, str], int] = {}
    for answer in answers:
        minute = period_of(answer.served_at)
        kinds = [USERS]
        if is_cold(answer.user_id, answer.positives):
            kinds += [COLD_USERS, COVERED_USERS] if is_personal(answer.sources) else [COLD_USERS]
        for kind in kinds:
            key = (answer.user_id, answer.variant, answer.placement, kind)
            newest[key] = max(minute, newest.get(key, minute))
    columns = "(user_id, variant, placement, kind, minute)"
    writer.execute(f"CREATE TEMP TABLE IF NOT EXISTS batch_users {columns}")
    writer.execute("DELETE FROM batch_users")
    insert_rows(writer, f"INSERT INTO batch_users {columns}", [(*key, minute) for key, minute in newest.items()])
    writer.execute(MOVED_USERS)
    writer.execute(
        f"""INSERT INTO last_seen {columns} SELECT user_id, variant, placement, kind, minute FROM batch_users WHERE true
        ON CONFLICT DO UPDATE SET minute = max(minute, excluded.minute)"""
    )


def forget_users(writer: sqlite3.Connection) -> None:
    """Delete users whose newest answer is in no window."""
    with transaction(writer):
        writer.execute(
            """DELETE FROM last_seen WHERE minute / ? NOT IN
            (SELECT period FROM users_by_period WHERE unit = ?)""",
            (MINUTES_PER_HOUR, MINUTES_PER_HOUR),
        )


def add_events(writer: sqlite3.Connection, received: Mapping[Key, int], after: int, until: int) -> None:
    """Add received events by (minute, variant, placement), unless they are counted.

    Args:
        received: Events with ``after`` < seq <= ``until``; without a known answer, variant and placement are empty.
    """
    rows: Counter[tuple[int, int, str, str]] = Counter()
    for (minute, *group), events in received.items():
        for unit in UNITS:
            rows[unit, minute // unit, group[0], group[1]] += events
    with transaction(writer):
        if writer.execute("SELECT event_seq FROM counted").fetchone()[0] != after:
            return  # another process has counted them
        insert_rows(
            writer,
            "INSERT INTO events_by_period (unit, period, variant, placement, events)",
            [(*key, events) for key, events in rows.items()],
            "ON CONFLICT DO UPDATE SET events = events + excluded.events",
        )
        writer.execute("UPDATE counted SET event_seq = ?", (until,))
