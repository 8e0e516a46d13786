"""Counts of the decision log by period, which status reads instead of rows.

    count_answers(writer)                     # counts the answers after counted.decision_id, in one transaction
    window = read_window(reader, WINDOWS["day"], end)     # {(variant, placement): GroupCounts}

Period p of ``unit`` minutes holds the times (p * unit, (p + 1) * unit] in minutes since 1970. Hours serve the windows day
and week, minutes the window hour. The counts of the rows up to ``counted.decision_id`` are stored in one transaction
with that id. So a crash, a restart and a migration go on from there, and each answer counts once.

A user counts in the period of the user's newest answer. The sum over the periods of a window is then the number of
distinct users, if the window ends at the newest answer.
"""

from __future__ import annotations

import math
import sqlite3
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from recloop.records import COLD_POSITIVES, COVERING, SECOND, is_guest
from recloop.storage.sqlite import insert_rows, transaction

MINUTE: Final = 60 * SECOND
MINUTES_PER_HOUR: Final = 60
UNITS: Final = (1, MINUTES_PER_HOUR)
"""Lengths of the periods in minutes."""
KEPT_PERIODS: Final = {1: 3 * 60, MINUTES_PER_HOUR: 8 * 24}
"""Periods kept by unit, up to the newest answer; longer than each window."""
MAX_COUNTED_ROWS: Final = 2_000
"""Most rows of one transaction."""
LATENCY_STEP: Final = 1.05
"""Ratio of the ends of a latency bucket; a quantile is within 2.5 % of the exact one."""
LATENCY_EDGES: Final = [LATENCY_STEP**bucket for bucket in range(500)]
"""Start of each latency bucket in microseconds; the last is 10 hours."""
HISTORY_RANGES: Final = {"0": (0, 0), "1-2": (1, 2), "3-4": (3, 4)}
"""Ranges of valid positives at the request, for the sources of cold users."""
USERS, COLD_USERS, COVERED_USERS = "users", "cold_users", "covered_users"
"""Kinds of distinct users: all, cold ones, and cold ones with a personal list."""

Group = tuple[str, str]
"""Variant and placement."""
Key = tuple[int, str, str]
"""Period, variant and placement."""


@dataclass(frozen=True)
class Window:
    """Length of a window in periods.

    It ends at the newest period and begins at a whole period. So it is longer than its name by less than one period.
    """

    unit: int
    periods: int

    def first(self, end: int) -> int:
        """First period of the window that ends at ``end``, int64 microseconds."""
        return end // (self.unit * MINUTE) - self.periods

    def start(self, end: int) -> int:
        """Excluded start of the window, int64 microseconds."""
        return self.first(end) * self.unit * MINUTE


WINDOWS: Final = {
    "hour": Window(1, 60),
    "day": Window(MINUTES_PER_HOUR, 24),
    "week": Window(MINUTES_PER_HOUR, 7 * 24),
}


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


class PeriodContent(msgspec.Struct):
    """Counts of one period, variant and placement.

    Attributes:
        empty: Answers without a slot.
        degraded: Answers that name a missing part.
        bundles: Answers by bundle, in the order of their first answer.
        sources: Slots by source, for each of `HISTORY_RANGES` and for longer histories.
        latency: Answers by latency bucket.
        codes, slots: Little-endian int32: codes of the shown items, ascending, and their slots.
    """

    answers: int = 0
    empty: int = 0
    degraded: int = 0
    bundles: dict[str, int] = {}
    sources: list[dict[str, int]] = []
    latency: dict[int, int] = {}
    codes: bytes = b""
    slots: bytes = b""


@dataclass
class GroupCounts:
    """Counts of one variant and placement in a window; see `PeriodContent`.

    Attributes:
        slots: (codes,) slots by item code.
        users: Distinct users by kind.
    """

    answers: int = 0
    empty: int = 0
    degraded: int = 0
    bundles: Counter[str] = field(default_factory=Counter)
    sources: list[Counter[str]] = field(default_factory=lambda: [Counter() for _ in range(len(HISTORY_RANGES) + 1)])
    latency: Counter[int] = field(default_factory=Counter)
    slots: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    users: Counter[str] = field(default_factory=Counter)

    def add(self, content: PeriodContent) -> None:
        """Add the counts of a period."""
        self.answers += content.answers
        self.empty += content.empty
        self.degraded += content.degraded
        self.bundles.update(content.bundles)
        for total, sources in zip(self.sources, content.sources, strict=False):
            total.update(sources)
        self.latency.update(content.latency)
        codes = np.frombuffer(content.codes, dtype="<i4")
        if len(codes) and codes[-1] >= len(self.slots):
            self.slots = np.concatenate([self.slots, np.zeros(int(codes[-1]) + 1 - len(self.slots), dtype=np.int64)])
        self.slots[codes] += np.frombuffer(content.slots, dtype="<i4")

    def content(self) -> PeriodContent:
        """Format for the store."""
        codes = np.flatnonzero(self.slots).astype("<i4")
        return PeriodContent(
            self.answers, self.empty, self.degraded, dict(self.bundles), [dict(sources) for sources in self.sources],
            dict(self.latency), codes.tobytes(), self.slots[codes].astype("<i4").tobytes(),
        )  # fmt: skip


def period_of(stamp: int, unit: int = 1) -> int:
    """Return the period of a time, int64 microseconds; its end belongs to it."""
    return (stamp - 1) // (unit * MINUTE)


def history_range(positives: int) -> int:
    """Return the position in `HISTORY_RANGES`, or their number for a longer history."""
    return 0 if positives <= 0 else min((positives + 1) // 2, len(HISTORY_RANGES))


def is_personal(sources: Sequence[str]) -> bool:
    """Return True if at least half of the slots have a source of `records.COVERING`."""
    return bool(sources) and 2 * sum(source in COVERING for source in sources) >= len(sources)


def is_cold(user_id: str, positives: int) -> bool:
    """Return True for a user, not a guest, with fewer than 5 valid positives."""
    return positives < COLD_POSITIVES and bool(user_id) and not is_guest(user_id)


def latency_bucket(latency_us: float) -> int:
    """Return the bucket of a latency in microseconds; bucket b begins at 1.05^b."""
    return bisect_right(LATENCY_EDGES, max(latency_us, 1.0)) - 1


def latency_quantile(buckets: Mapping[int, int], share: float) -> float:
    """Return the middle of the bucket of the nearest rank in us; NaN if empty."""
    rank = math.ceil(share * sum(buckets.values()))
    for bucket in sorted(buckets):
        rank -= buckets[bucket]
        if rank <= 0:
            return LATENCY_EDGES[bucket] * math.sqrt(LATENCY_STEP)
    return math.nan


# ---- counting -------------------------------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Answers of one minute and group, counted when all are read."""

    counts: GroupCounts = field(default_factory=GroupCounts)
    items: list[str] = field(default_factory=list)


def count_answers(writer: sqlite3.Connection, limit: int = MAX_COUNTED_ROWS) -> bool:
    """Count the next answers in one transaction; return False if none is left."""
    with transaction(writer):
        (last,) = writer.execute("SELECT decision_id FROM counted").fetchone()
        text, newest_id = writer.execute(ANSWERS, (last, limit)).fetchone()
        if not newest_id:
            return False
        answers = DECODER.decode(text)
        _add_totals(writer, answers)
        newest = writer.execute("SELECT max(served_at) FROM decisions").fetchone()[0]
        recent = [
            answer
            for answer in answers
            if period_of(answer.served_at, MINUTES_PER_HOUR)
            > period_of(newest, MINUTES_PER_HOUR) - KEPT_PERIODS[MINUTES_PER_HOUR]
        ]
        _add_periods(writer, _tallies(recent))
        _add_users(writer, recent)
        for unit, periods in KEPT_PERIODS.items():
            oldest = (unit, period_of(newest, unit) - periods)
            for table in ("periods", "users_by_period", "events_by_period"):
                writer.execute(f"DELETE FROM {table} WHERE unit = ? AND period <= ?", oldest)
        writer.execute("UPDATE counted SET decision_id = ?", (newest_id,))
    return True


def _tallies(answers: Iterable[_Answer]) -> dict[Key, _Tally]:
    tallies: dict[Key, _Tally] = {}
    for answer in answers:
        key = (period_of(answer.served_at), answer.variant, answer.placement)
        tally = tallies.get(key)
        if tally is None:
            tally = tallies[key] = _Tally()
        counts = tally.counts
        counts.answers += 1
        counts.empty += not answer.items
        counts.degraded += answer.is_degraded
        counts.bundles[answer.bundle] += 1
        is_user = is_cold(answer.user_id, answer.positives)
        position = history_range(answer.positives) if is_user else len(HISTORY_RANGES)
        sources = counts.sources[position]
        for source in answer.sources:
            sources[source] += 1
        counts.latency[latency_bucket(answer.latency_us)] += 1
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


def _add_periods(writer: sqlite3.Connection, tallies: Mapping[Key, _Tally]) -> None:
    """Add the answers to the rows of their minutes and hours."""
    codes = _item_codes(writer, {item for tally in tallies.values() for item in tally.items})
    changed: dict[tuple[int, int, str, str], GroupCounts] = {}
    for (minute, variant, placement), tally in tallies.items():
        numbers = np.array([codes[item] for item in tally.items], dtype=np.int64)
        tally.counts.slots = np.bincount(numbers) if len(numbers) else tally.counts.slots
        content = tally.counts.content()
        for unit in UNITS:
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


CONTENT = msgspec.msgpack.Decoder(PeriodContent)


def _item_codes(writer: sqlite3.Connection, items: Iterable[str]) -> dict[str, int]:
    """Return the codes of items; a new item gets the next code."""
    text = msgspec.json.encode(list(items)).decode()
    writer.execute("INSERT OR IGNORE INTO item_codes (item_id) SELECT value FROM json_each(?)", (text,))
    pairs = writer.execute(
        """SELECT '[' || coalesce(group_concat('[' || json_quote(item_id) || ',' || code || ']'), '') || ']'
        FROM json_each(?) JOIN item_codes ON item_id = value""",
        (text,),
    ).fetchone()[0]
    return dict(msgspec.json.decode(pairs, type=list[tuple[str, int]]))


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


# ---- reading --------------------------------------------------------------------------------------------------------


def read_window(reader: sqlite3.Connection, window: Window, end: int) -> dict[Group, GroupCounts]:
    """Sum the counted answers of a window by group.

    Args:
        end: End of the window, int64 microseconds; users are right if no answer is newer.
    """
    bounds = (window.unit, window.first(end), period_of(end, window.unit))
    where = "WHERE unit = ? AND period >= ? AND period <= ?"
    groups: dict[Group, GroupCounts] = {}
    rows = reader.execute(f"SELECT variant, placement, content FROM periods {where} ORDER BY period", bounds)
    for variant, placement, content in rows:
        groups.setdefault((variant, placement), GroupCounts()).add(CONTENT.decode(content))
    rows = reader.execute(
        f"SELECT variant, placement, kind, sum(users) FROM users_by_period {where} GROUP BY 1, 2, 3", bounds
    )
    for variant, placement, kind, users in rows:
        if (variant, placement) in groups:
            groups[variant, placement].users[kind] = int(users)
    return groups


def read_events(reader: sqlite3.Connection, window: Window, end: int) -> dict[Group, int]:
    """Sum the events received in a window by group of the answer that they name."""
    bounds = (window.unit, window.first(end), period_of(end, window.unit))
    rows = reader.execute(
        """SELECT variant, placement, sum(events) FROM events_by_period
        WHERE unit = ? AND period >= ? AND period <= ? GROUP BY 1, 2""",
        bounds,
    )
    return {(variant, placement): int(events) for variant, placement, events in rows}


def answers_since(reader: sqlite3.Connection, stamp: int) -> int:
    """Count the answers from the hour of a time on, with those not counted yet."""
    counted = reader.execute(
        "SELECT coalesce(sum(answers), 0) FROM periods WHERE unit = ? AND period >= ?",
        (MINUTES_PER_HOUR, period_of(stamp, MINUTES_PER_HOUR)),
    ).fetchone()[0]
    pending = reader.execute(
        """SELECT count(*) FROM decisions
        WHERE id > (SELECT decision_id FROM counted) AND role = 'answer' AND served_at >= ?""",
        (stamp,),
    ).fetchone()[0]
    return int(counted) + int(pending)
