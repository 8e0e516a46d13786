"""Crawlers, outlying stamps, and the order of rows that share a stamp."""

from __future__ import annotations

import polars as pl
import pytest

from recloop.data.doctor.anomalies import crawlers, stamp_outliers, tied_rows
from recloop.records import DAY, SECOND

HOUR = 3_600 * SECOND


def people(n_users: int = 60, visits: int = 30) -> list[tuple[str, int]]:
    """User and stamp of visits at irregular times."""
    return [
        (f"u{user}", visit * DAY + (user * 977 + visit * visit * 131) % 40_000 * SECOND + user)
        for user in range(n_users)
        for visit in range(visits)
    ]


def log(rows: list[tuple[str, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"user_id": pl.String, "timestamp": pl.Int64}, orient="row")


def test_crawlers_with_a_steady_rhythm_names_the_seconds() -> None:
    scanner = [("scanner", DAY + int(1.4 * n * SECOND)) for n in range(150)]
    (found,) = crawlers(log(people() + scanner))
    assert (found.user_id, found.rows, found.gap_seconds) == ("scanner", 150, 1.4)
    assert "a steady rhythm of one row each 1.4 s" in found.reasons
    whole_seconds = [("scanner", stamp // SECOND * SECOND) for _, stamp in scanner]
    rows = [(user, stamp // SECOND * SECOND) for user, stamp in people()]
    assert [found.user_id for found in crawlers(log(rows + whole_seconds))] == ["scanner"]


def test_crawlers_with_thousands_of_views_in_two_hours_counts_them() -> None:
    views = [("views", DAY + n * n % 7_199 * SECOND + n) for n in range(5_000)]
    (found,) = crawlers(log(people(200, 60) + views))
    assert found.reasons[0].startswith("1,000 rows within ")
    assert "29.4 % of all rows" in found.reasons


def test_crawlers_of_people_and_of_a_basket_of_many_rows_are_empty() -> None:
    basket = [("u1", 5 * DAY)] * 150
    assert crawlers(log(people(100, 60) + basket)) == ()
    assert crawlers(log([])) == ()


def test_crawlers_with_a_smooth_tail_of_heavy_users_are_empty() -> None:
    tail = [(f"heavy{user}", n * DAY + user + n * n % 997 * SECOND) for user in range(4) for n in range(90 - 12 * user)]
    rows = log(people(60, 15) + tail)
    assert rows.filter(pl.col("user_id") == "heavy0").height > 0.05 * len(rows)
    assert crawlers(rows) == ()


def test_stamp_outliers_names_the_range_of_the_other_rows() -> None:
    stamps = pl.Series([n * HOUR for n in range(997)] + [40_000 * DAY, 41_000 * DAY, 42_000 * DAY])
    found = stamp_outliers(stamps)
    assert found is not None
    assert (found.rows, found.share) == (3, 0.997)
    assert (found.first[:10], found.last[:10], found.latest[:4]) == ("1970-01-01", "1970-02-11", "2084")
    assert stamp_outliers(stamps.head(997)) is None
    assert stamp_outliers(stamps.tail(50)) is None


@pytest.mark.parametrize(("labels", "first"), [((1, 0), 1.0), ((0, 1), 0.0)])
def test_tied_rows_in_the_order_of_labels_reveal_them(labels: tuple[int, int], first: float) -> None:
    rows = pl.DataFrame(
        {
            "seq": range(200),
            "user_id": [f"u{n // 2}" for n in range(200)],
            "timestamp": [n // 2 for n in range(200)],
            "label": labels * 100,
            "weight": [1.0] * 200,
        }
    )
    found = tied_rows(rows)
    assert (found.rows, found.share, found.pairs, found.heavier_first) == (200, 1.0, 100, first)
    assert found.reveals_label
    shuffled = rows.with_columns(label=pl.Series([*labels, *labels[::-1]] * 50))
    assert not tied_rows(shuffled).reveals_label
    assert tied_rows(rows.with_columns(timestamp="seq")).rows == 0
