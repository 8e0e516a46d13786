"""Counts of the decision log: equal to the definition on raw rows, once per answer, through restarts and migrations."""

from __future__ import annotations

import random
import shutil
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from recloop.evaluation import metrics
from recloop.monitoring.health import Exposures, HealthReference, exposure_health, stored_health
from recloop.records import DAY, SECOND, SOURCES, Decision
from recloop.storage import (
    DecisionLog,
    decision_counts,
    decision_periods,
    decision_rows,
    decision_schema,
    decisions,
    open_decisions,
)
from recloop.storage.decision_periods import (
    WINDOWS,
    GroupCounts,
    PeriodContent,
    WindowReader,
    latency_buckets,
    latency_quantile,
    period_of,
)
from recloop.testing.store import some_decision

URL = "sqlite:///store/decisions.db"
FIXTURES = Path(__file__).parent / "fixtures"
NOW = 20_000 * DAY + 7 * SECOND
TABLE = [f"i{n}" for n in range(40)]
USERS = ["", "guest:1", *(f"u{n}" for n in range(12))]


def random_decisions(seed: int, n: int = 300) -> list[Decision]:
    """Answers over nine days in any order, with shadow lists, repeated keys and items outside the table."""
    draw = random.Random(seed)
    rows = []
    for number in range(n):
        items = draw.sample([*TABLE, "new", "née"], draw.choice([0, 1, 4]))
        edge = draw.choice([0, draw.randrange(9 * DAY), 60 * SECOND * draw.randrange(9 * 24 * 60)])
        rows.append(
            some_decision(
                f"r{draw.choice([number, 0])}",
                role=draw.choice(["answer", "answer", "answer", "shadow"]),
                user_id=draw.choice(USERS),
                served_at=NOW - edge,
                bundle=draw.choice(["b", "c"]),
                variant=draw.choice(["live", "candidate"]),
                placement=draw.choice(["home", "cart"]),
                items=items,
                scores=[0.0] * len(items),
                sources=[draw.choice(SOURCES) for _ in items],
                degraded=draw.choice([[], ["log"]]),
                positives=draw.randrange(8),
                latency_us=draw.choice([0, 1, 20, draw.randrange(1_000_000)]),
            )
        )
    return rows


def reference() -> HealthReference:
    ids = {raw: number for number, raw in enumerate(TABLE, start=1)}
    return HealthReference(ids, 45, np.array([False, *(n > 8 for n in range(40))]), np.zeros(41, dtype=bool))


def stored(store: DecisionLog, end: int) -> dict[str, Any]:
    """The windows as the service computes them."""
    against = reference()
    numbers = np.array([0, *(against.ids.get(raw, 0) for _, raw in store.item_ids())])
    is_new = numbers == 0
    by_code = replace(against, tail=against.tail[numbers] | is_new, new=is_new)
    return {
        name: stored_health(store.window(WindowReader(window), end), by_code, {}) for name, window in WINDOWS.items()
    }


def from_rows(rows: Sequence[Decision], end: int) -> dict[str, Any]:
    """The windows by definition."""
    against = reference()
    whole = exposure_health(Exposures.from_decisions(rows, against), against, {}, end)
    return {name: whole[name] for name in WINDOWS}


@pytest.mark.parametrize("seed", range(4))
def test_counts_equal_the_definition_on_raw_rows(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_counts, "MAX_COUNTED_ROWS", 50)
    rows = random_decisions(seed)
    for start in range(0, len(rows), 100):  # opened and closed three times
        with open_decisions(URL, tmp_path, write=True) as store:
            assert store.put_many(rows[start : start + 60]) == 60
            assert store.flush()
            store.put_many(rows[start + 60 : start + 100])
    with open_decisions(URL, tmp_path) as store:
        kept = store.rows()
        end = store.newest_answered_at()
        assert end is not None
        assert stored(store, end) == from_rows(kept, end)
        assert stored(store, end + DAY) == from_rows(kept, end + DAY)
        assert sum(store.totals().values()) == sum(row.role == "answer" for row in kept) < len(rows)


def test_counts_survive_the_removal_of_old_rows(tmp_path: Path) -> None:
    with open_decisions(URL, tmp_path, write=True) as store:
        store.put_many(random_decisions(9))
    with open_decisions(URL, tmp_path) as store:
        before = store.totals(), stored(store, NOW), store.traffic(7 * DAY)[0]
        first = min(row.served_at for row in store.rows())
    assert decisions.remove_before(tmp_path / "store" / "decisions.db", NOW - DAY) > 50
    with open_decisions(URL, tmp_path) as store:
        assert min(row.served_at for row in store.rows()) > first
        assert (store.totals(), stored(store, NOW), store.traffic(7 * DAY)[0]) == before


def test_users_without_an_answer_in_a_window_are_forgotten(tmp_path: Path) -> None:
    with open_decisions(URL, tmp_path, write=True) as store:
        store.put_many([some_decision("a", user_id="old", served_at=NOW - 30 * DAY, positives=9)])
        store.flush()
        store.put_many([some_decision("b", user_id="new", served_at=NOW, positives=9)])
    file = tmp_path / "store" / "decisions.db"
    decisions.remove_before(file, NOW - 60 * DAY)
    connection = sqlite3.connect(file)
    assert connection.execute("SELECT user_id FROM last_seen").fetchall() == [("new",)]
    assert connection.execute("SELECT count(*) FROM periods WHERE period < 1000").fetchone() == (0,)
    connection.close()


def test_rows_after_a_kill_are_counted_by_the_next_writer(tmp_path: Path) -> None:
    """Rows that were committed but not counted are counted once."""
    rows = random_decisions(3, 40)
    open_decisions(URL, tmp_path, write=True).close()
    connection = sqlite3.connect(tmp_path / "store" / "decisions.db")
    placeholders = ", ".join("?" * len(decision_rows.COLUMNS))
    connection.executemany(
        f"{decision_rows.INSERT} VALUES ({placeholders})", [decision_rows.row_of(row) for row in rows]
    )
    connection.commit()
    connection.close()
    with open_decisions(URL, tmp_path) as reader:
        assert stored(reader, NOW)["week"] == {}
        totals = reader.totals()  # these include rows that are not counted yet
        traffic = reader.traffic(7 * DAY)
    for _ in range(2):
        with open_decisions(URL, tmp_path, write=True) as store:
            end = store.newest_answered_at()
            assert end is not None
            assert stored(store, end) == from_rows(store.rows(), end)
            assert store.totals() == totals
            assert store.traffic(7 * DAY)[1:] == traffic[1:]


def test_migration_counts_the_rows_of_an_old_file(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "schema-3", tmp_path, dirs_exist_ok=True)
    with open_decisions(URL, tmp_path) as reader:
        end = reader.newest_answered_at()
        assert end is not None
        assert stored(reader, end) == {"hour": {}, "day": {}, "week": {}}
        assert (sum(reader.totals().values()), reader.traffic(DAY)[0]) == (3, 3)
    with open_decisions(URL, tmp_path, write=True) as store:
        assert sum(store.totals().values()) == store.traffic(DAY)[0] == 3
        week = store.window(WindowReader(WINDOWS["week"]), end)["live", "home"]
        assert (week.answers, week.users["users"]) == (3, len({row.user_id for row in store.rows()}))


def test_counts_of_schema_5_read_the_same_before_and_after_their_migration(tmp_path: Path) -> None:
    with open_decisions(URL, tmp_path, write=True) as store:
        store.put_many(random_decisions(8))
        store.flush()
        before = stored(store, NOW)
    with sqlite3.connect(tmp_path / "store" / "decisions.db") as connection:
        connection.executescript("""DROP INDEX periods_answers; ALTER TABLE users_by_period RENAME TO newer;
            CREATE TABLE users_by_period (unit, period, variant, placement, kind, users,
                PRIMARY KEY (unit, period, variant, placement, kind)) WITHOUT ROWID;
            INSERT INTO users_by_period SELECT * FROM newer; DROP TABLE newer; PRAGMA user_version = 5""")
    for write in (False, True):
        with open_decisions(URL, tmp_path, write=write) as store:
            assert stored(store, NOW) == before
    with sqlite3.connect(tmp_path / "store" / "decisions.db") as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == decision_schema.SCHEMA
        assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'periods_answers'").fetchone()


def test_window_reader_keeps_closed_periods_until_they_change(tmp_path: Path) -> None:
    rows = random_decisions(5, 200)
    readers = {name: WindowReader(window) for name, window in WINDOWS.items()}
    with open_decisions(URL, tmp_path, write=True) as store:
        for start in range(0, 200, 50):  # rows arrive out of order, so closed periods change
            store.put_many(rows[start : start + 50])
            store.flush()
            for end in (NOW, NOW + DAY):
                for name, reader in readers.items():
                    kept = {key: counts.content() for key, counts in store.window(reader, end).items()}
                    read = store.window(WindowReader(WINDOWS[name]), end)
                    assert kept == {key: counts.content() for key, counts in read.items()}


def test_window_reader_moves_the_kept_sums_with_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kept sums equal a reading from the start; only periods that leave or change are read."""
    rows = sorted(random_decisions(6, 200), key=lambda row: row.served_at)
    readers = {name: WindowReader(window) for name, window in WINDOWS.items()}
    periods: list[int] = []
    contents = WindowReader._contents

    def record(reader: WindowReader, connection: Any, first: int, last: int) -> Any:
        periods.extend(range(first, last + 1))
        return contents(reader, connection, first, last)

    with open_decisions(URL, tmp_path, write=True) as store:
        for n, start in enumerate(range(0, 200, 20)):
            batch = rows[start : start + 20]
            late = batch[0].request_id + "-late"
            store.put_many([*batch, msgspec.structs.replace(rows[start // 2], request_id=late)] if n % 3 else batch)
            store.flush()
            for step in (0, DAY // 24, DAY // 24 // 3):
                for name, window in WINDOWS.items():
                    end = batch[-1].served_at + step
                    moved = {key: counts.content() for key, counts in store.window(readers[name], end).items()}
                    read = store.window(WindowReader(window), end)
                    assert moved == {key: counts.content() for key, counts in read.items()}
        monkeypatch.setattr(WindowReader, "_contents", record)
        for hour in range(3):
            store.window(readers["week"], rows[-1].served_at + hour * DAY // 24)
        assert len(periods) == 2  # in each later hour, one leaves
        store.put(some_decision("newest", served_at=rows[-1].served_at + DAY // 12))
        store.flush()
        store.window(readers["week"], rows[-1].served_at + DAY // 12)
        assert len(periods[2:]) == 1


@pytest.mark.parametrize("n_tabled", [1, 3, 4_096])
def test_count_repeats_of_sums_equals_the_definition(monkeypatch: pytest.MonkeyPatch, n_tabled: int) -> None:
    monkeypatch.setattr(decision_periods, "N_TABLED_COUNTS", n_tabled)
    draw = np.random.default_rng(0)
    counts, contents = GroupCounts(), []
    for step in range(12):
        slots = draw.integers(0, 3, 20).astype(np.int32)
        codes = np.flatnonzero(slots).astype("<i4")
        contents.append(PeriodContent(codes=codes.tobytes(), slots=slots[codes].tobytes()))
        counts.add(contents[-1])
        if step % 3 == 2:
            counts.add(contents.pop(0), sign=-1)
        if step % 4 == 3:
            codes = codes[draw.random(len(codes)) < 0.8]  # some items have no slot any more
            later = PeriodContent(
                answers=step, codes=codes.tobytes(), slots=draw.integers(1, 9, len(codes)).astype("<i4").tobytes()
            )
            counts.replace(contents.pop(), later)
            contents.append(later)
            defined_counts = GroupCounts()
            for content in contents:
                defined_counts.add(content)
            assert counts.slots[: counts.n_codes].tolist() == [
                *defined_counts.slots[: defined_counts.n_codes].tolist(),
                *[0] * (counts.n_codes - defined_counts.n_codes),
            ]
            assert counts.answers == defined_counts.answers
        for repeats, defined in zip(counts.count_repeats(), metrics.count_repeats(counts.slots), strict=True):
            assert repeats.tolist() == defined.tolist()


def test_windows_begin_at_a_whole_period(tmp_path: Path) -> None:
    end = 1_000 * DAY + 90 * SECOND
    assert WINDOWS["hour"].start(end) == 1_000 * DAY + 60 * SECOND - DAY // 24
    assert WINDOWS["day"].start(end) == 999 * DAY
    assert WINDOWS["week"].start(1_000 * DAY) == 993 * DAY
    assert period_of(1_000 * DAY, 60) == 1_000 * 24 - 1


def test_latency_quantile_is_within_half_a_bucket_of_the_nearest_rank() -> None:
    draw = np.random.default_rng(0)
    for size in (1, 2, 7, 500):
        values = draw.lognormal(8, 2, size).astype(int) + 1
        answers = np.bincount(latency_buckets(values))
        for share in (0.5, 0.99):
            exact = np.quantile(values, share, method="inverted_cdf")
            assert latency_quantile(answers, share) == pytest.approx(exact, rel=0.0251)
    assert np.isnan(latency_quantile(np.zeros(0, dtype=np.int64), 0.5))


def test_events_count_once_by_the_group_of_their_answer(tmp_path: Path) -> None:
    with open_decisions(URL, tmp_path, write=True) as store:
        store.put_many([some_decision("a"), some_decision("b", role="shadow")])
        store.flush()
        assert store.groups(["a", "b", "unknown"]) == {"a": ("live", "home")}
        minute = period_of(NOW)
        for after in (0, 0, 8):  # the second call repeats the first
            store.add_events({(minute, "live", "home"): 2, (minute, "", ""): 1}, after, after + 8)
        assert store.events_counted_to() == 16
        assert store.received(WINDOWS["hour"], NOW) == {("live", "home"): 4, ("", ""): 2}
        assert store.received(WINDOWS["hour"], NOW + 2 * 3_600 * SECOND) == {}


def test_put_many_drops_and_counts_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decisions, "MAX_BUFFERED_ROWS", 3)
    monkeypatch.setattr(decisions, "COMMIT_SECONDS", 60.0)
    with open_decisions(URL, tmp_path, write=True) as store:
        assert store.put_many([some_decision(f"r{n}") for n in range(5)]) == 3
        assert (store.full, store.dropped) == (True, 2)
        assert store.flush()
        assert [row.request_id for row in store.rows()] == ["r0", "r1", "r2"]


def test_answers_are_columns_of_a_time(tmp_path: Path) -> None:
    rows = [some_decision(f"r{n}", served_at=n, items=["a"] * n) for n in range(4)]
    with open_decisions(URL, tmp_path, write=True) as store:
        store.put_many([*rows, msgspec.structs.replace(rows[2], role="shadow")])
        store.flush()
        frame = store.answers(["request_id", "items", "served_at"], since=1, until=3)
        assert frame.rows() == [("r1", ["a"], 1), ("r2", ["a", "a"], 2)]
        assert store.answers(["items"], since=9).schema == frame.select("items").schema


def test_shadowed_rows_of_a_bundle_are_read_by_its_index(tmp_path: Path) -> None:
    rows = []
    for n in range(6):
        rows += [some_decision(f"r{n}", served_at=n), some_decision(f"r{n}", role="shadow", bundle="c", served_at=n)]
    rows += [some_decision("r0", role="replica", items=["x"], scores=[1.0], sources=["popular"])]
    rows += [some_decision("gone", role="shadow", bundle="c"), some_decision("r5", role="shadow", bundle="d")]
    statements: list[str] = []
    with open_decisions(URL, tmp_path, write=True) as store:
        store.put_many(rows)
        store.flush()
        store._readers.get().set_trace_callback(statements.append)
        assert [row.request_id for row in store.shadowed("c", 3)] == ["r3", "r4", "r5"]
        assert [row.request_id for row in store.shadowed("c", 9, since=1, until=3)] == ["r1", "r2"]
        assert [row.bundle for row in store.shadowed("", 9)] == ["d"]
        assert store.shadowed("unknown", 9) == store.shadowed("", 9, since=100) == []
        assert (store.shadow_requests("c"), store.replica_mismatches("c")) == (7, 1)
        for statement in [text for text in statements if "'c'" in text]:
            plan = store._readers.get().execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
            assert any("decisions_scored" in row[3] for row in plan), statement


def test_codes_of_a_failed_count_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_decisions(URL, tmp_path, write=True) as store:
        with monkeypatch.context() as failing:
            failing.setattr(decision_counts, "_add_users", lambda *_: 1 / 0)
            store.put_many([some_decision("a", served_at=NOW, items=["i1"])])
            writer = sqlite3.connect(store.file, isolation_level=None)
            counter = decision_counts.AnswerCounter(writer)
            while not writer.execute("SELECT 1 FROM decisions").fetchone():
                time.sleep(0.01)
            with pytest.raises(ZeroDivisionError):
                counter.count()
        assert not counter._codes
        assert counter.count()
        assert counter._codes == dict(writer.execute("SELECT item_id, code FROM item_codes"))
        writer.close()
