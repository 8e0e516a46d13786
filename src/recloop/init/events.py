"""Guess ``[events]``: the meaning of event types, ratings and outcomes."""

from __future__ import annotations

import re
from typing import Final

import polars as pl

from recloop.config import Events
from recloop.init.event_names import Meaning, meaning_of, numeric_meanings, partner
from recloop.init.names import OUTCOME_NAMES, leaf, normalize_name
from recloop.init.value_rules import DwellColumn, dwell_column, rating_rule
from recloop.records import ANY_TARGET, DEFAULT_EVENT_TYPE, EVENT_TYPE, VALUE

PURCHASE_WEIGHT: Final = 5.0
STRONG_WEIGHT: Final = 3.0
WEAK_WEIGHT: Final = 1.0
"""Default weights of a purchase, of a cart or like, and of a view."""
SHORT_USES: Final = {"percent": 10.0, "ratio": 0.1, "s": 3.0, "ms": 3_000.0}
"""Use of an item below which it was skipped, by unit."""
MIN_STRONG_SHARE: Final = 0.01
"""Share of strong rows from which strong types are the only targets and views are history."""


def guess_events(frame: pl.DataFrame, names: dict[str, str]) -> tuple[Events, str]:
    """Guess ``[events]`` from types, ratings, times of use and outcomes.

    The reason is returned too.
    """
    dwell = dwell_column(leaf(names[VALUE]), frame[VALUE]) if names[VALUE] else None
    if names[EVENT_TYPE]:
        counts = frame.group_by(EVENT_TYPE).len().sort(["len", EVENT_TYPE], descending=[True, False])
        events, why = _of_types(dict(counts.iter_rows()))
        return _with_short_uses(events, why, dwell)
    if normalize_name(names[VALUE]) in OUTCOME_NAMES:
        events = Events(positive=("value = 1",), negative=(), neutral=("value = 0",))
        return events, f"{names[VALUE]} is 0 or 1: an impression without effect is neutral"
    rating = rating_rule(frame[VALUE]) if names[VALUE] and not dwell else None
    if rating is not None and is_rating_name(names[VALUE]):
        low = rating.positive[0].replace(">=", "<")
        events = Events(positive=rating.positive, neutral=rating.neutral, history=(low,))
        return events, f"{rating.why}; a lower one is history, so the item is not shown again"
    events = Events(positive=(DEFAULT_EVENT_TYPE,))
    why = f"no event types: every row is {DEFAULT_EVENT_TYPE}; a posted type without a rule is neutral"
    return _with_short_uses(events, why, dwell)


def is_rating_name(name: str) -> bool:
    """True for columns such as ``rating``, ``stars`` and, without a header, ``c3``."""
    return re.fullmatch(r"c\d+", name) is not None or normalize_name(leaf(name)) in {
        "rating",
        "stars",
        "score",
        "overall",
    }


def _with_short_uses(events: Events, why: str, dwell: DwellColumn | None) -> tuple[Events, str]:
    """Make a use of a few seconds, or of a tenth of the item, neutral."""
    if dwell is None:
        return events, why
    shortest = SHORT_USES[dwell.unit]
    rule = f"value < {shortest:g}"
    return events.model_copy(
        update={"neutral": (*events.neutral, rule)}
    ), f"{why}; {dwell.why}: {rule} is a skip, neutral"


def _of_types(counts: dict[str, int]) -> tuple[Events, str]:
    """``[events]`` for row counts by type, most frequent first, and the reason."""
    types_by_meaning: dict[Meaning, list[str]] = {meaning: [] for meaning in Meaning}
    codes = numeric_meanings(counts)
    for name in counts:
        types_by_meaning[codes.get(name) or meaning_of(name)].append(name)
    undo, unpaired = _undo(types_by_meaning, list(counts))
    purchases = types_by_meaning[Meaning.PURCHASE]
    strong_types = types_by_meaning[Meaning.STRONG]
    views = types_by_meaning[Meaning.WEAK]
    n_strong = sum(counts[name] for name in purchases + strong_types)
    weighted_types = [(name, PURCHASE_WEIGHT) for name in purchases] + [(name, STRONG_WEIGHT) for name in strong_types]
    positive: list[str] = []
    history: list[str] = []
    neutral = types_by_meaning[Meaning.SHOWN] + unpaired + types_by_meaning[Meaning.OTHER]
    why = "by their names"
    if n_strong >= MIN_STRONG_SHARE * sum(counts.values()) and views:
        weighted_types += [(name, WEAK_WEIGHT) for name in views]
        history = views
        why = f"{(purchases + strong_types)[0]} is the target to predict; {views[0]} is history that the models see"
    elif views:
        weighted_types += [(name, WEAK_WEIGHT) for name in views]
        why = "views are the strongest signal here"
    if not weighted_types and types_by_meaning[Meaning.OTHER]:
        positive, neutral = types_by_meaning[Meaning.OTHER], types_by_meaning[Meaning.SHOWN] + unpaired
        why = "types of unknown meaning are positive: check them"
    elif not weighted_types:
        why = "no positive type found: set events.positive"
    elif not purchases and not history:  # equal weights are not written
        positive, weighted_types = [name for name, _ in weighted_types], []
    if codes:
        why = "codes of Tianchi data sets: 1 view, 2 favorite, 3 cart, 4 purchase; check them"
    texts = [tuple(map(_text, names)) for names in (positive, types_by_meaning[Meaning.NEGATIVE], neutral, history)]
    weights = {_text(name): weight for name, weight in weighted_types}
    return Events(
        positive=texts[0], negative=texts[1], neutral=texts[2], history=texts[3], weights=weights, undo=undo
    ), why


def _undo(types_by_meaning: dict[Meaning, list[str]], types: list[str]) -> tuple[dict[str, str], list[str]]:
    """``events.undo``, and the neutral undo types without a matching type in the log."""
    undo = dict(Events().undo)
    unpaired = []
    for meaning in (Meaning.RETURN, Meaning.UNDO):
        for name in types_by_meaning[meaning]:
            reversed_type = partner(name, meaning, types) or (ANY_TARGET if meaning is Meaning.RETURN else "")
            if reversed_type:
                undo[_text(name)] = reversed_type
            else:
                unpaired.append(name)
    return undo, unpaired


def _text(name: str) -> str:
    """Entry of ``[events]`` for a type.

    It is the name, or a condition if the name has spaces or signs.
    """
    if re.fullmatch(r"[\w.:-]+", name):
        return name
    quoted = name.replace("'", "''")
    return f"event_type = '{quoted}'"
