"""Values of a column that are filled in."""

from __future__ import annotations

import polars as pl


def filled_texts(column: pl.Series) -> pl.Series:
    """Return the values as text without blanks around them; empty ones are left out."""
    texts = column.cast(pl.String).str.strip_chars().drop_nulls()
    return texts.filter(texts != "")
