"""The condition language: accepted and refused texts; null is false."""

from __future__ import annotations

import polars as pl
import pytest

from recloop.errors import UserError
from recloop.features import conditions

FRAME = pl.DataFrame(
    {
        "event_type": ["rating", "rating", "click", None],
        "value": [5.0, 3.0, None, 4.0],
        "class": ["a_1", "b", "it's", None],
        "hidden": [True, False, None, True],
        "timestamp": [1, 2, 3, 4],
    }
)


@pytest.mark.parametrize(
    ("text", "passes"),
    [
        ("event_type = 'rating' AND value >= 4", [True, False, False, False]),
        ("value IS NULL OR value > 4", [True, False, True, False]),
        ("value IS NOT NULL", [True, True, False, True]),
        ("NOT event_type = 'rating'", [False, False, True, False]),  # null is excluded on both sides
        ("event_type <> 'rating'", [False, False, True, False]),
        ("class IN ('b', 'it''s')", [False, True, True, False]),
        ("value NOT IN (5, -1)", [False, True, False, True]),
        ("class LIKE '%_1'", [True, False, False, False]),
        ("class ILIKE 'A%'", [True, False, False, False]),
        ("value BETWEEN 3 AND 4", [False, True, False, True]),
        ("value / 2 > 2 -- half", [True, False, False, False]),
        ("value = -(-3)", [False, True, False, False]),
        ("hidden", [True, False, False, True]),
        ("hidden = TRUE AND timestamp < 3", [True, False, False, False]),
        ("1 = 1", [True, True, True, True]),
    ],
)
@pytest.mark.parametrize("typed", [True, False])
def test_condition_mask_selects_its_rows(text: str, passes: list[bool], typed: bool) -> None:
    rule = conditions.parse(text, FRAME.schema if typed else FRAME.columns, "filter")
    assert rule.mask(FRAME).to_list() == passes


def test_condition_columns_are_the_used_fields() -> None:
    assert conditions.parse("value > 1 OR class = 'x'", FRAME.columns, "filter").columns == {"value", "class"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("valeu > 4", "nearest to valeu: value"),
        ("zzz > 4", "a known field instead of zzz; try: one of "),
        ('event_type = "rating"', "single quotes: 'rating'"),
        ("other.value = 1", "a known field"),
        ("value >", "an operand is missing. Line 1"),
        ("", "one condition, found 0"),
        ("value = 1; value = 2", "one condition, found 2"),
        ("DROP TABLE events", "found DROP TABLE events"),
        ("read_csv('/etc/passwd') = 1", "found READ_CSV"),
        ("(SELECT 1) = 1", "found (SELECT 1)"),
        ("value IN (SELECT value FROM t)", "a list of values"),
        ("CAST(value AS int) = 1", "found CAST"),
        ("lower(class) = 'a'", "found LOWER"),
        ("value = NULL", "IS NULL"),
        ("hidden IS TRUE", "IS NULL"),
        ("value IN ()", "a list"),
        ("class LIKE event_type", "LIKE with a text"),
        ("value + 1", "true or false"),
        ("value > 1 AND 2", "true or false"),
        ("*", "*"),
        ("(" * 3000 + "value = 1" + ")" * 3000, "nested too deeply"),
        (" OR ".join(["value = 1"] * 600), "500 levels of nesting"),
        (" OR ".join(["value = 1"] * 201), "at most 200 comparisons, found 201"),
        ("value = 1" + " " * 10_000, "at most 10,000"),
        (".".join(["value"] * 400), "nested too deeply"),
        ("value" + "::int" * 400, "nested too deeply"),
        ("value" + "->value" * 200, "nested too deeply"),
    ],
)
def test_condition_invalid_is_refused_with_key_and_text(text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        conditions.parse(text, FRAME.columns, "clean.keep")
    assert caught.value.name == "clean.keep"
    assert caught.value.value == text
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["value = 'five'", "class > 3", "timestamp LIKE 'a%'", "value", "class AND hidden"])
def test_condition_of_mixed_types_is_refused_at_parsing_with_a_schema(text: str) -> None:
    with pytest.raises(UserError):
        conditions.parse(text, FRAME.schema, "filter")


def test_condition_of_mixed_types_is_refused_at_the_frame_without_a_schema() -> None:
    rule = conditions.parse("class > 3", FRAME.columns, "filter")
    with pytest.raises(UserError, match="numbers compared with numbers"):
        rule.mask(FRAME)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" OR ".join(["value = 1"] * 51), "at most 50 comparisons, found 51"),
        ("value IN (" + ",".join(["1"] * 600) + ")", "at most 1,000 words, values and signs"),
        ("value = 1" + " " * 10_000, "at most 10,000"),
    ],
)
def test_request_condition_above_a_limit_is_refused_without_parsing(text: str, said: str) -> None:
    with pytest.raises(UserError, match="filter") as caught:
        conditions.check_size(text, "filter", 50, 1_000)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", [" OR ".join(["value = 1"] * 50), "value IN (" + ",".join(["1"] * 400) + ")", "'"])
def test_request_condition_within_the_limits_is_left_to_the_parser(text: str) -> None:
    conditions.check_size(text, "filter", 50, 1_000)
