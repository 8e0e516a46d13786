"""The temporal split by hand: the cut, validation moments, and invariances."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from recloop.config import Split
from recloop.data.clean import LABELLED
from recloop.data.split import split, validation_start
from recloop.errors import UserError
from recloop.records import hash_unit_interval, is_holdout_user


def frame(rows: list[tuple[str, str, int, int]]) -> pl.DataFrame:
    """Labelled rows of (user, item, stamp, label), in the order of seq."""
    made: list[dict[str, Any]] = []
    for seq, (user, item, stamp, label) in enumerate(rows, 1):
        row = dict.fromkeys(LABELLED)
        row |= {"seq": seq, "user_id": user, "item_id": item, "timestamp": stamp, "stamp": stamp, "label": label}
        made.append(row)
    return pl.DataFrame(made, schema=LABELLED)


def items(part: pl.DataFrame) -> list[str]:
    return part["item_id"].to_list()


def test_split_cut_is_the_stamp_at_the_quantile() -> None:
    rows = [("u", f"i{n}", 10 * n, 1) for n in range(20)]
    parts = split(frame(rows), Split(validation_users=0))
    assert parts.cut == 180  # event 18, counted from 0
    assert items(parts.train) == [f"i{n}" for n in range(18)]
    assert items(parts.test) == ["i18", "i19"]
    assert len(parts.valid) == 0


def test_split_keeps_moments_together() -> None:
    rows = [("u", f"i{n}", 0 if n < 5 else 10, 1) for n in range(20)]  # event 18 is in the second moment
    parts = split(frame(rows), Split())
    assert parts.cut == 10
    assert len(parts.train) == 5
    assert len(parts.test) == 15


def test_split_puts_a_late_row_of_an_early_moment_before_the_cut() -> None:
    rows = frame([("u", f"i{n}", n, 1) for n in range(20)])
    late = rows.with_columns(stamp=pl.when(pl.col("item_id") == "i19").then(3).otherwise("stamp"))
    assert items(split(late, Split(validation_users=0)).test) == ["i18"]


def test_split_validation_is_the_last_positive_moment_of_hashed_users() -> None:
    users = [f"u{n}" for n in range(40)]
    rows = []
    for user in users:
        rows += [(user, "first", 1, 1), (user, "second", 2, 1), (user, "also", 2, 0), (user, "looked", 3, 0)]
    rows += [("once", "first", 1, 1), ("looker", "first", 1, 1), ("looker", "looked", 2, 0)]
    rows += [("u0", "test", 9, 1)] * 20
    parts = split(frame(sorted(rows, key=lambda row: row[2])), Split(validation_users=5))
    expected = sorted((u for u in users if not is_holdout_user(u)), key=lambda u: hash_unit_interval("valid", u))[:5]
    assert set(parts.valid["user_id"]) == set(expected)
    assert sorted(set(items(parts.valid))) == ["also", "second"]
    assert len(parts.valid) == 10
    assert set(parts.valid["stamp"]) == {2}
    assert len(parts.train) + len(parts.valid) + len(parts.test) == len(rows)
    held = parts.train.filter(pl.col("user_id").is_in(expected))
    assert sorted(set(items(held))) == ["first", "looked"]


def test_split_validation_has_at_most_half_of_users_and_no_holdout_users() -> None:
    users = [f"u{n}" for n in range(200)]
    rows = [(user, f"i{stamp}", stamp, 1) for stamp in (1, 2) for user in users] + [("u1", "x", 9, 1)] * 100
    held = set(split(frame(rows), Split(validation_users=1000)).valid["user_id"])
    assert len(held) == 100
    assert any(is_holdout_user(user) for user in users)
    assert not any(is_holdout_user(user) for user in held)


def test_split_validation_moments_are_in_the_last_tenth_before_the_cut() -> None:
    """Half of the users stop after day 60 of 100 and are not in the validation set."""
    users = [f"u{n}" for n in range(200)]
    rows = [(u, f"i{day}", day, 1) for day in range(100) for n, u in enumerate(users) if n % 2 or day < 60]
    parts = split(frame(rows), Split(quantile=0.99, validation_users=50))
    moments = parts.train.select("user_id", "stamp").unique()
    start = parts.valid["stamp"].min()
    later = len(moments.filter(pl.col("stamp") >= start)) + len(parts.valid)
    assert later <= 0.1 * (len(moments) + len(parts.valid)) + 100
    assert parts.valid["user_id"].n_unique() == len(parts.valid) == 50
    assert set(parts.valid["user_id"]) <= set(users[1::2])


def test_validation_start_is_after_the_first_stamp() -> None:
    assert validation_start(pl.Series([1, 1, 1, 1, 1, 1, 1, 1, 1, 2])) == 2
    assert validation_start(pl.Series([1] * 99 + [5])) == 5
    assert validation_start(pl.Series(range(100))) == 90
    assert validation_start(pl.Series([7, 7])) == 8, "one stamp: no moment is left for validation"


def test_split_of_one_user_has_no_validation() -> None:
    parts = split(frame([("u", f"i{n}", n, 1) for n in range(10)]), Split())
    assert (len(parts.train), len(parts.valid), len(parts.test)) == (9, 0, 1)


def test_split_is_independent_of_the_order_within_moments() -> None:
    rows = [(f"u{n % 7}", f"i{n % 13}", n // 20, 1 if n % 3 else 0) for n in range(400)]
    one = split(frame(rows), Split(validation_users=3))
    shuffled = sorted(rows, key=lambda row: (row[2], hash_unit_interval("x", row[0] + row[1])))
    assert shuffled != rows
    two = split(frame(shuffled), Split(validation_users=3))
    key = ["user_id", "item_id", "stamp", "label"]
    assert one.cut == two.cut
    for a, b in zip(one[:3], two[:3], strict=True):
        assert a.select(key).sort(key).equals(b.select(key).sort(key))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "rows that pass the rules"),
        ([("u", "a", 5, 1), ("v", "b", 5, 1)], "all have one instant"),
        ([("u", "a", 5, 1)], "at least two instants"),
        ([("u", "a", n, 0) for n in range(9)] + [("u", "a", 9, 1)], "no positive row before the cut"),
    ],
)
def test_split_that_is_impossible_raises_with_the_reason(rows: list[tuple[str, str, int, int]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        split(frame(rows), Split())
