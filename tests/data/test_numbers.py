"""Numbers as people write them."""

from __future__ import annotations

import polars as pl
import pytest

from recloop.data.numbers import read_numbers


@pytest.mark.parametrize(
    ("texts", "separator", "numbers"),
    [
        (["1", "2.5", "-3", "1e2", ".5", " 7 ", "", None], ",", [1, 2.5, -3, 100, 0.5, 7, None, None]),
        (["3,50", "1.234,56", "1.234", "7"], ";", [3.5, 1234.56, 1234, 7]),
        (["3,50", "2.5"], ";", [3.5, None]),  # in a column of decimal commas 2.5 is neither
        (["1.5", "2"], ";", [1.5, 2]),
        (["1,234", "1,234.50", "7"], ",", [1234, 1234.5, 7]),
        (["3,50", "7"], ",", [3.5, 7]),
        (["1,234.50"], ";", [1234.5]),
        (["nan", "inf", "1e999", "0x1", "1_0", "€ 3", "--1", "1,2,3"], ",", [None] * 8),
    ],
)
def test_what_a_text_is_worth(texts: list[str | None], separator: str, numbers: list[float | None]) -> None:
    read, wrong, _ = read_numbers(pl.Series(texts, dtype=pl.String), separator)
    assert read.to_list() == numbers
    missing = [text is None or text == "" for text in texts]
    assert wrong.to_list() == [number is None and not gone for number, gone in zip(numbers, missing, strict=True)]


def test_the_decimal_comma_is_said() -> None:
    assert read_numbers(pl.Series(["1,5"]), ";")[2] == "decimal comma"
    assert read_numbers(pl.Series(["1.5"]), ";")[2] == ""


def test_typed_columns_keep_missing_and_refuse_infinity() -> None:
    read, wrong, _ = read_numbers(pl.Series([1.0, float("nan"), None, float("inf")]))
    assert read.to_list()[:3] == [1.0, None, None]
    assert wrong.to_list() == [False, False, False, True]
