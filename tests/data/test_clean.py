"""Cleaning: valid rows, rules of removed rows, and completeness."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from recloop.data.clean import clean, nothing_left
from recloop.errors import UserError
from recloop.features.labels import EventLabeler
from recloop.records import EVENT_SCHEMA, SECOND
from recloop.settings import build

START = 1_735_689_600 * SECOND


def log(*rows: tuple[Any, ...]) -> pl.DataFrame:
    """Rows of (user, item, seconds) and further fields by name."""
    made = []
    for user, item, seconds, *more in rows:
        row = dict.fromkeys(EVENT_SCHEMA)
        row |= {"user_id": user, "item_id": item, "timestamp": START + round(seconds * SECOND), "event_type": "click"}
        row["received_at"] = row["timestamp"]
        made.append(row | (more[0] if more else {}))
    return pl.DataFrame(made, schema=EVENT_SCHEMA).drop("seq")


def config(*sets: str):
    return build({}, sets, {})


def test_clean_numbers_all_rows_by_time_then_file_order() -> None:
    frame = log(("u", "b", 2), ("u", "bad", 1, {"quantity": 0.0}), ("u", "a", 2), ("u", "c", 0))
    cleaned = clean(frame, config(), after=10)
    assert cleaned.valid_rows.select("seq", "item_id").rows() == [(11, "c"), (13, "b"), (14, "a")]
    assert cleaned.quarantine.select("seq", "item_id", "rule").rows() == [(12, "bad", "keep")]
    assert cleaned.watermark == 14
    assert cleaned.removed == {"keep": 1}


def test_clean_quarantines_exact_duplicates() -> None:
    basket = {"group_id": "g", "value": 1.0}
    frame = log(
        ("u", "a", 0, basket), ("u", "a", 0, basket), ("u", "a", 0, {"group_id": "h", "value": 1.0}),
        ("u", "a", 0, {"group_id": "g", "value": 2.0}), ("u", "a", 1, basket), ("v", "a", 0, basket), ("u", "a", 0, basket),
    )  # fmt: skip
    cleaned = clean(frame, config())
    assert cleaned.quarantine.select("seq", "rule").rows() == [(2, "duplicates"), (6, "duplicates")]
    assert len(clean(frame, config('clean.duplicates="off"')).valid_rows) == 7


def test_clean_quarantines_repeated_event_ids_before_other_rules() -> None:
    """Such a row does not enter the log on arrival, so it must not count for a burst."""
    rows = [("u", f"i{n}", n / 100, {"event_id": f"e{n % 9}"}) for n in range(18)]
    cleaned = clean(log(*rows), config())
    assert cleaned.removed == {"event_id": 9}
    assert cleaned.valid_rows["event_id"].to_list() == [f"e{n}" for n in range(9)]


def test_clean_quarantines_the_tenth_click_within_a_second() -> None:
    clicks = [("u", f"i{n}", 100 + n / 20) for n in range(10)]
    basket = [("v", f"i{n}", 100, {"group_id": "b", "event_type": "visit"}) for n in range(40)]
    purchases = [("w", f"i{n}", 100, {"event_type": "purchase"}) for n in range(40)]
    slow = [("x", f"i{n}", 100 + n / 9) for n in range(40)]
    cleaned = clean(log(*clicks, *basket, *purchases, *slow), config())
    assert cleaned.removed == {"burst": 1}
    assert cleaned.quarantine["item_id"].to_list() == ["i9"]


def test_clean_causal_rules_equal_those_on_arrival() -> None:
    """Rows one at a time, with earlier rows of the user, give equal rules."""
    rows = [("u", f"i{n % 7}", (n * 37 % 40) / 13, {"quantity": float(n % 5 - 1)}) for n in range(60)]
    settings = config('clean.duplicates="off"', "clean.burst.events=5", "clean.max_removed=1")
    cleaned = clean(log(*rows), settings)
    numbered = pl.concat([cleaned.valid_rows.select(*EVENT_SCHEMA), cleaned.quarantine.select(*EVENT_SCHEMA)]).sort(
        "seq"
    )
    signal = EventLabeler(settings.events, settings.clean)
    arrived = {
        seq: rule
        for n, seq in enumerate(numbered["seq"])
        if (rule := signal.causal_rule(numbered[n : n + 1], numbered[:n])[0]) is not None
    }
    assert arrived == dict(cleaned.quarantine.select("seq", "rule").iter_rows())
    assert set(arrived.values()) == {"keep", "burst"}


def test_clean_with_excessive_removals_names_the_rule_and_fix() -> None:
    frame = log(*[("u", "a", n, {"quantity": float(n % 10)}) for n in range(100)])
    (error,) = clean(frame, config()).excessive
    assert error.name == "rule keep"
    assert "10.0% of the rows (10 of 100)" in str(error)
    assert "clean.max_removed=0.11" in error.fix
    assert "clean.keep=" in error.fix
    assert len(error.samples) == 3
    assert "quantity=0.0" in error.samples[0]
    assert clean(frame, config("clean.max_removed=0.11")).excessive == ()


def test_clean_excludes_items_in_files_and_on_arrival_without_a_limit() -> None:
    frame = log(("u", "POST", 0), ("u", "a", 1), ("v", "POST", 2, {"quantity": 0.0}))
    settings = config('clean.exclude_items=["POST", "M"]')
    cleaned = clean(frame, settings)
    assert (cleaned.removed, cleaned.excessive) == ({"exclude_items": 2}, ())
    rows = frame.with_columns(pl.int_range(1, 4, dtype=pl.Int64).alias("seq"))
    arrived = [EventLabeler(settings.events, settings.clean).causal_rule(rows[n : n + 1])[0] for n in range(3)]
    assert arrived == ["exclude_items", None, "exclude_items"]
    assert nothing_left(len(cleaned.valid_rows), cleaned.removed, cleaned.quarantine) is None
    emptied = clean(frame, config('clean.exclude_items=["POST", "a"]'))
    error = nothing_left(0, emptied.removed, emptied.quarantine)
    assert error is not None
    assert "no row is left of 3 (exclude_items removed 3)" in str(error)
    assert error.fix == "--set 'clean.exclude_items=[]'"


def test_clean_numbers_moments_by_their_first_row() -> None:
    frame = log(
        ("u", "a", 0, {"group_id": "g"}), ("u", "c", 5), ("u", "b", 9, {"group_id": "g"}), ("u", "d", 5), ("v", "a", 3)
    )
    believed = clean(frame, config()).valid_rows
    assert believed.select("item_id", pl.col("stamp") - START, "moment").rows() == [
        ("a", 0, 0), ("a", 3 * SECOND, 0), ("c", 5 * SECOND, 1), ("d", 5 * SECOND, 1), ("b", 0, 0),
    ]  # fmt: skip


def test_clean_with_ties_by_row_gives_each_row_a_moment() -> None:
    frame = log(("u", "z", 0), ("u", "a", 0), ("u", "m", 0), ("v", "a", 0), ("u", "q", 1))
    believed = clean(frame, config('split.ties="row"')).valid_rows
    rows = believed.filter(pl.col("user_id") == "u").select("item_id", pl.col("stamp") - START, "moment").rows()
    assert rows == [("z", 0, 0), ("a", 1, 1), ("m", 2, 2), ("q", SECOND, 3)]


def test_clean_k_core_removes_until_all_have_k() -> None:
    frame = log(
        ("u", "a", 0), ("u", "b", 1), ("v", "a", 2), ("v", "b", 3), ("w", "a", 4), ("w", "c", 5), ("x", "c", 6),
        ("u", "b", 7, {"event_type": "dislike"}),
    )  # fmt: skip
    cleaned = clean(frame, config("split.k_core=2"))
    # x has one row; then c has one; then w has one: all three are removed in turn.
    assert cleaned.valid_rows["item_id"].to_list() == ["a", "b", "a", "b", "b"]
    assert cleaned.removed == {"k_core": 3}
    assert cleaned.excessive == ()


@pytest.mark.parametrize("seed", range(5))
def test_clean_keeps_each_row_or_removes_it_by_one_rule(seed: int) -> None:
    draws = pl.Series(range(300)).hash(seed) % 97
    rows = [
        (f"u{d % 5}", f"i{d % 11}", d % 13, {"quantity": float(d % 4), "event_id": f"e{d}" if d % 3 else None})
        for d in draws.to_list()
    ]
    cleaned = clean(log(*rows), config("clean.max_removed=1", "split.k_core=3"))
    seqs = [*cleaned.valid_rows["seq"], *cleaned.quarantine["seq"]]
    assert sorted(seqs) == list(range(1, 301))
    assert sum(cleaned.removed.values()) == len(cleaned.quarantine)
    assert {"event_id", "keep", "duplicates"} <= set(cleaned.removed)


@pytest.mark.parametrize("setting", ["clean.keep=\"quantity > 'x'\"", 'events.positive=["event_type > 3"]'])
def test_clean_with_a_condition_of_mixed_types_names_the_key(setting: str) -> None:
    with pytest.raises(UserError, match="numbers compared with numbers") as caught:
        clean(log(("u", "a", 0)), config(setting))
    assert caught.value.name == setting.partition("=")[0]
