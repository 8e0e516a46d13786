"""Meaning of numbers by name and range: ratings, play ratios and watch times."""

from __future__ import annotations

import re
from typing import Final, Literal, NamedTuple

import polars as pl

from recloop.data.numbers import read_numbers

MAX_STEPS: Final = 21
"""Largest number of different values of a rating, 0 to 10 in half steps."""
MIN_ZERO_SHARE: Final = 0.01
"""Share of zeros from which 0 means that the item is not rated."""
SAMPLE_ROWS: Final = 50_000
RATIO_WORDS: Final = {"ratio", "pct", "percent", "percentage", "share", "rate", "completion", "progress"}
TIME_WORDS: Final = {"time", "duration", "seconds", "sec", "secs", "ms", "msec", "millis", "engagement", "length"}
USE_WORDS: Final = {
    "played", "play", "playing", "watch", "watched", "watching", "listen", "listened", "listening", "dwell", "view", "viewing",
    "viewed", "read", "reading", "engagement", "spent", "stay", "streamed",
}  # fmt: skip
MILLISECOND_WORDS: Final = {"ms", "msec", "millis", "milliseconds"}
MAX_RATIO: Final = 10.0
"""Largest play ratio: ten times through the item."""
MAX_PERCENT: Final = 1_000.0
MAX_DWELL_SECONDS: Final = 86_400.0


class RatingRule(NamedTuple):
    """Conditions of ``[events]`` for a rating column."""

    positive: tuple[str, ...]
    neutral: tuple[str, ...]
    why: str


class DwellColumn(NamedTuple):
    """How long an item was used: unit, and factor to seconds (0 for a ratio)."""

    unit: Literal["percent", "ratio", "s", "ms"]
    seconds: float
    why: str


def rating_rule(values: pl.Series) -> RatingRule | None:
    """Return the conditions that turn ratings into preferences; None without ratings.

    On a scale to 5 (also in half steps) 4 and more is positive, on a scale to 10 it is 7 and more. A frequent 0 on a scale
    from 1 means that the item is not rated.

    Args:
        values: Column of numbers or texts; a sample is enough if it has the whole scale.
    """
    numbers = _numbers(values)
    if numbers is None:
        return None
    steps = numbers.unique().sort()
    low, high = float(steps[0]), float(steps[-1])
    is_scale = len(steps) <= MAX_STEPS and bool((steps * 2 == (steps * 2).round()).all()) and low >= 0
    if not is_scale or not 3 <= high <= 10 or len(steps) < 3:
        return None
    zero_share = float((numbers == 0).sum()) / len(numbers)
    smallest = float(steps.filter(steps > 0)[0])
    is_unrated = zero_share >= MIN_ZERO_SHARE and smallest >= 1
    threshold = 4 if high <= 5 else 7
    top = 5 if high <= 5 else 10
    share = float((numbers >= threshold).sum()) / len(numbers)
    why = f"ratings up to {top}: {threshold} and more is a preference ({share:.0%} of the rows)"
    if is_unrated:
        why += f"; 0 means not rated ({zero_share:.0%} of the rows)"
    return RatingRule((f"value >= {threshold}",), ("value = 0",) if is_unrated else (), why)


def dwell_column(name: str, values: pl.Series) -> DwellColumn | None:
    """Return how a column measures the use of an item; None if it does not.

    Both the name (``played_ratio_pct``, ``watch_time``, ``play_duration``) and the range must fit. The length of the item
    itself, such as ``track_length_seconds``, is not a dwell.
    """
    words = set(re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()))
    if name.lower() in ("playtime", "watchtime", "dwelltime", "listentime"):
        words = {"play", "time"}
    is_use = bool(words & USE_WORDS)
    is_ratio = bool(words & RATIO_WORDS)
    if not is_use or not (is_ratio or words & TIME_WORDS or "dwell" in words):
        return None
    numbers = _numbers(values)
    if numbers is None or float(numbers.min() or 0) < 0:  # type: ignore[arg-type]
        return None
    high = float(numbers.quantile(0.99) or 0)
    if is_ratio:
        if high <= MAX_RATIO and not words & {"pct", "percent", "percentage"}:
            return DwellColumn("ratio", 0.0, f"{name} is the share of the item that was used (0 .. {high:g})")
        if high <= MAX_PERCENT:
            return DwellColumn("percent", 0.0, f"{name} is the used share of the item in percent (0 .. {high:g})")
        return None
    if words & MILLISECOND_WORDS or (not words & {"seconds", "sec", "secs"} and high > MAX_DWELL_SECONDS):
        return DwellColumn("ms", 0.001, f"{name} is the time of use in milliseconds (99 % up to {high:g})")
    if high <= MAX_DWELL_SECONDS:
        return DwellColumn("s", 1.0, f"{name} is the time of use in seconds (99 % up to {high:g})")
    return None


def _numbers(values: pl.Series) -> pl.Series | None:
    """Filled numbers of a column; None for other values or fewer than two numbers."""
    sample = values.drop_nulls()
    if len(sample) > SAMPLE_ROWS:
        sample = sample.gather_every(-(-len(sample) // SAMPLE_ROWS))
    if not (sample.dtype == pl.String or sample.dtype.is_numeric()):
        return None
    numbers, is_wrong, _ = read_numbers(sample, ";")
    numbers = numbers.drop_nulls()
    return None if is_wrong.any() or len(numbers) < 2 else numbers
