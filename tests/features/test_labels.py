"""Labels of events and causal rules, by known answers."""

from __future__ import annotations

import json
import time
from typing import Any

import polars as pl
import pytest

from recloop.config import Burst, Clean, Events
from recloop.errors import UserError
from recloop.features.labels import EventLabeler, burst_mask, count_unnamed
from recloop.features.moments import moment_stamps
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.records import EVENT_SCHEMA, SECOND
from recloop.settings import build


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    plain = {"user_id": "u", "item_id": "i", "timestamp": 0, "event_type": "click"}
    return pl.DataFrame([{**plain, "seq": n, **row} for n, row in enumerate(rows, 1)], schema=EVENT_SCHEMA)


def test_label_is_that_of_the_first_match_of_weights_neutral_negative_positive() -> None:
    signal = EventLabeler(
        Events(
            neutral=("impression", "event_type = 'rating' AND value = 3"),
            negative=("event_type = 'rating' AND value < 3",),
            positive=("rating", "purchase"),
            weights={"purchase": 5.0, "skip": -0.5},
        ),
        Clean(),
    )
    rows = [("impression", None), ("rating", 3.0), ("rating", 1.0), ("rating", 5.0), ("purchase", None), ("skip", None)]
    labelled = signal.label(frame([{"event_type": kind, "value": value} for kind, value in [*rows, ("other", None)]]))
    assert labelled["label"].to_list() == [0, 0, -1, 1, 1, -1, 0]
    assert labelled["weight"].to_list() == [0.0, 0.0, 1.0, 1.0, 5.0, 0.5, 0.0]


def test_label_weights_keep_their_order_in_a_bundle() -> None:
    rules = {"event_type = 'rating' AND value >= 4": 2, "rating": -1, "purchase": 5, "skip": -0.5}
    config = build({"events": {"weights": rules}}, environment={})
    reversed_weights = build({"events": {"weights": dict(reversed(rules.items()))}}, environment={})
    spec = FeatureSpec.from_config(config)
    again = FeatureSpec.from_json(json.loads(json.dumps(spec.to_json(), sort_keys=True)))  # as in spec.json
    rows = frame([{"event_type": "rating", "value": 5.0}, {"event_type": "rating", "value": 1.0}])
    assert EventLabeler.from_spec(again).label(rows)["label"].to_list() == [1, -1]
    assert EventLabeler.from_spec(again).label(rows)["weight"].to_list() == [2.0, 1.0]
    assert again.state_key == spec.state_key != FeatureSpec.from_config(reversed_weights).state_key


@pytest.mark.parametrize("weight", ["many", True, float("nan"), float("inf"), [1]])
def test_event_weight_that_is_not_a_number_is_refused_with_a_fix(weight: object) -> None:
    with pytest.raises(
        UserError, match=r"events\.weights\.purchase=.*: expected a number.*; try: weights = "
    ) as caught:
        build({"events": {"weights": {"purchase": weight}}}, environment={})
    assert caught.value.exit_code == 2


def test_event_rule_with_an_unknown_field_is_refused_and_names_the_nearest() -> None:
    config = build({"events": {"weights": {"event_type = 'rating' AND valeu >= 4": 2}}}, environment={})
    with pytest.raises(UserError, match=r"nearest to valeu: value"):
        EventLabeler(config.events, config.clean)


@pytest.mark.parametrize("code", ["__import__('os').system('true')", "value >= (SELECT 1)", "1; DROP TABLE events"])
def test_event_rule_with_code_is_refused(code: str) -> None:
    with pytest.raises(UserError, match=r"events\.weights"):
        EventLabeler(Events(weights={code: 1.0}), Clean())


def test_label_of_a_skip_keeps_the_item_and_a_dislike_hides_it() -> None:
    signal = EventLabeler(Events(weights={"skip": -0.5, "dislike": -1}), Clean())
    rows = frame([{"event_type": "skip", "item_id": "a"}, {"event_type": "dislike", "item_id": "b"}])
    labelled = signal.label(rows)
    assert labelled["label"].to_list() == [-1, -1]
    assert labelled["weight"].to_list() == [0.5, 1.0]
    states = StateHistory(moment_stamps(labelled)).states(["u"], [2])
    assert states.names[states.negatives].tolist() == ["b"]


def test_label_condition_on_a_null_value_is_false() -> None:
    signal = EventLabeler(Events(neutral=(), positive=("value >= 4",), negative=()), Clean())
    assert signal.label(frame([{"value": None}, {"value": 4.0}]))["label"].to_list() == [0, 1]


def test_event_rule_with_an_item_field_is_refused() -> None:
    with pytest.raises(UserError, match=r"events\.positive.*price"):
        EventLabeler(Events(positive=("price > 3",)), Clean())


def test_bursts_quarantine_from_the_tenth_click_within_a_second() -> None:
    rows = frame([{"timestamp": n * SECOND // 20} for n in range(12)])
    assert EventLabeler(Events(), Clean()).causal_rule(rows).to_list() == [None] * 9 + ["burst"] * 3


def test_bursts_exclude_rows_a_whole_second_before() -> None:
    rows = frame([{"timestamp": 0}, *({"timestamp": SECOND + n} for n in range(9))])
    assert EventLabeler(Events(), Clean()).causal_rule(rows).null_count() == 10


@pytest.mark.parametrize("kind", ["interaction", "transaction", "buy", "click"])
def test_bursts_count_rows_of_one_timestamp_once(kind: str) -> None:
    order = frame([{"timestamp": 0, "event_type": kind, "item_id": f"i{n}"} for n in range(14)])
    signal = EventLabeler(Events(), Clean())
    assert signal.causal_rule(order).null_count() == 14
    assert [signal.causal_rule(order[n : n + 1], order[:n])[0] for n in range(14)] == [None] * 14, "also on arrival"
    acts = frame([{"timestamp": n * SECOND // 20, "item_id": f"i{row}"} for n in range(12) for row in range(3)])
    assert signal.causal_rule(acts).to_list() == [None] * 27 + ["burst"] * 9, (
        "the tenth group is quarantined with all its rows"
    )


def test_bursts_ignore_the_heaviest_event_type() -> None:
    rows = frame([{"timestamp": n * SECOND // 40, "event_type": ("sale", "click")[n % 2]} for n in range(30)])
    named = EventLabeler(Events(weights={"sale": 5.0, "click": 1.0}), Clean()).causal_rule(rows).to_list()
    assert named == ["burst" if n % 2 and n >= 19 else None for n in range(30)]
    assert EventLabeler(Events(), Clean()).causal_rule(rows).to_list() == [None] * 9 + ["burst"] * 21, (
        "no event name is special by default"
    )


def test_bursts_count_a_basket_once() -> None:
    basket = [{"group_id": "b", "timestamp": n} for n in range(30)]
    clicks = [{"timestamp": SECOND // 2 + n} for n in range(9)]
    rules = EventLabeler(Events(), Clean()).causal_rule(frame([*basket, *clicks]))
    assert rules.to_list() == [None] * 38 + ["burst"], "the basket and nine clicks count as ten"


def test_bursts_of_many_rows_of_one_user_take_linear_time() -> None:
    rows = frame([{"timestamp": n * 7} for n in range(20_000)])
    begun = time.perf_counter()
    assert burst_mask(rows, Burst()).sum() == 20_000 - 9
    assert time.perf_counter() - begun < 5, "20,000 rows within a second take linear time"


def test_bursts_of_late_rows_count_rows_of_smaller_seq() -> None:
    newest_first = frame([{"timestamp": (20 - n) * SECOND // 20} for n in range(12)])
    # No row has ten rows of smaller seq at or before its stamp.
    assert not burst_mask(newest_first, Burst(events=10, seconds=1.0)).any()
    late = frame([*({"timestamp": n * SECOND // 20} for n in range(9)), {"timestamp": SECOND // 2}])
    assert burst_mask(late, Burst(events=10, seconds=1.0)).tolist() == [False] * 9 + [True]


def test_causal_rule_at_arrival_equals_that_of_a_batch() -> None:
    rows = frame([{"timestamp": n * SECOND // 20, "user_id": "uv"[n % 2]} for n in range(40)])
    signal = EventLabeler(Events(), Clean())
    one_by_one = [signal.causal_rule(rows[n : n + 1], rows[:n])[0] for n in range(len(rows))]
    assert one_by_one == signal.causal_rule(rows).to_list()
    assert one_by_one.count("burst") == 22


def test_causal_rule_keep_precedes_burst_and_accepts_null_quantity() -> None:
    rows = frame([{"quantity": 0.0}, {"quantity": -2.0}, {"quantity": None}, {"quantity": 1.0}])
    assert EventLabeler(Events(), Clean()).causal_rule(rows).to_list() == ["keep", None, None, None], (
        "a quantity below 0 is a return"
    )
    old = Clean(keep="quantity IS NULL OR quantity > 0")
    assert EventLabeler(Events(), old).causal_rule(rows).to_list() == ["keep", "keep", None, None]
    assert EventLabeler(Events(), Clean(keep="")).causal_rule(rows).null_count() == 4
    assert EventLabeler(Events(), Clean(keep="1 = 1")).causal_rule(rows).null_count() == 4


def test_count_unnamed_counts_types_without_a_rule() -> None:
    labeler = EventLabeler(Events(positive=("interaction",)), Clean())
    rows = frame([{"event_type": kind} for kind in ("interaction", "view", "view", "cart", "hide")])
    assert count_unnamed(labeler, rows) == {"view": 2, "cart": 1}
    assert count_unnamed(labeler, rows.clear()) == {}
    assert labeler.label(rows)["label"].to_list() == [1, 0, 0, 0, -1]
