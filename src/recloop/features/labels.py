"""Label rules and causal rules, shared by training, state and write path.

``[events]`` decides an event's *label* and *use*: rules are evaluated in the order undo, weights, neutral, negative,
history, positive, and the first match decides (docs/definitions/feedback.md). The use (`records.Use`) separates inputs
that models see, targets that they predict, and suppressions that remove items from lists. An event is *valid* unless a
causal rule removes it. Such a rule needs only the earlier rows of the user, so the same function runs in ``prepare``
and on arrival.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from recloop.config import FILE, Burst, Clean, Events
from recloop.errors import UserError
from recloop.features import conditions
from recloop.features.burst import STRONG, burst_mask
from recloop.features.clock_rule import CLOCK, wrong_clock, wrong_clocks
from recloop.features.dwell import DWELL, DWELL_PCT, LONG_DWELL_PCT, LONG_WEIGHT, DwellPercentiles
from recloop.features.spec import FeatureSpec
from recloop.records import (
    ANY_TARGET,
    EVENT_SCHEMA,
    EVENT_TYPE,
    GROUP_ID,
    ITEM_ID,
    LABEL,
    PAIR,
    QUANTITY,
    RULE,
    TIMESTAMP,
    UNITS,
    USE,
    USER_ID,
    WEIGHT,
    Use,
)

CONDITION_COLUMNS = {
    name: EVENT_SCHEMA[name]
    for name in (
        "event_type", "value", "quantity", "group_id", "placement", "user_id", "item_id", "timestamp", "session_id",
    )
} | {DWELL_PCT: pl.Float64()}  # fmt: skip
"""Event fields that a condition may use, with their types."""

TYPE_PATTERN = re.compile(r"[\w.:-]+")
"""Form of an event type in ``[events]``; any other entry is a condition."""

DEFAULT_KEY = "default"
"""Key of the default rules, which label dwells."""

KEEP_COLUMNS = {name: kind for name, kind in CONDITION_COLUMNS.items() if name != DWELL_PCT}
"""Fields of ``clean.keep``, which runs before dwells are compared."""

MIN_PARALLEL_ROWS = 10_000
"""Rows from which columns are computed on several threads."""

STRONG_WEIGHT = 5.0
"""Weight from which a target is a purchase. The burst rule ignores purchases, because a checkout writes many rows."""


CAUSAL_RULES = pl.Series(RULE, [None, "burst", "keep", "exclude_items", CLOCK])
"""Causal rules; of several that remove a row, the last one is named."""

CLASS_NAMES = {1: "positive", 0: "neutral", -1: "negative"}
"""Names of the labels."""


def class_of(use: int, label: int) -> str:
    """Class of an event: ``input``, ``undo`` or the name of its label."""
    return Use(use).name.lower() if use in {Use.INPUT, Use.UNDO} else CLASS_NAMES[label]


def matcher(text: str, key: str) -> pl.Expr:
    """Expression for an entry of ``[events]``: ``*``, an event type, or a condition."""
    if text == "*":
        return pl.lit(True)
    if TYPE_PATTERN.fullmatch(text):
        return pl.col(EVENT_TYPE) == text
    return conditions.parse(text, CONDITION_COLUMNS, key).expr


@dataclass(frozen=True)
class LabelRule:
    """Entry of ``[events]``, or the default for a long dwell.

    ``pair`` is the event type that an undo reverses, or "*".
    """

    text: str
    key: str
    label: int
    weight: float
    expr: pl.Expr
    use: Use
    pair: str = ""

    @property
    def means(self) -> str:
        """Class of an event that matches."""
        return class_of(self.use, self.label)


class EventLabeler:
    """Compiled event classes and causal rules of one spec.

    Args:
        dwell: Dwell percentiles; without them dwells are never long.

    Raises:
        UserError: a condition does not parse or uses an unknown field, or a rule makes a dwell negative.
    """

    def __init__(self, events: Events, clean: Clean, dwell: DwellPercentiles | None = None) -> None:
        self._clean = clean
        self._dwell = dwell
        self._keep = conditions.parse(clean.keep, KEEP_COLUMNS, "clean.keep").expr if clean.keep.strip() else None
        self.rules = _rules(events)
        self._first = _first_match(self.rules)
        self._meanings = _meanings(self.rules)
        history_matchers = [matcher(text, "events.history").fill_null(False) for text in events.history]
        self._has_history = bool(history_matchers)
        self._looked = pl.any_horizontal(history_matchers) if history_matchers else pl.lit(False)
        self._pairs = set(events.undo.values())
        exprs = [self._looked, *(rule.expr for rule in self.rules if rule.key != DEFAULT_KEY)]
        self.label_columns = frozenset(
            {EVENT_TYPE, QUANTITY, *(name for expr in exprs for name in expr.meta.root_names())}
        )
        """Columns that decide the label of a row that is not a dwell."""
        self.keep_columns = None if self._keep is None else frozenset(self._keep.meta.root_names())
        """Columns of ``clean.keep``; None if it is empty."""

    @property
    def burst(self) -> Burst | None:
        """Settings of the burst rule; None if it is off."""
        return None if self._clean.burst == "off" else self._clean.burst

    @classmethod
    def from_spec(cls, spec: FeatureSpec) -> EventLabeler:
        """Labeler of a feature spec."""
        return cls(spec.events, spec.clean, spec.dwell)

    def label(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add ``label`` (-1, 0, 1), ``weight``, ``use``, ``pair`` and ``units``.

        Types without a rule are neutral.
        """
        return self._with_meaning(self._decided(frame)).drop("by", "looked", DWELL_PCT)

    def explain(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add the columns of `label` and the reasons.

        These are ``dwell_pct`` and ``by``, the index of the deciding rule or null.
        """
        is_unmatched = pl.col("by") == len(self.rules)
        labelled = self._with_meaning(self._decided(frame)).drop("looked")
        return labelled.with_columns(pl.when(is_unmatched).then(None).otherwise(pl.col("by")).alias("by"))

    def _decided(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add ``dwell_pct``, ``by`` and ``looked``.

        ``by`` is the first matching rule, else ``len(rules)``.
        """
        shared = _with_series(frame, [self._share(frame)])
        return _with_columns(shared, self._first.alias("by"), self._looked.alias("looked"))

    def _with_meaning(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Add the meaning of the deciding rules.

        ``events.history`` turns targets into inputs.
        """
        labelled = _with_series(frame, self._meanings[frame["by"].to_numpy()].get_columns())
        if self._has_history:
            is_history = pl.col("looked") & (pl.col(USE) == int(Use.TARGET))
            labelled = labelled.with_columns(
                pl.when(is_history).then(pl.lit(value, pl.Int8)).otherwise(pl.col(name)).alias(name)
                for name, value in ((USE, int(Use.INPUT)), (LABEL, 0))
            )
        if not self._pairs:
            return _with_series(labelled, [pl.Series(UNITS, np.ones(len(labelled)))])
        return _with_columns(labelled, self._pair(), self._units())

    def _pair(self) -> pl.Expr:
        """Event type of a row; for an undo the type that it reverses."""
        is_undoable = pl.col(EVENT_TYPE).is_in(sorted(self._pairs)).fill_null(False) & (pl.col(USE) != int(Use.UNDO))
        return pl.when(is_undoable).then(pl.col(EVENT_TYPE)).otherwise(pl.col(PAIR)).alias(PAIR)

    def _units(self) -> pl.Expr:
        """Quantity of an undo or an undoable row; 1 if it is missing."""
        is_undoable = pl.col(EVENT_TYPE).is_in(sorted(self._pairs)).fill_null(False) | (pl.col(USE) == int(Use.UNDO))
        if ANY_TARGET in self._pairs:
            is_undoable |= pl.col(USE) == int(Use.TARGET)
        has_quantity = is_undoable & pl.col(QUANTITY).is_finite() & (pl.col(QUANTITY) != 0)
        return pl.when(has_quantity).then(pl.col(QUANTITY).abs()).otherwise(1.0).alias(UNITS)

    def _share(self, frame: pl.DataFrame) -> pl.Series:
        """``dwell_pct`` of each row."""
        if self._dwell is None:
            return pl.Series(DWELL_PCT, [None], dtype=pl.Float64).new_from_index(0, len(frame))
        return self._dwell.share(frame)

    def causal_rule(self, frame: pl.DataFrame, earlier: pl.DataFrame | None = None) -> pl.Series:
        """Causal rule that removes each row; null for valid rows.

        Args:
            frame: Rows in seq order.
            earlier: Rows of the same users with smaller seq (on arrival the last seconds are enough).
        """
        n_earlier = 0 if earlier is None else len(earlier)
        in_burst = np.zeros(len(frame), dtype=bool)
        burst = self._clean.burst
        if burst != "off" and n_earlier + len(frame) >= burst.events:  # fewer rows cannot be a burst
            rows = frame if earlier is None or not n_earlier else pl.concat([earlier, frame], how="diagonal")
            in_burst = burst_mask(self.acts(rows), burst)[n_earlier:]
        return self.first_rule(frame, in_burst)

    def first_rule(self, frame: pl.DataFrame, in_burst: np.ndarray) -> pl.Series:
        """Causal rule that removes each row; null for valid rows.

        The last one of `CAUSAL_RULES` decides.

        Args:
            in_burst: (n,) bool; see `recloop.features.burst`.
        """
        codes = np.where(in_burst, 1, 0)
        if self._keep is not None and len(frame):
            codes[~self.is_kept(frame)] = 2
        if self._clean.exclude_items:
            codes[frame[ITEM_ID].is_in(list(self._clean.exclude_items)).to_numpy()] = 3
        codes[self.wrong_clock(frame).to_numpy()] = 4
        return CAUSAL_RULES.gather(codes) if codes.any() else CAUSAL_RULES.new_from_index(0, len(frame))

    def is_kept(self, frame: pl.DataFrame) -> np.ndarray:
        """(n,) bool: rows that meet ``clean.keep``."""
        if self._keep is None:
            return np.ones(len(frame), dtype=bool)
        is_kept = frame.select_seq(self._keep.fill_null(False).alias("kept")).to_series().to_numpy()
        return np.broadcast_to(is_kept, len(frame))  # a condition without a column is one value for all rows

    @property
    def excluded_items(self) -> frozenset[str]:
        """Items whose rows the rule ``exclude_items`` removes."""
        return frozenset(self._clean.exclude_items)

    def wrong_clocks(self, stamps: np.ndarray, received: np.ndarray) -> np.ndarray:
        """(n,) bool: rows that the rule ``clock`` removes, as `wrong_clock`."""
        return wrong_clocks(stamps, received, self._clean)

    def wrong_clock(self, frame: pl.DataFrame) -> pl.Series:
        """(n,) Boolean: rows that the rule ``clock`` removes."""
        return wrong_clock(frame, self._clean)

    def acts(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Inputs of the burst rule: user_id, timestamp, group_id and ``strong``.

        ``strong`` marks targets of weight `STRONG_WEIGHT` or more.
        """
        strong = (pl.col(LABEL) > 0) & (pl.col(WEIGHT) >= STRONG_WEIGHT)
        return self.label(frame).select(USER_ID, TIMESTAMP, GROUP_ID, strong.alias(STRONG))


def count_unnamed(labeler: EventLabeler, rows: pl.DataFrame) -> dict[str, int]:
    """Count rows by event type without a rule of ``[events]``.

    Most rows first; such rows are neutral.
    """
    unmatched = labeler.explain(rows).filter(pl.col("by").is_null()) if len(rows) else rows
    counts = unmatched.group_by(EVENT_TYPE).len().sort("len", EVENT_TYPE, descending=[True, False])
    return {str(name): int(size) for name, size in counts.iter_rows()}


def _rules(events: Events) -> tuple[LabelRule, ...]:
    """Rules in evaluation order; a long dwell is positive unless a rule names dwells."""
    rules = [
        LabelRule(text, f"events.undo.{text}", 0, 0.0, matcher(text, f"events.undo.{text}"), Use.UNDO, pair)
        for text, pair in events.undo.items()
    ]
    for text, weight in events.weights.items():
        key = f"events.weights.{text}"
        label = int(np.sign(weight))
        use = Use.INPUT if label > 0 and text in events.history else use_of(label, abs(weight))
        rules.append(LabelRule(text, key, label, abs(weight), matcher(text, key), use))
    texts = (*events.weights, *events.neutral, *events.negative, *events.history, *events.positive)
    if not any(_on_dwell(text) for text in texts):
        dwell = pl.col(EVENT_TYPE) == DWELL
        condition = f"{DWELL_PCT} >= {LONG_DWELL_PCT}"
        rules += [
            LabelRule(
                condition, DEFAULT_KEY, 1, LONG_WEIGHT, dwell & (pl.col(DWELL_PCT) >= LONG_DWELL_PCT), Use.TARGET
            ),
            LabelRule(DWELL, DEFAULT_KEY, 0, 0.0, dwell, Use.NONE),
        ]
    for name, label in (("neutral", 0), ("negative", -1), ("history", 1), ("positive", 1)):
        key = f"events.{name}"
        use = Use.INPUT if name == "history" else use_of(label, 1.0)
        rules += [
            LabelRule(text, key, label, float(abs(label)), matcher(text, key), use) for text in getattr(events, name)
        ]
    for rule in rules:
        if rule.label < 0 and _on_dwell(rule.text):
            expected = "a weight of 0 or more, because a dwell is never negative"
            raise UserError(rule.key, rule.text, expected, f"remove it from [events] in {FILE}")
    return tuple(rules)


def use_of(label: int, weight: float) -> Use:
    """Use of an event outside ``history``, by label and weight.

    A negative below weight 1 (a skip) has no effect.
    """
    return Use.NONE if label < 0 and weight < 1 else Use(label)


def with_uses(frame: pl.DataFrame) -> pl.DataFrame:
    """Add missing ``use``, ``pair`` and ``units`` from ``label`` and ``weight``."""
    if all(name in frame.columns and not frame[name].null_count() for name in (WEIGHT, USE, PAIR, UNITS)):
        return frame
    skip = (pl.col(LABEL) < 0) & (pl.col(WEIGHT) < 1) if WEIGHT in frame.columns else pl.lit(False)
    defaults = {
        WEIGHT: pl.lit(1.0, pl.Float32),
        USE: pl.when(skip).then(int(Use.NONE)).otherwise(pl.col(LABEL)).cast(pl.Int8),
        PAIR: pl.lit(""),
        UNITS: pl.lit(1.0),
    }
    return frame.with_columns(
        (pl.col(name).fill_null(value) if name in frame.columns else value).alias(name)
        for name, value in defaults.items()
    )


def _with_series(frame: pl.DataFrame, columns: list[pl.Series]) -> pl.DataFrame:
    """Add or replace columns."""
    is_new = not any(column.name in frame.columns for column in columns)
    return frame.hstack(columns) if is_new else frame.with_columns(columns)


def _with_columns(frame: pl.DataFrame, *columns: pl.Expr) -> pl.DataFrame:
    """Add columns; those of a small frame on this thread, because threads cost more."""
    return frame.with_columns_seq(*columns) if len(frame) < MIN_PARALLEL_ROWS else frame.with_columns(*columns)


def _on_dwell(text: str) -> bool:
    if TYPE_PATTERN.fullmatch(text):
        return text == DWELL
    return re.search(rf"\b({DWELL}|{DWELL_PCT})\b", text) is not None


def _first_match(rules: tuple[LabelRule, ...]) -> pl.Expr:
    """Index of the first rule that matches a row, else ``len(rules)``."""
    by = pl.lit(len(rules), dtype=pl.Int32)
    for index, rule in reversed(list(enumerate(rules))):  # the innermost `otherwise` is evaluated last
        matched = rule.expr.fill_null(False)
        if rule.label < 0:  # a condition on values alone may match a dwell, which the later rules decide
            matched &= (pl.col(EVENT_TYPE) != DWELL).fill_null(True)
        by = pl.when(matched).then(pl.lit(index, dtype=pl.Int32)).otherwise(by)
    return by


def _meanings(rules: tuple[LabelRule, ...]) -> pl.DataFrame:
    """Table of ``label``, ``weight``, ``use`` and ``pair`` by rule.

    The last row is for unmatched events.
    """
    rows = [(0 if rule.use is Use.INPUT else rule.label, rule.weight, int(rule.use), rule.pair) for rule in rules]
    schema = {LABEL: pl.Int8, WEIGHT: pl.Float32, USE: pl.Int8, PAIR: pl.String}
    return pl.DataFrame([*rows, (0, 0.0, int(Use.NONE), "")], schema=schema, orient="row")
