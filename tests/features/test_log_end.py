"""The end of a log: wrong clocks do not move it, and a busy last day is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.features.log_end import end_of, robust_end
from recloop.records import DAY, SECOND

START = 1_700_000_000 * SECOND
HOUR = 3_600 * SECOND
YEAR_2090 = 3_786_912_000 * SECOND


def shop(rows: int, days: float, seed: int = 0) -> np.ndarray:
    """Stamps of a shop that is open for ten hours a day, six days a week."""
    rng = np.random.default_rng(seed)
    day = rng.integers(0, max(1, int(days)), rows)
    day -= day % 7 == 6
    return np.sort(START + day * DAY + rng.integers(8 * HOUR, 18 * HOUR, rows))


def end(*parts: Any) -> int:
    return robust_end(pl.Series(np.concatenate([np.atleast_1d(part) for part in parts]), dtype=pl.Int64))


@pytest.mark.parametrize(("rows", "outliers"), [(10, 2), (20, 4), (30, 5), (50, 5), (361, 5), (3_000, 30)])
@pytest.mark.parametrize("far", [YEAR_2090, START + 3_650 * DAY, 253_402_300_799 * SECOND])
def test_robust_end_ignores_few_rows_far_ahead(rows: int, outliers: int, far: int) -> None:
    log = shop(rows, 60)
    assert end(log, far + np.arange(outliers) * SECOND) == log.max()


def test_robust_end_ignores_two_groups_of_outliers() -> None:
    log = shop(60, 60)
    assert end(log, START + 5_000 * DAY + np.arange(5), YEAR_2090 + np.arange(5)) == log.max()


@pytest.mark.parametrize("wrong", [0, -62_135_596_800 * SECOND])
def test_robust_end_with_old_outliers_ignores_new_ones(wrong: int) -> None:
    log = shop(200, 90)
    assert end(np.full(4, wrong), log, START + 400 * DAY) == log.max()


def test_robust_end_ignores_tomorrow_in_a_log_without_pauses() -> None:
    log = START + np.arange(500) * 600 * SECOND
    assert end(log, log.max() + DAY) == log.max()


def test_robust_end_keeps_a_row_an_hour_ahead() -> None:
    log = START + np.arange(500) * 60 * SECOND
    assert end(log, log.max() + HOUR) == log.max() + HOUR


def test_robust_end_of_one_timestamp_is_that_timestamp() -> None:
    assert end(np.full(1_000, START)) == START
    assert end(np.full(12, START), YEAR_2090) == START


def test_robust_end_keeps_a_sale_day_after_a_long_pause() -> None:
    log = shop(1_000, 200)
    sale = log.max() + 60 * DAY + np.arange(300) * SECOND
    assert end(log, sale) == sale.max()


def test_robust_end_keeps_a_day_after_a_sale_and_a_pause() -> None:
    log = shop(1_000, 200)
    sale = log.max() + DAY + np.arange(2_000) * SECOND
    monday = sale.max() + 3 * DAY
    assert end(log, sale, monday) == monday, "the shop has had such pauses before"


@pytest.mark.parametrize("step", [SECOND, HOUR, DAY, 7 * DAY, 365 * DAY])
def test_robust_end_keeps_logs_of_even_steps(step: int) -> None:
    for size in (1, 2, 9, 10, 11, 50):
        log = START + np.arange(size) * step
        assert end(log) == log.max()


def test_robust_end_ignores_one_device_with_many_rows() -> None:
    log = shop(2_000, 90)
    users = [f"u{number % 150}" for number in range(2_000)]
    frame = pl.DataFrame(
        {"user_id": [*users, *["phone"] * 80], "timestamp": [*log.tolist(), *range(YEAR_2090, YEAR_2090 + 80)]}
    )
    assert end_of(frame) == log.max()
    crowd = frame.with_columns(pl.Series("user_id", [*users, *(f"u{number}" for number in range(80))]))
    assert end_of(crowd) == YEAR_2090 + 79, "rows of 80 users continue the log"


def test_robust_end_of_an_empty_log_is_0() -> None:
    assert end(np.zeros(0)) == 0


@given(
    gaps=st.lists(st.integers(0, 3 * DAY), min_size=9, max_size=60),
    outliers=st.lists(st.integers(YEAR_2090, YEAR_2090 + DAY // 2), max_size=5),
    data=st.data(),
)
def test_robust_end_with_few_outliers_equals_that_without(
    gaps: list[int], outliers: list[int], data: st.DataObject
) -> None:
    log = (START + np.cumsum([0, *gaps])).tolist()
    outliers = outliers[: len(log) // 5]
    whole = pl.Series(data.draw(st.permutations([*log, *outliers])), dtype=pl.Int64)
    found = robust_end(whole)
    assert found == robust_end(pl.Series(log, dtype=pl.Int64))
    assert found == robust_end(whole.filter(whole <= found)), "the kept rows have the same end"
