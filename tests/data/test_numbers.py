"""Numbers in texts: separators, decimal commas and invalid values."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.data.numbers import read_number, read_numbers


@pytest.mark.parametrize(
    ("texts", "separator", "numbers"),
    [
        (["1", "2.5", "-3", "1e2", ".5", " 7 ", "", None], ",", [1, 2.5, -3, 100, 0.5, 7, None, None]),
        (["3,50", "1.234,56", "1.234", "7"], ";", [3.5, 1234.56, 1234, 7]),
        (["3,50", "2.5"], ";", [3.5, None]),  # invalid in a column with decimal commas
        (["1.5", "2"], ";", [1.5, 2]),
        (["1,234", "1,234.50", "7"], ",", [1234, 1234.5, 7]),
        (["3,50", "7"], ",", [3.5, 7]),
        (["1,234.50"], ";", [1234.5]),
        (["nan", "inf", "1e999", "0x1", "1_0", "€ 3", "--1", "1,2,3"], ",", [None] * 8),
    ],
)
def test_read_numbers_parses_texts_by_separator(
    texts: list[str | None], separator: str, numbers: list[float | None]
) -> None:
    read, wrong, _ = read_numbers(pl.Series(texts, dtype=pl.String), separator)
    assert read.to_list() == numbers
    missing = [text is None or text == "" for text in texts]
    assert wrong.to_list() == [number is None and not gone for number, gone in zip(numbers, missing, strict=True)]


def test_read_numbers_reports_a_decimal_comma() -> None:
    assert read_numbers(pl.Series(["1,5"]), ";")[2] == "decimal comma"
    assert read_numbers(pl.Series(["1.5"]), ";")[2] == ""


def test_read_numbers_of_typed_columns_keeps_nulls_and_rejects_infinity() -> None:
    read, wrong, _ = read_numbers(pl.Series([1.0, float("nan"), None, float("inf")]))
    assert read.to_list()[:3] == [1.0, None, None]
    assert wrong.to_list() == [False, False, False, True]


NUMBERLIKE = st.one_of(
    st.text(alphabet="0123456789.,+-eE \x1c\u2003\u0663", max_size=12),
    st.from_regex(r"\A[+-]?[0-9]{1,3}([.,][0-9]{3}){0,3}([.,][0-9]{0,3})?\Z"),
    st.floats().map(repr),
)


@given(NUMBERLIKE)
def test_read_number_equals_a_column_of_one_text(text: str) -> None:
    numbers, _, _ = read_numbers(pl.Series([text], dtype=pl.String), "")
    assert read_number(text) == numbers[0]
