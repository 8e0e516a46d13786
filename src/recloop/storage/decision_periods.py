"""Counts of the decision log by period, which status reads instead of rows.

    WindowReader(WINDOWS["day"]).read(reader, end)    # {(variant, placement): GroupCounts}

Period p of ``unit`` minutes holds the times (p * unit, (p + 1) * unit] in minutes since 1970. Hours serve the windows day
and week, minutes the window hour. `recloop.storage.decision_counts` writes them.

A user counts in the period of the user's newest answer. The sum over the periods of a window is then the number of
distinct users, if the window ends at the newest answer.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from recloop.records import COLD_POSITIVES, IMPERSONAL, SECOND, is_guest

MINUTE: Final = 60 * SECOND
MINUTES_PER_HOUR: Final = 60
UNITS: Final = (1, MINUTES_PER_HOUR)
"""Lengths of the periods in minutes."""
KEPT_PERIODS: Final = {1: 3 * 60, MINUTES_PER_HOUR: 8 * 24}
"""Periods kept by unit, up to the newest answer; longer than each window."""
N_OPEN_PERIODS: Final = 2
"""Newest periods of a window that still change."""
LATENCY_STEP: Final = 1.05
"""Ratio of the ends of a latency bucket; a quantile is within 2.5 % of the exact one."""
LATENCY_EDGES: Final = [LATENCY_STEP**bucket for bucket in range(500)]
"""Start of each latency bucket in microseconds; the last is 10 hours."""
N_TABLED_COUNTS: Final = 4_096
"""Numbers of slots, from 0, for which `GroupCounts` keeps the number of items."""
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


class PeriodContent(msgspec.Struct):
    """Counts of one period, variant and placement.

    Attributes:
        empty: Answers without a slot.
        degraded: Answers that name a missing part.
        bundles: Answers by bundle, in the order of their first answer.
        sources: Slots by source, for each of `HISTORY_RANGES` and for longer histories.
        buckets, latency: Little-endian int32: latency buckets, ascending, and their answers.
        codes, slots: Likewise: codes of the shown items and their slots.
    """

    answers: int = 0
    empty: int = 0
    degraded: int = 0
    bundles: dict[str, int] = {}
    sources: list[dict[str, int]] = []
    buckets: bytes = b""
    latency: bytes = b""
    codes: bytes = b""
    slots: bytes = b""


@dataclass
class GroupCounts:
    """Counts of one variant and placement in a window; see `PeriodContent`.

    Attributes:
        latency: (buckets,) answers by latency bucket.
        slots: (n,) slots by item code; those of new codes grow in steps. n_codes: Codes up to the largest shown one.
        items: (N_TABLED_COUNTS + 1,) items by number of slots, from 1; the last entry is for all higher numbers.
        users: Distinct users by kind.
    """

    answers: int = 0
    empty: int = 0
    degraded: int = 0
    bundles: dict[str, int] = field(default_factory=dict)
    sources: list[dict[str, int]] = field(default_factory=lambda: [{} for _ in range(len(HISTORY_RANGES) + 1)])
    latency: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(LATENCY_EDGES), dtype=np.int64))
    slots: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, dtype=np.int32))
    items: NDArray[np.int64] = field(default_factory=lambda: np.zeros(N_TABLED_COUNTS + 1, dtype=np.int64))
    users: dict[str, int] = field(default_factory=dict)
    n_codes: int = 0

    def add(self, content: PeriodContent, sign: int = 1) -> None:
        """Add the counts of a period, or with ``sign`` -1 subtract them."""
        self._add_answers(content, sign)
        codes = np.frombuffer(content.codes, "<i4")
        self._add_slots(codes, sign * np.frombuffer(content.slots, "<i4"))

    def replace(self, earlier: PeriodContent, content: PeriodContent) -> None:
        """Add the counts of a period in place of earlier ones.

        Only items whose slots differ cost time.
        """
        self._add_answers(earlier, -1)
        self._add_answers(content, 1)
        codes, earlier_codes = np.frombuffer(content.codes, "<i4"), np.frombuffer(earlier.codes, "<i4")
        n_codes = max((int(some[-1]) for some in (codes, earlier_codes) if len(some)), default=-1) + 1
        added = np.zeros(n_codes, dtype=np.int32)
        added[codes] = np.frombuffer(content.slots, "<i4")
        added[earlier_codes] -= np.frombuffer(earlier.slots, "<i4")
        changed = np.flatnonzero(added != 0)  # a search of bool is several times as fast
        self._add_slots(changed, added[changed])

    def _add_answers(self, content: PeriodContent, sign: int) -> None:
        self.answers += sign * content.answers
        self.empty += sign * content.empty
        self.degraded += sign * content.degraded
        _add(self.bundles, content.bundles, sign)
        for total, sources in zip(self.sources, content.sources, strict=False):
            _add(total, sources, sign)
        self.latency[np.frombuffer(content.buckets, "<i4")] += sign * np.frombuffer(content.latency, "<i4")

    def _add_slots(self, codes: NDArray[np.integer[Any]], slots: NDArray[np.int32]) -> None:
        """Add slots to items of distinct ascending codes."""
        if not len(codes):
            return
        if codes[-1] >= len(self.slots):
            self.slots = np.concatenate([self.slots, np.zeros(int(codes[-1]) + 1, dtype=np.int32)])
        self.n_codes = max(self.n_codes, int(codes[-1]) + 1)
        before = self.slots[codes]
        after = before + slots
        self.slots[codes] = after
        self.items += _items_by_count(after) - _items_by_count(before)
        self.items[0] = 0

    def count_repeats(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the distinct numbers of slots above 0 and the items with each.

        It equals `recloop.evaluation.metrics.count_repeats` of ``slots`` and takes no time per item.
        """
        distinct = np.flatnonzero(self.items[:-1] != 0)
        repeats = self.items[distinct]
        if self.items[-1]:
            codes = np.flatnonzero(self.slots[: self.n_codes] >= N_TABLED_COUNTS)
            high, n_items = np.unique(self.slots[codes], return_counts=True)
            distinct, repeats = np.concatenate([distinct, high]), np.concatenate([repeats, n_items])
        return distinct, repeats

    def content(self) -> PeriodContent:
        """Format for the store."""
        return PeriodContent(
            self.answers, self.empty, self.degraded, self.bundles, self.sources, *_sparse(self.latency),
            *_sparse(self.slots),
        )  # fmt: skip


def _add(total: dict[str, int], counts: Mapping[str, int], sign: int) -> None:
    for name, count in counts.items():
        total[name] = total.get(name, 0) + sign * count
        if sign < 0 and not total[name]:
            del total[name]


def _items_by_count(slots: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the items by number of slots; see `GroupCounts.items`."""
    return np.bincount(np.minimum(slots, N_TABLED_COUNTS), minlength=N_TABLED_COUNTS + 1)


def _sparse(counts: NDArray[np.integer[Any]]) -> tuple[bytes, bytes]:
    """Return the positions of the numbers above 0, and these numbers, as int32."""
    positions = np.flatnonzero(counts)
    return positions.astype("<i4").tobytes(), counts[positions].astype("<i4").tobytes()


def period_of(stamp: int, unit: int = 1) -> int:
    """Return the period of a time, int64 microseconds; its end belongs to it."""
    return (stamp - 1) // (unit * MINUTE)


def history_range(positives: int) -> int:
    """Return the position in `HISTORY_RANGES`, or their number for a longer history."""
    return 0 if positives <= 0 else min((positives + 1) // 2, len(HISTORY_RANGES))


def is_personal(sources: Sequence[str]) -> bool:
    """Return True if at least half of the slots have a personal source."""
    return bool(sources) and 2 * sum(source not in IMPERSONAL for source in sources) >= len(sources)


def is_cold(user_id: str, positives: int) -> bool:
    """Return True for a user, not a guest, with fewer than 5 valid positives."""
    return positives < COLD_POSITIVES and bool(user_id) and not is_guest(user_id)


def latency_buckets(latency_us: ArrayLike) -> NDArray[np.int64]:
    """Return the buckets of latencies in microseconds; bucket b begins at 1.05^b."""
    return np.searchsorted(LATENCY_EDGES, np.maximum(latency_us, 1), side="right") - 1


def latency_quantile(answers: NDArray[np.int64], share: float) -> float:
    """Return the middle of the bucket of the nearest rank in us; NaN if empty.

    Args:
        answers: (buckets,) answers by latency bucket.
    """
    total = np.cumsum(answers)
    if not len(total) or not total[-1]:
        return math.nan
    bucket = int(np.searchsorted(total, math.ceil(share * int(total[-1]))))
    return LATENCY_EDGES[bucket] * math.sqrt(LATENCY_STEP)


CONTENT = msgspec.msgpack.Decoder(PeriodContent)
IN_PERIODS: Final = "WHERE unit = ? AND period >= ? AND period <= ?"


@dataclass
class WindowReader:
    """Reads the counted answers of one window.

    The sums are kept. A call subtracts the periods that have left the window, and reads the newest periods of which the
    number of answers has changed. All are read again if the number of answers of a group still differs. Without a newly
    counted answer, a call for the same periods reads nothing.
    """

    window: Window
    _first: int = 0
    _last: int = -1  # newest period of the sums; before _first: none was read
    _sums: dict[Group, GroupCounts] = field(default_factory=dict)
    _open: dict[Key, PeriodContent] = field(default_factory=dict)  # summed contents of the newest periods
    _seen: tuple[int, int, int] | None = None  # first and newest period, and the newest counted decision

    def read(self, reader: sqlite3.Connection, end: int) -> Mapping[Group, GroupCounts]:
        """Sum the counted answers by group; the result is valid until the next call.

        Args:
            end: End of the window, int64 microseconds; users are right if no answer is newer.
        """
        first, last = self.window.first(end), period_of(end, self.window.unit)
        seen = first, last, int(reader.execute("SELECT decision_id FROM counted").fetchone()[0])
        if seen == self._seen:
            return self._sums
        self._seen = None  # until all is read
        if not (self._first <= first <= self._last <= last and self._move(reader, first, last)):
            self._sums, self._open = {}, {}
            self._replace(self._contents(reader, first, last))
        self._open = {key: content for key, content in self._open.items() if key[0] > last - N_OPEN_PERIODS}
        self._first, self._last = first, last
        for counts in self._sums.values():
            counts.users = {}
        users = f"SELECT variant, placement, kind, sum(users) FROM users_by_period {IN_PERIODS} GROUP BY 1, 2, 3"
        for variant, placement, kind, count in reader.execute(users, (self.window.unit, first, last)):
            if (variant, placement) in self._sums:
                self._sums[variant, placement].users[kind] = int(count)
        self._seen = seen
        return self._sums

    def _move(self, reader: sqlite3.Connection, first: int, last: int) -> bool:
        """Move the sums to other periods; return False if a closed one has changed."""
        for (_, *group), content in self._contents(reader, self._first, first - 1).items():
            self._sums[group[0], group[1]].add(content, sign=-1)
        oldest_open = max(first, self._last - N_OPEN_PERIODS + 1)
        statement = f"SELECT period, variant, placement, answers FROM periods {IN_PERIODS}"
        changed = {
            (period, variant, placement)
            for period, variant, placement, answers in reader.execute(statement, (self.window.unit, oldest_open, last))
            if (period, variant, placement) not in self._open
            or answers != self._open[period, variant, placement].answers
        }
        if changed:
            contents = self._contents(reader, min(changed)[0], last)
            self._replace({key: contents[key] for key in contents if key in changed})
        self._sums = {group: counts for group, counts in self._sums.items() if counts.answers}
        answers = {group: counts.answers for group, counts in self._sums.items()}
        return answers == self._answers(reader, first, last)

    def _replace(self, contents: Mapping[Key, PeriodContent]) -> None:
        """Add contents to the sums in the place of earlier contents of the same periods."""
        for key, content in contents.items():
            counts = self._sums.setdefault(key[1:], GroupCounts())
            earlier = self._open.get(key)
            if earlier is None:
                counts.add(content)
            else:
                counts.replace(earlier, content)
            self._open[key] = content

    def _contents(self, reader: sqlite3.Connection, first: int, last: int) -> dict[Key, PeriodContent]:
        if first > last:
            return {}
        statement = f"SELECT period, variant, placement, content FROM periods {IN_PERIODS} ORDER BY period"
        rows = reader.execute(statement, (self.window.unit, first, last))
        return {(period, variant, placement): CONTENT.decode(content) for period, variant, placement, content in rows}

    def _answers(self, reader: sqlite3.Connection, first: int, last: int) -> dict[Group, int]:
        statement = f"SELECT variant, placement, sum(answers) FROM periods {IN_PERIODS} GROUP BY 1, 2"
        rows = reader.execute(statement, (self.window.unit, first, last))
        return {(variant, placement): int(answers) for variant, placement, answers in rows}


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
