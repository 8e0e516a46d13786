"""Column detection for log files: values decide, names propose."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import polars as pl

from recloop.data.numbers import read_numbers
from recloop.data.shape import MISSING_GROUPS
from recloop.data.timestamps.offset import read_offsets
from recloop.data.timestamps.readings import Reading, plausible_readings
from recloop.init.event_names import Meaning, meaning_of
from recloop.init.names import (
    DEVICE_WORDS,
    ID_WORDS,
    ORDER_NAMES,
    OUTCOME_NAMES,
    TITLE_NAMES,
    leaf,
    name_score,
    normalize_name,
    ranked,
    words_of,
)
from recloop.init.value_rules import dwell_column
from recloop.records import DAY, EVENT_ID, EVENT_TYPE, GROUP_ID, ITEM_ID, QUANTITY, TIMESTAMP, USER_ID, VALUE

ANONYMOUS_ID: Final = "anonymous_id"
TIME_OFFSET: Final = "time_offset"
MAX_TYPES: Final = 50
MIN_UNIQUE_ROWS: Final = 50
"""Number of rows below which an item column may contain each item only once."""
SAMPLE_ROWS: Final = 2_000
MIN_TIME_SHARE: Final = 0.9
"""Share of filled cells that must be times."""
OFFSET_WORDS: Final = frozenset(
    ["time", "timeframe", "clock", "hour", "uhrzeit", "uhr", "heure", "hora", "ora", "zeit", "时间"]
)
"""Words of columns with a time of day."""
MIN_CONFIDENCE: Final = 0.5
"""Confidence below which `init` asks on a terminal and refuses in a script."""
CLOSE_TIME_SCORE: Final = 0.08
"""Difference of scores below which two time columns are equally likely."""
MIN_NAME_SCORE: Final = 0.3
"""Score of a name from which it can be the field's."""
CLOSE_SCORE: Final = 0.04
"""Difference of scores below which two columns are equally likely."""


class ColumnGuess(NamedTuple):
    """Detected column ("" for none) with its reason.

    ``fallback`` names the columns that fill its blank cells. ``orders_rows``: numbers that replace a missing time.
    """

    name: str
    why: str
    confidence: float = 1.0
    fallback: tuple[str, ...] = ()
    orders_rows: bool = False


class Candidate(NamedTuple):
    """Candidate of a field with its score and the share of filled rows."""

    name: str
    score: float
    filled: float
    why: str


def guess_columns(frame: pl.DataFrame, separator: str, others: Mapping[str, Sequence[str]]) -> dict[str, ColumnGuess]:
    """Guess the columns of an event log.

    Args:
        frame: The rows or a sample of them.
        separator: Separator of the file, for decimal commas.
        others: Columns of the items file by ``item_id`` and of the users file by ``user_id``; a shared column is an id.

    Returns:
        Guess by our column; its name is "" if none was found.
    """
    guesses: dict[str, ColumnGuess] = {}

    def free() -> list[str]:
        used = {guess.name for guess in guesses.values()}
        return [name for name in frame.columns if name not in used]

    guesses[USER_ID], guesses[ANONYMOUS_ID] = _user(frame, free(), others.get(USER_ID, ()))
    guesses[ITEM_ID] = _item(frame, free(), others.get(ITEM_ID, ()))
    guesses[TIMESTAMP] = _time(frame, free())
    if guesses[TIMESTAMP].name:
        guesses[TIME_OFFSET] = time_offset(frame, guesses[TIMESTAMP].name, free())
    guesses[EVENT_TYPE] = _event_type(frame, free())
    guesses[GROUP_ID] = _first(GROUP_ID, free(), lambda name: _groups(frame, name, guesses[USER_ID].name))
    several = "[]" in guesses[ITEM_ID].name  # rows of one record share its event_id
    guesses[EVENT_ID] = _first(EVENT_ID, free(), lambda name: _unique(frame[name], several))
    for field in (QUANTITY, VALUE):
        guesses[field] = _first(field, free(), lambda name: is_numeric(frame[name], separator))
    if not guesses[VALUE].name:
        used = next((name for name in free() if dwell_column(leaf(name), frame[name]) is not None), "")
        guesses[VALUE] = ColumnGuess(used, "how long the item was used") if used else guesses[VALUE]
    if not guesses[VALUE].name:
        candidates = (name for name in free() if normalize_name(name) in OUTCOME_NAMES)
        outcome = next((name for name in candidates if _is_outcome(frame[name], separator)), "")
        guesses[VALUE] = ColumnGuess(outcome, "0 and 1: the outcome of an impression") if outcome else guesses[VALUE]
    return guesses


# -- ids


def _user(frame: pl.DataFrame, names: Sequence[str], other_columns: Sequence[str]) -> tuple[ColumnGuess, ColumnGuess]:
    """User column, and the column of ids that are known before a login."""
    none = ColumnGuess("", "no such column")
    candidates = _id_candidates(USER_ID, frame, names, other_columns)
    if not candidates:
        return ColumnGuess("", "no column has such a name", 0.0), none
    devices = [one for one in candidates if set(words_of(leaf(one.name))) & DEVICE_WORDS]
    logins = [one for one in candidates if one not in devices and one.score >= 0.3]
    if devices and logins and logins[0].filled < 0.9 and devices[0].filled > logins[0].filled:
        user, device = logins[0], devices[0]
        why = f"a login, filled in {user.filled:.0%} of the rows; otherwise {device.name}"
        return ColumnGuess(user.name, why), ColumnGuess(
            device.name, f"known before a login, filled in {device.filled:.0%}"
        )
    return _chosen(candidates, frame), none


def _item(frame: pl.DataFrame, names: Sequence[str], other_columns: Sequence[str]) -> ColumnGuess:
    candidates = _id_candidates(ITEM_ID, frame, names, other_columns)
    if not candidates:
        return ColumnGuess("", "no column has such a name", 0.0)
    guess = _chosen(candidates, frame)
    same_key = [one for one in candidates if leaf(one.name) == leaf(guess.name) and one.name != guess.name]
    if same_key and missing_share(frame[guess.name]) > 0:
        return guess._replace(fallback=tuple(one.name for one in same_key))
    blank = _blank(frame[guess.name])
    if 0 < mean_of(blank) < 1:
        rows = frame.filter(blank)
        titles = [name for name in names if normalize_name(leaf(name)) in TITLE_NAMES]
        title = next(
            (name for name in titles if missing_share(rows[name]) < 0.1 and is_function(frame, guess.name, name)), ""
        )
        if title:
            why = f"{guess.why}; {title} where it is blank ({mean_of(blank):.1%} of the rows)"
            return guess._replace(why=why, fallback=(title,))
    return guess


def _id_candidates(
    field: str, frame: pl.DataFrame, names: Sequence[str], other_columns: Sequence[str]
) -> list[Candidate]:
    """Candidates of an id column, best first."""
    found = []
    for name in names:
        column = frame[name]
        filled = 1 - missing_share(column)
        score = name_score(field, name)
        shared = name in other_columns
        if not filled or (score < 0.3 and not shared) or _is_list(column):
            continue
        if not set(words_of(leaf(name))) & ID_WORDS and _is_measure(column):
            continue
        reasons = ["its name"] if score >= 0.3 else []
        if shared:
            score += 0.6
            reasons.append("the other file has it too")
        score -= 0.6 * (1 - filled) + 0.2 * (filled < 0.9)
        size = len(column)
        n_unique = column.n_unique()
        if size >= MIN_UNIQUE_ROWS and field == ITEM_ID and n_unique == size:
            score -= 0.6
        if size >= MIN_UNIQUE_ROWS and n_unique <= 1 + (filled < 1):
            score -= 0.2
        found.append(Candidate(name, score, filled, ", and ".join(reasons)))
    named = [one for one in found if name_score(field, one.name) >= MIN_NAME_SCORE]
    return sorted(named or found, key=lambda one: -one.score)


def _chosen(candidates: Sequence[Candidate], frame: pl.DataFrame) -> ColumnGuess:
    """Best candidate.

    The reason names a column that has a better name and worse values.
    """
    best = candidates[0]
    rivals = [one for one in candidates[1:] if one.filled and not _same_ids(frame, best.name, one.name)]
    confidence = min(1.0, 0.5 + max(0.0, best.score - 0.4) / 2)
    why = best.why
    by_name = sorted((one.name for one in candidates), key=lambda name: -_any_score(name))
    better = next((name for name in by_name if name != best.name and _any_score(name) > _any_score(best.name)), "")
    if better:
        size = len(frame)
        if frame[better].n_unique() == size >= MIN_UNIQUE_ROWS:
            why += f"; {better} never repeats in {size:,} rows, {best.name} has {frame[best.name].n_unique():,} values"
        elif missing_share(frame[better]) > 0:
            why += f"; {better} is empty in {missing_share(frame[better]):.1%} of the rows"
    if rivals and best.score - rivals[0].score < CLOSE_SCORE and leaf(rivals[0].name) != leaf(best.name):
        why += f"; {rivals[0].name} is as likely"
        confidence = 0.4
    return ColumnGuess(best.name, why, round(confidence, 2))


def _any_score(name: str) -> float:
    return max(name_score(field, name) for field in (USER_ID, ITEM_ID))


def _same_ids(frame: pl.DataFrame, left: str, right: str) -> bool:
    """True if each value of one column has one value of the other."""
    return is_function(frame, left, right) or is_function(frame, right, left)


def is_function(frame: pl.DataFrame, key: str, name: str, min_share: float = 0.95) -> bool:
    """True if a column has one value per key for nearly all keys."""
    return function_share(frame, key, name) >= min_share


def function_share(frame: pl.DataFrame, key: str, name: str) -> float:
    """Share of the keys with one value of a column; blank cells are ignored."""
    rows = frame.select(pl.col(key).cast(pl.String).alias("key"), pl.col(name).cast(pl.String).alias("value"))
    rows = rows.filter((pl.col("key") != "") & (pl.col("value") != ""))
    return mean_of(rows.group_by("key").agg(pl.col("value").n_unique())["value"] == 1)


# -- time, types and numbers


def _time(frame: pl.DataFrame, names: Sequence[str]) -> ColumnGuess:
    found = []
    readings: dict[str, Reading] = {}
    for name in names:
        reading = reading_of(frame[name])
        if reading is None:
            continue
        score = name_score(TIMESTAMP, name)
        is_date = reading.unit == "iso"
        if (score < 0.3 and not is_date) or (score <= 0.1 and not reading.is_absolute):
            continue
        readings[name] = reading
        filled = 1 - missing_share(frame[name])
        score += 0.2 * reading.is_absolute + 0.15 * reading.has_clock - 0.8 * (1 - filled)
        why = "its name, and it holds times" if name_score(TIMESTAMP, name) > 0.3 else "it holds times"
        found.append(Candidate(name, score, filled, why))
    found.sort(key=lambda one: -one.score)
    if found:
        best = found[0].name
        others = ", ".join(one.name for one in found[1:4])
        why = f"{found[0].why}: {readings[best].form}" + (f"; others: {others}" if others else "")
        for other in found[1:]:
            if found[0].score - other.score < CLOSE_TIME_SCORE and _disagree(readings[best], readings[other.name]):
                return ColumnGuess(best, f"{why}; {other.name} is as likely and has other times", 0.4)
        return ColumnGuess(best, why)
    for name in names:
        if normalize_name(name) in ORDER_NAMES and is_numeric(frame[name], ","):
            return ColumnGuess(name, "no time; it numbers the rows", 0.6, orders_rows=True)
    return ColumnGuess("", "no column has such a name and holds times", 0.0)


def _disagree(left: Reading, right: Reading) -> bool:
    """True if two columns begin or end more than a day apart."""
    return abs(left.first - right.first) > DAY or abs(left.last - right.last) > DAY


def time_offset(frame: pl.DataFrame, time: str, names: Sequence[str]) -> ColumnGuess:
    """Column with the time of day, if the time column holds dates only."""
    reading = reading_of(frame[time])
    if reading is not None and not reading.has_clock:
        for name in names:
            values, is_wrong = read_offsets(frame[name])
            named = set(words_of(leaf(name))) & OFFSET_WORDS
            if named and mean_of(is_wrong) < 0.02 and values.n_unique() > 2 and not is_blank(frame[name]):
                return ColumnGuess(name, f"{time} holds dates, {name} the time of day", 0.8)
    return ColumnGuess("", "no such column")


def reading_of(column: pl.Series) -> Reading | None:
    """Most plausible reading of a column as time; None if few of its values are times."""
    readings = plausible_readings(column.drop_nulls().head(SAMPLE_ROWS))
    return readings[0] if readings and readings[0].share >= MIN_TIME_SHARE else None


def _event_type(frame: pl.DataFrame, names: Sequence[str]) -> ColumnGuess:
    """Column with few texts, most of which name an event."""
    best = ColumnGuess("", "no such column")
    best_score = 0.0
    for name in names:
        score = name_score(EVENT_TYPE, name)
        if score < 0.3 or not _types(frame[name]):
            continue
        known = known_share(frame[name])
        exact = normalize_name(leaf(name)) in ("eventtype", "eventname", "event", "action")
        if known < 0.2 and not exact and score < 0.85:
            continue
        if score + known > best_score:
            best_score = score + known
            values = ", ".join(frame[name].cast(pl.String).drop_nulls().unique(maintain_order=True).head(3).to_list())
            best = ColumnGuess(name, f"its name; {values}" if known else "its name")
    return best


def known_share(column: pl.Series) -> float:
    """Share of rows whose value names a known event."""
    counts = column.cast(pl.String).drop_nulls().value_counts()
    total = int(counts["count"].sum() or 0)
    known = sum(count for name, count in counts.iter_rows() if name and meaning_of(name) is not Meaning.OTHER)
    return known / total if total else 0.0


def _first(field: str, names: Sequence[str], accepts: Callable[[str], bool]) -> ColumnGuess:
    for name in ranked(field, names):
        if accepts(name):
            same_key = tuple(other for other in names if other != name and leaf(other) == leaf(name) != other)
            return ColumnGuess(name, "its name", fallback=same_key)
    return ColumnGuess("", "no such column")


def _groups(frame: pl.DataFrame, name: str, user: str) -> bool:
    """True if rows share values of a column and nearly all sharing rows have one user."""
    if not user:
        return False
    rows = frame.select(pl.col(name).cast(pl.String).alias("group"), pl.col(user).cast(pl.String).alias("user"))
    rows = rows.filter(~pl.col("group").fill_null("").is_in(MISSING_GROUPS) & (pl.col("user").fill_null("") != ""))
    values = rows["group"].n_unique()
    if values <= 1 or values > 0.98 * len(rows):
        return False
    pairs = rows.select(pl.struct("group", "user").n_unique()).item()
    return bool(pairs <= 1.05 * values + 1)


def _types(column: pl.Series) -> bool:
    """True if a column has few distinct values; a single value counts too."""
    return not is_blank(column) and not column.dtype.is_nested() and column.n_unique() <= MAX_TYPES


def _unique(column: pl.Series, several: bool = False) -> bool:
    """True if each value is in one row or, with ``several``, in consecutive rows."""
    if missing_share(column) > 0 or len(column) < 2 or column.dtype.is_nested():
        return False
    n_runs = 1 + int((column != column.shift()).sum())
    return column.n_unique() == (n_runs if several else len(column))


def is_numeric(column: pl.Series, separator: str) -> bool:
    """True if nearly all filled cells of a column are numbers."""
    if column.dtype.is_numeric():
        return True
    if column.dtype != pl.String:
        return False
    numbers, wrong, _ = read_numbers(column.head(SAMPLE_ROWS * 10), separator)
    return numbers.null_count() < len(numbers) and mean_of(wrong) < 0.02


def _is_outcome(column: pl.Series, separator: str) -> bool:
    if not is_numeric(column, separator):
        return False
    numbers = column if column.dtype.is_numeric() else read_numbers(column, separator)[0]
    return set(numbers.drop_nulls().unique().to_list()) == {0, 1}


# -- cells


def _is_list(column: pl.Series) -> bool:
    return column.dtype.is_nested() or (
        column.dtype == pl.String and mean_of(column.str.contains(r"^\s*[\[{]")) > 1 / 3
    )


def _is_measure(column: pl.Series) -> bool:
    """True for decimals and dates, which are not ids."""
    if column.dtype.is_temporal():
        return True
    texts = column.drop_nulls().head(SAMPLE_ROWS).cast(pl.String)
    texts = texts.filter(texts != "")
    decimals = mean_of(texts.str.contains(r"^-?\d+[.,]\d*[1-9]\d*$"))
    dates = mean_of(texts.str.contains(r"^\d{4}[-/.]\d{1,2}[-/.]\d{1,2}"))
    return len(texts) > 0 and (decimals > 0.5 or dates > 0.5)


def is_blank(column: pl.Series) -> bool:
    """True if all rows of a column are empty."""
    return missing_share(column) == 1


def holds_several(name: str, column: pl.Series) -> bool:
    """True if a column named like items has a list separator in a third of its cells."""
    if column.dtype != pl.String or not re.search(r"item|product|article|goods", normalize_name(name)):
        return False
    return mean_of(column.str.contains(r"\S\s*[,;|]\s*\S")) > 1 / 3


def _blank(column: pl.Series) -> pl.Series:
    return column.is_null() if column.dtype != pl.String else column.fill_null("").str.strip_chars() == ""


def missing_share(column: pl.Series) -> float:
    """Share of blank cells."""
    return mean_of(_blank(column))


def mean_of(column: pl.Series) -> float:
    """Mean of numbers, or share of true values; 0 for an empty column."""
    mean = column.mean()
    assert mean is None or isinstance(mean, float)
    return mean or 0.0
