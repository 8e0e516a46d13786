"""Guess the columns of a file without a header by their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl

from recloop.init.columns import ANONYMOUS_ID, MAX_TYPES, ColumnGuess, is_function, known_share, reading_of
from recloop.init.filled_values import filled_texts
from recloop.records import EVENT_ID, EVENT_TYPE, GROUP_ID, ITEM_ID, QUANTITY, TIMESTAMP, USER_ID, VALUE

CONFIDENCE: Final = 0.6
"""Confidence of a guess without a name."""
MAX_RATING: Final = 10.0
NONE: Final = ColumnGuess("", "no such column")


def guess_headless(frame: pl.DataFrame, cell: str = "") -> dict[str, ColumnGuess]:
    """Guess by content; ``cell`` is a column that was expanded to one item per row."""
    texts = {name: filled_texts(frame[name]) for name in frame.columns}
    left = [name for name in frame.columns if len(texts[name])]

    def take(name: str, why: str) -> ColumnGuess:
        left.remove(name)
        return ColumnGuess(name, why, CONFIDENCE)

    stamp = next((name for name in left if name != cell and _is_time(texts[name])), "")
    guesses = dict.fromkeys((USER_ID, ANONYMOUS_ID, ITEM_ID, EVENT_TYPE, GROUP_ID, EVENT_ID, QUANTITY, VALUE), NONE)
    guesses[TIMESTAMP] = take(stamp, "its values are times") if stamp else ColumnGuess("", "no column holds times", 0.0)
    kind = next((name for name in left if texts[name].n_unique() <= MAX_TYPES and known_share(texts[name]) > 0.5), "")
    if kind:
        guesses[EVENT_TYPE] = take(kind, "its values name events")
    ids = [name for name in left if name != cell and _is_id(texts[name], len(frame), bool(cell))]
    rating = next((name for name in reversed(ids[2:]) if _is_rating(texts[name])), "")
    if rating:
        ids.remove(rating)
        guesses[VALUE] = take(rating, "a few small numbers: a rating")
    if cell:
        left.remove(cell)
        guesses[ITEM_ID] = ColumnGuess(cell, "its cells held several items", 0.9)
        unique = next(
            (name for name in ids if texts[name].n_unique() == frame[cell].len() or _is_key(frame, name, stamp)), ""
        )
        if unique:
            ids.remove(unique)
            guesses[GROUP_ID] = take(unique, "one value per line")
    if not ids:
        return {**guesses, USER_ID: ColumnGuess("", "no column repeats like an id", 0.0)}
    guesses[USER_ID] = take(ids[0], "the first column of ids")
    if not cell:
        item = _finest(frame, ids[1:])
        guesses[ITEM_ID] = take(item, "ids that repeat") if item else ColumnGuess("", "no second column of ids", 0.0)
    return guesses


def _is_time(texts: pl.Series) -> bool:
    reading = reading_of(texts)
    return reading is not None and reading.is_absolute and reading.is_likely and reading.unit != "days"


def _is_id(texts: pl.Series, size: int, expanded: bool) -> bool:
    """True if a column repeats and its cells have no blanks or decimals."""
    n_unique = texts.n_unique()
    if n_unique < 2 or len(texts) < 0.5 * size or (n_unique == size and not expanded):
        return False
    return not float(texts.str.contains(r"\s|^-?\d+[.,]\d+$").sum()) > 0.05 * len(texts)


def _is_rating(texts: pl.Series) -> bool:
    numbers = texts.cast(pl.Float64, strict=False)
    low, high = numbers.min(), numbers.max()
    return (
        not numbers.null_count()
        and numbers.n_unique() <= 11
        and isinstance(low, float)
        and isinstance(high, float)
        and 0 <= low <= high <= MAX_RATING
    )


def _is_key(frame: pl.DataFrame, name: str, stamp: str) -> bool:
    """True if a column has one time per value and as many values as times."""
    return bool(stamp) and is_function(frame, name, stamp, 1.0) and frame[name].n_unique() >= frame[stamp].n_unique()


def _finest(frame: pl.DataFrame, names: Sequence[str]) -> str:
    """Column that determines another, such as the item beside its category."""
    for name in sorted(names, key=lambda name: -frame[name].n_unique()):
        if any(other != name and is_function(frame, name, other, 0.98) for other in names):
            return name
    return names[0] if names else ""
