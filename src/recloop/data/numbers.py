"""Number parsing: decimal points, decimal commas and thousands separators."""

from __future__ import annotations

import math
import re
from typing import Final

import polars as pl

THOUSANDS_COMMA: Final = r"^[+-]?\d{1,3}(,\d{3})+(\.\d+)?$"
THOUSANDS_POINT: Final = r"^[+-]?\d{1,3}(\.\d{3})+(,\d+)?$"
DECIMAL_COMMA: Final = r"^[+-]?\d+,\d+$"
PLAIN_NUMBER: Final = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
WHITE_SPACE: Final = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""Characters that Polars strips; Python strips the separators 0x1c to 0x1f too."""


def read_numbers(column: pl.Series, separator: str = ",") -> tuple[pl.Series, pl.Series, str]:
    """Parse a column as float64.

    In a file separated by semicolons, tabs or bars, a comma is a decimal comma. In a file separated by commas, ``1,234``
    has a thousands separator and ``3,50`` has a decimal comma.

    Returns:
        The numbers; (n,) Boolean, true where a value is not a number; the decimal style ("" for points).
    """
    if column.dtype != pl.String:
        numbers = column.cast(pl.Float64, strict=False).fill_nan(None)
        is_wrong = (column.is_not_null() & numbers.is_null()) if column.dtype.is_numeric() else column.is_not_null()
        if column.dtype.is_float():
            is_wrong = pl.Series([False]).new_from_index(0, len(column))  # NaN is how frames write a missing number
        return numbers, is_wrong | numbers.is_infinite().fill_null(False), ""
    text = column.str.strip_chars()
    text = pl.select(pl.when(text != "").then(text)).to_series()
    comma = text.str.contains(",", literal=True).fill_null(False)
    decimal_style = ""
    if comma.any():
        thousands = text.str.contains(THOUSANDS_COMMA).fill_null(False)
        decimals = comma & ~(thousands if separator == "," else thousands & text.str.contains(".", literal=True))
        if decimals.any():
            decimal_style = "decimal comma"
            normalized = text.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
            matches = text.str.contains(DECIMAL_COMMA) | text.str.contains(THOUSANDS_POINT)
            text = pl.select(
                pl.when(matches | ~text.str.contains(".", literal=True)).then(text).otherwise(pl.lit("?"))
            ).to_series()
        else:
            normalized = text.str.replace_all(",", "", literal=True)
            matches = thousands
        text = pl.select(pl.when(matches).then(normalized).otherwise(text)).to_series()
    numbers = pl.select(pl.when(text.str.contains(PLAIN_NUMBER)).then(text.cast(pl.Float64, strict=False))).to_series()
    numbers = pl.select(pl.when(numbers.is_finite()).then(numbers)).to_series()
    return numbers, text.is_not_null() & numbers.is_null(), decimal_style


def read_number(text: str) -> float | None:
    """Parse one posted text as in a JSON file; None if it is not a number.

    Equal to `read_numbers` of a column with this text and no separator, which costs a millisecond.
    """
    text = text.strip(WHITE_SPACE)
    if "," in text:
        has_point = "." in text
        if has_point and re.fullmatch(THOUSANDS_COMMA, text, re.ASCII):
            text = text.replace(",", "")
        elif re.fullmatch(DECIMAL_COMMA, text, re.ASCII) or re.fullmatch(THOUSANDS_POINT, text, re.ASCII):
            text = text.replace(".", "").replace(",", ".", 1)
    if not re.fullmatch(PLAIN_NUMBER, text, re.ASCII):
        return None
    number = float(text)
    return number if math.isfinite(number) else None
