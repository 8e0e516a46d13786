"""Ratings and dwell columns by name and range."""

from __future__ import annotations

import polars as pl
import pytest

from recloop.init.value_rules import dwell_column, rating_rule


@pytest.mark.parametrize(
    ("values", "positive", "neutral"),
    [
        ([1, 2, 3, 4, 5], "value >= 4", ()),
        (["0.5", "3.0", "4.5", "5.0"], "value >= 4", ()),
        ([1, 5, 8, 10], "value >= 7", ()),
        ([0, 0, 0, 4, 5, 3], "value >= 4", ("value = 0",)),
        ([0, 7, 8, 10], "value >= 7", ("value = 0",)),
    ],
)
def test_rating_rule_takes_the_upper_part_of_the_scale(
    values: list[object], positive: str, neutral: tuple[str, ...]
) -> None:
    rule = rating_rule(pl.Series(values, strict=False))
    assert rule is not None
    assert (rule.positive, rule.neutral) == ((positive,), neutral)


@pytest.mark.parametrize("values", [[1, 1, 1], [0, 1, 1], [9.99, 4.5, 3.25], [1, 5, 500], ["a", "b"], [-3, 2, 5]])
def test_rating_rule_of_other_numbers_is_none(values: list[object]) -> None:
    assert rating_rule(pl.Series(values, strict=False)) is None


@pytest.mark.parametrize(
    ("name", "values", "unit"),
    [
        ("played_ratio_pct", [85, 18, 159], "percent"),
        ("watch_ratio", [0.4, 1.0, 2.1], "ratio"),
        ("watch_time", [12, 300], "s"),
        ("play_duration", [12_000, 300_000], "ms"),
        ("engagement_time_msec", [30_324, 5], "ms"),
        ("dwell", [3, 40], "s"),
        ("track_length_seconds", [195, 306], None),
        ("price", [1, 2], None),
        ("review_rate", [1, 2], None),
        ("view_time", ["2025-01-01", "2025-01-02"], None),
        ("watch_time", [-1, 5], None),
    ],
)
def test_dwell_column_is_found_by_name_and_range(name: str, values: list[object], unit: str | None) -> None:
    found = dwell_column(name, pl.Series(values, strict=False))
    assert (found.unit if found else None) == unit
