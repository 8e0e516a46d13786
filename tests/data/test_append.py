"""Retractions of an update: the first rows of a burst, and repeats without an event_id."""

from __future__ import annotations

import numpy as np
import polars as pl

from recloop.config import Clean, Events
from recloop.data.split_change import retracted_rows, rows_before_burst
from recloop.features.labels import EventLabeler
from recloop.records import EVENT_SCHEMA, RULE, SECOND

START = 1_000 * SECOND
SIGNAL = EventLabeler(Events(weights={"purchase": 5}), Clean())


def frame(rows: list[tuple[int, str, int, str, str | None]]) -> pl.DataFrame:
    """Rows of (seq, user, microseconds after the start, event type, rule)."""
    columns = {"seq": [], "user_id": [], "timestamp": [], "event_type": [], RULE: []}  # type: dict[str, list[object]]
    for seq, user, at, kind, rule in rows:
        for name, value in zip(columns, (seq, user, START + at, kind, rule), strict=True):
            columns[name].append(value)
    made = pl.DataFrame(columns, schema_overrides={RULE: pl.String})
    missing = [pl.lit(None, kind).alias(name) for name, kind in EVENT_SCHEMA.items() if name not in made.columns]
    return made.with_columns(*missing).with_columns(pl.concat_str(pl.lit("i"), "seq").alias("item_id"))


def valid(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)


def test_rows_before_burst_are_the_users_rows_within_the_window() -> None:
    rows = frame(
        [
            (1, "ann", 0, "click", None),  # more than a second before the quarantined row
            (2, "ann", 100_001, "click", None),
            (3, "bob", 500_000, "click", None),
            (4, "ann", 600_000, "purchase", None),  # a purchase does not count
            (5, "ann", 1_100_000, "click", "burst"),
            (6, "ann", 1_100_001, "click", None),  # after the burst row
            (7, "bob", 1_100_000, "click", "keep"),
        ]
    )
    assert rows_before_burst(valid(rows), rows, Clean(), SIGNAL) == [2]
    edge = rows.with_columns(
        pl.when(pl.col("seq") == 2).then(START + 100_000).otherwise("timestamp").alias("timestamp")
    )
    assert rows_before_burst(valid(edge), edge, Clean(), SIGNAL) == [], "the window excludes its start, as on arrival"
    assert rows_before_burst(valid(rows), rows, Clean(burst="off"), SIGNAL) == []
    assert rows_before_burst(valid(rows), rows.filter(pl.col("seq") > 5), Clean(), SIGNAL) == []


def test_rows_before_burst_equal_the_pairs_of_rows_within_the_window() -> None:
    random = np.random.default_rng(0)
    users, stamps = random.choice(["ann", "bob"], 400).tolist(), random.integers(0, 60 * SECOND, 400).tolist()
    is_removed = (random.random(400) < 0.1).tolist()
    acts = list(enumerate(zip(users, stamps, is_removed, strict=True), start=1))
    rows = frame([(n, user, at, "click", "burst" if removed else None) for n, (user, at, removed) in acts])
    caught = [(user, at) for _, (user, at, removed) in acts if removed]
    expected = [
        n
        for n, (user, at, removed) in acts
        if not removed and any(owner == user and 0 <= end - at < SECOND for owner, end in caught)
    ]
    assert rows_before_burst(valid(rows), rows, Clean(), SIGNAL) == expected
    assert 50 < len(expected) < 350


def test_rows_before_burst_include_archived_rows() -> None:
    rows = frame([(1, "ann", 0, "click", None), (2, "ann", 10, "click", "burst")])
    assert rows_before_burst(valid(rows), rows.filter(pl.col("seq") == 2), Clean(), SIGNAL) == [1]


def test_retracted_rows_of_a_repeat_have_the_first_matching_rule() -> None:
    rows = frame([(1, "ann", 0, "click", None), (2, "ann", 0, "click", None), (3, "ann", 5, "click", "burst")])
    rows = rows.with_columns(item_id=pl.lit("i"))
    assert retracted_rows(valid(rows), rows, Clean(), SIGNAL) == {1: "burst", 2: "burst"}
    assert retracted_rows(valid(rows), rows.head(2), Clean(), SIGNAL) == {2: "duplicates"}
    assert retracted_rows(valid(rows), rows.head(2), Clean(duplicates="off"), SIGNAL) == {}
