"""What an event means and whether it is believed: the one judgement for training, state and the write path.

An event's *label* comes from ``[events]``: rules are asked in the order weights, neutral, negative, positive, and the
first match decides (definitions, section 5). An event is *believed* unless a causal rule takes it, a rule that needs
nothing but the rows of its user learned before it: so the same function runs in ``prepare`` and on arrival.
"""

from __future__ import annotations

import re

import numpy as np
import polars as pl

from recloop import rules
from recloop.config import Burst, Clean, Events
from recloop.records import EVENT_SCHEMA, EVENT_TYPE, GROUP_ID, LABEL, SECOND, TIMESTAMP, USER_ID, WEIGHT

CONDITION_COLUMNS = {
    name: EVENT_SCHEMA[name]
    for name in (
        "event_type", "value", "quantity", "group_id", "placement", "user_id", "item_id", "timestamp", "session_id",
    )
}  # fmt: skip
"""Fields of an event that a condition may name, and their types."""

UNHURRIED = ("purchase", "order", "rating")
"""Event types that never count for the burst rule: a checkout writes many rows at once."""


def matcher(text: str, key: str) -> pl.Expr:
    """The test of one entry of ``[events]``: ``*``, an event type, or a condition over the row's fields."""
    if text == "*":
        return pl.lit(True)
    if re.fullmatch(r"[\w.:-]+", text):
        return pl.col(EVENT_TYPE) == text
    return rules.parse(text, CONDITION_COLUMNS, key).expr


class Signal:
    """The event classes and causal rules of one spec, compiled once.

    Raises:
        UserError: a condition that does not parse or names a field that an event has not.
    """

    def __init__(self, events: Events, clean: Clean) -> None:
        self._clean = clean
        self._keep = rules.parse(clean.keep, CONDITION_COLUMNS, "clean.keep").expr if clean.keep.strip() else None
        classes: list[tuple[pl.Expr, int, float]] = []
        for text, weight in events.weights.items():
            sign = int(np.sign(weight))
            classes.append((matcher(text, f"events.weights.{text}"), sign, abs(weight)))
        for name, label in (("neutral", 0), ("negative", -1), ("positive", 1)):
            key = f"events.{name}"
            classes += [(matcher(text, key), label, float(abs(label))) for text in getattr(events, name)]
        self._label, self._weight = _first_match(classes)

    def label(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The frame with ``label`` (-1, 0, 1) and ``weight``; a type that no rule names is neutral."""
        return frame.with_columns(self._label.alias(LABEL), self._weight.alias(WEIGHT))

    def believe(self, frame: pl.DataFrame, earlier: pl.DataFrame | None = None) -> pl.Series:
        """The causal rule that takes each row, or null: the row is believed.

        Args:
            frame: Rows in the order of their seq.
            earlier: Rows of the same users with smaller seq (on arrival: those of the last seconds are enough).
        """
        rule = pl.Series("rule", [None] * len(frame), dtype=pl.String)
        if self._clean.burst != "off":
            columns = [USER_ID, TIMESTAMP, GROUP_ID, EVENT_TYPE]
            rows = frame.select(columns)
            before = 0
            if earlier is not None and len(earlier):
                before = len(earlier)
                rows = pl.concat([earlier.select(columns), rows])
            hurried = bursts(rows, self._clean.burst)[before:]
            rule = pl.select(
                pl.when(pl.Series(hurried)).then(pl.lit("burst")).otherwise(rule).alias("rule")
            ).to_series()
        if self._keep is not None and len(frame):
            kept = frame.select(self._keep.fill_null(False).alias("kept")).to_series()
            if len(kept) != len(frame):  # a condition without a column is one value for all rows
                kept = pl.Series([bool(kept[0])] * len(frame))
            rule = pl.select(pl.when(kept).then(rule).otherwise(pl.lit("keep")).alias("rule")).to_series()
        return rule


def _first_match(classes: list[tuple[pl.Expr, int, float]]) -> tuple[pl.Expr, pl.Expr]:
    label, weight = pl.lit(0, dtype=pl.Int8), pl.lit(0.0, dtype=pl.Float32)
    for test, sign, size in reversed(classes):  # the innermost `otherwise` is asked last
        matched = test.fill_null(False)
        label = pl.when(matched).then(pl.lit(sign, dtype=pl.Int8)).otherwise(label)
        weight = pl.when(matched).then(pl.lit(size, dtype=pl.Float32)).otherwise(weight)
    return label, weight


def bursts(rows: pl.DataFrame, burst: Burst) -> np.ndarray:
    """(n,) bool: rows with which ``burst.events`` of their user's rows learned so far lie in (stamp - seconds, stamp].

    Rows of one moment with a group_id (a basket) count once; purchases, orders and ratings neither count nor are
    taken. ``rows`` stand in the order of their seq; their stamps may come in any order.
    """
    taken = np.zeros(len(rows), dtype=bool)
    width = round(burst.seconds * SECOND)
    rows = rows.with_row_index("at").filter(~pl.col(EVENT_TYPE).is_in(UNHURRIED).fill_null(False))
    rows = rows.sort(USER_ID, TIMESTAMP, "at")
    if not len(rows):
        return taken
    at = rows["at"].to_numpy()
    stamps = rows[TIMESTAMP].to_numpy()
    users = rows[USER_ID].rle_id().to_numpy()
    # A basket is one unit at a stamp: its later rows there do not raise the count.
    unit = rows.select(
        pl.when(pl.col(GROUP_ID).is_null())
        .then(pl.concat_str(pl.lit("r"), pl.col("at").cast(pl.String)))
        .otherwise(pl.concat_str(pl.lit("g"), pl.col(GROUP_ID)))
    ).to_series()
    is_unit = (
        rows.select(USER_ID, TIMESTAMP)
        .with_columns(unit.alias("unit"))
        .select(pl.struct(USER_ID, TIMESTAMP, "unit").is_first_distinct())
        .to_series()
        .to_numpy()
    )
    units_until = np.cumsum(is_unit)  # units up to and with each place, in (user, stamp) order
    change = np.flatnonzero((np.diff(users) != 0) | (np.diff(stamps) != 0))
    ends = np.append(change, len(stamps) - 1)
    end_of = ends[np.searchsorted(ends, np.arange(len(stamps)))]  # the last place with the same user and stamp
    # Necessary: `events` units at or before the stamp within the window, in whatever order they arrived.
    unit_places = np.flatnonzero(is_unit)
    lead = units_until[end_of] - burst.events  # the unit that must still lie in the window
    place = unit_places[np.maximum(lead, 0)]
    within = (lead >= 0) & (users[place] == users) & (stamps[place] > stamps - width)
    units = unit.to_numpy()
    starts = np.append(0, np.flatnonzero(np.diff(users)) + 1)
    start_of = starts[np.searchsorted(starts, np.arange(len(users)), side="right") - 1]
    for spot in np.flatnonzero(within):  # rare: here the order of arrival decides
        own = stamps[start_of[spot] : end_of[spot] + 1]
        low = start_of[spot] + np.searchsorted(own, stamps[spot] - width, side="right")
        window = slice(low, end_of[spot] + 1)
        known = at[window] <= at[spot]
        if len(set(units[window][known])) >= burst.events:
            taken[at[spot]] = True
    return taken
