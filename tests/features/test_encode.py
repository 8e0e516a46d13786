"""Encoding by known answers: dense indices, windows of whole moments, context codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.features import vocabulary
from recloop.features.encode import EncodedBatch, encode, window
from recloop.features.spec import FeatureSpec
from recloop.features.vocabulary import CategoryCodes, FieldCodes, NumericBuckets, Vocabulary
from recloop.records import DAY, SECOND
from recloop.settings import build
from recloop.testing.states import UserActs, states_of

NOON = 1_735_732_800 * SECOND  # Wednesday 2025-01-01T12:00:00Z
SPEC = FeatureSpec.from_config(
    build({"features": {"user": {"age": {"from": "band"}}}, "data": {"timezone": "America/New_York"}}, (), {})
)
FIELDS = FieldCodes(
    {
        "user.age": CategoryCodes(("18-29", "60+")),
        "context.hour": CategoryCodes(tuple(map(str, range(24)))),
        "context.weekday": CategoryCodes(tuple(map(str, range(1, 8)))),
        "context.days_since_last": NumericBuckets((1.0, 7.0)),
    }
)
ITEMS = Vocabulary(["b", "a", "c", "d"])


def state(*moments: tuple[int, str], dislikes: str = "", **rest: object) -> UserActs:
    grown = UserActs(attributes=rest.get("attributes"))  # type: ignore[arg-type]
    for stamp, items in moments:
        for item in items:
            grown.add(item, stamp, None, 1)
    for item in dislikes:
        grown.add(item, NOON, None, -1)
    return grown


def encoded(*states: UserActs, now: int = NOON) -> EncodedBatch:
    users = [f"u{n}" for n in range(len(states))]
    return encode(SPEC, FIELDS, ITEMS, states_of(users, states), [now] * len(states))


def test_encode_maps_items_to_indices_and_drops_unknown_ones() -> None:
    made = encoded(state((1, "cab"), (2, "xyz"), (3, "dx")), state((5, "a")))
    assert made.items.tolist() == [2, 1, 3, 4, 2]  # a b c | d | a: the moment of unknown items is dropped
    assert made.item_offsets.tolist() == [0, 3, 4, 5]
    assert made.moment_offsets.tolist() == [0, 2, 3]
    assert made.stamps.tolist() == [1, 3, 5]


def test_vocabulary_lookup_of_a_long_series_equals_single_lookups(monkeypatch: pytest.MonkeyPatch) -> None:
    raws = pl.Series(["d", "x", None, "b", "b", ""])
    one_by_one = ITEMS.lookup(list(raws), len(raws))
    monkeypatch.setattr(vocabulary, "MIN_JOINED_ROWS", 1)
    joined = ITEMS.lookup(raws, len(raws))
    assert joined.tolist() == one_by_one.tolist() == [4, 0, 0, 1, 1, 0]
    assert joined.dtype == one_by_one.dtype == np.int32


def test_encode_negatives_exclude_items_outside_the_table() -> None:
    assert encoded(state(dislikes="xbz")).negatives.tolist() == [1]


def test_encode_context_is_user_fields_then_hour_weekday_and_gap() -> None:
    past = state((NOON - 2 * DAY, "a"), attributes={"band": "60+"})
    made = encoded(past, state(), state((NOON - DAY, "a")), state((NOON - 8 * DAY, "x")))
    assert made.context_names == ["user.age", "context.hour", "context.weekday", "context.days_since_last"]
    # 07:00 in New York is code 8; Wednesday 3; two days: the middle bucket; no history: missing.
    assert made.context.tolist() == [[2, 8, 3, 2], [0, 8, 3, 0], [0, 8, 3, 2], [0, 8, 3, 3]]


def test_numeric_bucket_includes_its_lower_edge() -> None:
    codes = NumericBuckets((1.0, 7.0)).codes([0.99, 1.0, 6.9, 7.0, None, "x", float("nan"), True])
    assert codes.tolist() == [1, 2, 2, 3, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("history", "items", "moments"),
    [(9, [2, 1, 3, 4], [1, 1, 1, 0]), (3, [4], [0]), (4, [2, 1, 3, 4], [1, 1, 1, 0])],
)
def test_window_contains_whole_moments(history: int, items: list[int], moments: list[int]) -> None:
    made = window(encoded(state((1, "abc"), (3, "d"))), history)
    assert made.items.tolist() == items
    assert made.moments.tolist() == moments


def test_window_smaller_than_the_newest_moment_keeps_its_first_ids() -> None:
    made = window(encoded(state((1, "a"), (2, "dcba")), state(), state((1, "d"))), 2)
    assert made.items.tolist() == [2, 1, 4]
    assert made.offsets.tolist() == [0, 2, 2, 3]
    items, moments, mask = made.padded()
    assert items.tolist() == [[2, 1], [0, 0], [4, 0]]
    assert mask.tolist() == [[True, True], [False, False], [True, False]]
    assert not moments.any()


def test_encoded_input_hashes_name_the_changed_input() -> None:
    past = state((NOON - 2 * DAY, "ab"))
    one = encoded(past).inputs(0)
    assert one == encoded(past).inputs(0)
    later = encoded(past, now=NOON + 3600 * SECOND).inputs(0)
    assert [name for name in one if one[name] != later[name]] == ["context.hour"]
    more = encoded(state((NOON - 2 * DAY, "abc"))).inputs(0)
    assert [name for name in one if one[name] != more[name]] == ["history"]


def test_encode_of_one_state_equals_its_row_in_a_batch() -> None:
    states = [state((n, "abcd"[: n % 4 + 1]), (n + 9, "dax")) for n in range(8)]
    together = encoded(*states)
    for b, one in enumerate(states):
        alone = encoded(one)
        low, high = together.row_offsets[b], together.row_offsets[b + 1]
        assert np.array_equal(together.items[low:high], alone.items)
        assert np.array_equal(together.context[b], alone.context[0])
        assert together.inputs(b) == alone.inputs(0)


def test_field_codes_and_spec_round_trip_through_json() -> None:
    assert FieldCodes.from_json(FIELDS.to_json()) == FIELDS
    assert FeatureSpec.from_json(SPEC.to_json()) == SPEC
    assert len(SPEC.state_key) == 8


def test_field_codes_fit_edges_at_quantiles() -> None:
    fields = FieldCodes.fit(SPEC, [], [{"band": "b"}, {"band": "a"}, None, {"band": 3}], np.arange(101.0))
    assert fields.codes["user.age"] == CategoryCodes(("3", "a", "b"))
    assert fields.codes["context.days_since_last"] == NumericBuckets(tuple(float(edge) for edge in range(10, 100, 10)))


@pytest.mark.parametrize("size", [0, 1, 63, 64, 500])
def test_codes_of_an_array_equal_those_of_its_values(size: int) -> None:
    generator = np.random.default_rng(size)
    hours = generator.integers(0, 30, size)
    days = np.where(generator.random(size) < 0.2, np.nan, generator.normal(size=size))
    category, number = CategoryCodes(tuple(str(hour) for hour in range(24))), NumericBuckets((-0.5, 0.0, 0.7))
    assert category.codes(hours).tolist() == category.codes(hours.tolist()).tolist()
    assert number.codes(days).tolist() == number.codes(days.tolist()).tolist()


@given(
    now=st.integers(-(10**15), 4 * 10**15),
    gap=st.none() | st.integers(0, 100 * DAY),
    timezone=st.sampled_from(("UTC", "America/New_York", "Asia/Kathmandu")),
)
def test_context_of_one_query_equals_that_of_a_batch(now: int, gap: int | None, timezone: str) -> None:
    spec = replace(SPEC, timezone=timezone)
    own = state() if gap is None else state((now - gap, "a"))
    queries = states_of(["u", "v"], [own, own])
    together = encode(spec, FIELDS, ITEMS, queries, [now, now])
    alone = encode(spec, FIELDS, ITEMS, queries.select(0), [now])
    assert alone.context.tolist() == [together.context[0].tolist()]
    assert alone.inputs(0) == together.inputs(0)
