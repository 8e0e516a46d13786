"""What an event means and whether it is believed, by known answers."""

from __future__ import annotations

import json
import time
from typing import Any

import polars as pl
import pytest

from recloop.config import Burst, Clean, Events
from recloop.errors import UserError
from recloop.features.labels import EventLabeler, burst_mask
from recloop.features.moments import moment_stamps
from recloop.features.spec import FeatureSpec
from recloop.features.state import StateHistory, UserState
from recloop.recommend.user_states import fold
from recloop.records import EVENT_SCHEMA, SECOND
from recloop.settings import build


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    plain = {"user_id": "u", "item_id": "i", "timestamp": 0, "event_type": "click"}
    return pl.DataFrame([{**plain, "seq": n, **row} for n, row in enumerate(rows, 1)], schema=EVENT_SCHEMA)


def test_the_first_match_decides_in_the_order_weights_neutral_negative_positive() -> None:
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


def test_the_order_of_weights_decides_and_survives_a_bundle() -> None:
    rules = {"event_type = 'rating' AND value >= 4": 2, "rating": -1, "purchase": 5, "skip": -0.5}
    config = build({"events": {"weights": rules}}, environment={})
    turned = build({"events": {"weights": dict(reversed(rules.items()))}}, environment={})
    spec = FeatureSpec.of(config)
    again = FeatureSpec.from_json(json.loads(json.dumps(spec.to_json(), sort_keys=True)))  # as spec.json is written
    rows = frame([{"event_type": "rating", "value": 5.0}, {"event_type": "rating", "value": 1.0}])
    assert EventLabeler.of(again).label(rows)["label"].to_list() == [1, -1]
    assert EventLabeler.of(again).label(rows)["weight"].to_list() == [2.0, 1.0]
    assert again.state_key == spec.state_key != FeatureSpec.of(turned).state_key


@pytest.mark.parametrize("weight", ["many", True, float("nan"), float("inf"), [1]])
def test_a_weight_that_is_no_number_is_refused_by_name_and_mend(weight: object) -> None:
    with pytest.raises(
        UserError, match=r"events\.weights\.purchase=.*: expected a number.*; try: weights = "
    ) as caught:
        build({"events": {"weights": {"purchase": weight}}}, environment={})
    assert caught.value.exit_code == 2


def test_an_unknown_word_in_a_rule_is_refused_with_the_nearest() -> None:
    config = build({"events": {"weights": {"event_type = 'rating' AND valeu >= 4": 2}}}, environment={})
    with pytest.raises(UserError, match=r"nearest to valeu: value"):
        EventLabeler(config.events, config.clean)


@pytest.mark.parametrize("code", ["__import__('os').system('true')", "value >= (SELECT 1)", "1; DROP TABLE events"])
def test_a_rule_is_parsed_and_never_run(code: str) -> None:
    with pytest.raises(UserError, match=r"events\.weights"):
        EventLabeler(Events(weights={code: 1.0}), Clean())


def test_a_skip_teaches_and_hides_nothing_a_dislike_hides() -> None:
    signal = EventLabeler(Events(weights={"skip": -0.5, "dislike": -1}), Clean())
    rows = frame([{"event_type": "skip", "item_id": "a"}, {"event_type": "dislike", "item_id": "b"}])
    labelled = signal.label(rows)
    assert labelled["label"].to_list() == [-1, -1]
    assert labelled["weight"].to_list() == [0.5, 1.0]
    state = UserState()
    fold(state, labelled)
    assert state.disliked() == ["b"]
    states = StateHistory(moment_stamps(labelled)).states(["u"], [2])
    assert states.names[states.negatives].tolist() == ["b"]


def test_a_rating_without_a_value_meets_no_condition_on_it() -> None:
    signal = EventLabeler(Events(neutral=(), positive=("value >= 4",), negative=()), Clean())
    assert signal.label(frame([{"value": None}, {"value": 4.0}]))["label"].to_list() == [0, 1]


def test_a_condition_on_a_field_that_events_have_not_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"events\.positive.*price"):
        EventLabeler(Events(positive=("price > 3",)), Clean())


def test_the_tenth_click_of_a_second_goes_and_the_nine_before_it_stay() -> None:
    rows = frame([{"timestamp": n * SECOND // 20} for n in range(12)])
    assert EventLabeler(Events(), Clean()).causal_rule(rows).to_list() == [None] * 9 + ["burst"] * 3


def test_bursts_a_whole_second_before_lies_outside() -> None:
    rows = frame([{"timestamp": 0}, *({"timestamp": SECOND + n} for n in range(9))])
    assert EventLabeler(Events(), Clean()).causal_rule(rows).null_count() == 10


@pytest.mark.parametrize("kind", ["interaction", "transaction", "buy", "click"])
def test_bursts_rows_of_one_stamp_are_one_act(kind: str) -> None:
    order = frame([{"timestamp": 0, "event_type": kind, "item_id": f"i{n}"} for n in range(14)])
    signal = EventLabeler(Events(), Clean())
    assert signal.causal_rule(order).null_count() == 14
    assert [signal.causal_rule(order[n : n + 1], order[:n])[0] for n in range(14)] == [None] * 14, "on arrival too"
    acts = frame([{"timestamp": n * SECOND // 20, "item_id": f"i{row}"} for n in range(12) for row in range(3)])
    assert signal.causal_rule(acts).to_list() == [None] * 27 + ["burst"] * 9, "the tenth act goes with all its rows"


def test_bursts_a_strong_type_neither_counts_nor_is_taken() -> None:
    rows = frame([{"timestamp": n * SECOND // 40, "event_type": ("sale", "click")[n % 2]} for n in range(30)])
    named = EventLabeler(Events(weights={"sale": 5.0, "click": 1.0}), Clean()).causal_rule(rows).to_list()
    assert named == ["burst" if n % 2 and n >= 19 else None for n in range(30)]
    assert EventLabeler(Events(), Clean()).causal_rule(rows).to_list() == [None] * 9 + ["burst"] * 21, (
        "no name is special"
    )


def test_bursts_a_basket_counts_once() -> None:
    basket = [{"group_id": "b", "timestamp": n} for n in range(30)]
    clicks = [{"timestamp": SECOND // 2 + n} for n in range(9)]
    taken = EventLabeler(Events(), Clean()).causal_rule(frame([*basket, *clicks]))
    assert taken.to_list() == [None] * 38 + ["burst"], "the basket and nine clicks are ten"


def test_bursts_of_many_rows_of_one_user_take_linear_time() -> None:
    rows = frame([{"timestamp": n * 7} for n in range(20_000)])
    begun = time.perf_counter()
    assert burst_mask(rows, Burst()).sum() == 20_000 - 9
    assert time.perf_counter() - begun < 5, "20,000 rows within a second: quadratic work took minutes"


def test_a_late_row_is_judged_by_what_was_learned_before_it() -> None:
    newest_first = frame([{"timestamp": (20 - n) * SECOND // 20} for n in range(12)])
    # Counting back in time, no row has ten of smaller seq at or before its own stamp.
    assert not burst_mask(newest_first, Burst(events=10, seconds=1.0)).any()
    late = frame([*({"timestamp": n * SECOND // 20} for n in range(9)), {"timestamp": SECOND // 2}])
    assert burst_mask(late, Burst(events=10, seconds=1.0)).tolist() == [False] * 9 + [True]


def test_judged_at_arrival_as_in_one_batch() -> None:
    rows = frame([{"timestamp": n * SECOND // 20, "user_id": "uv"[n % 2]} for n in range(40)])
    signal = EventLabeler(Events(), Clean())
    one_by_one = [signal.causal_rule(rows[n : n + 1], rows[:n])[0] for n in range(len(rows))]
    assert one_by_one == signal.causal_rule(rows).to_list()
    assert one_by_one.count("burst") == 22


def test_keep_goes_before_burst_and_an_unknown_quantity_stays() -> None:
    rows = frame([{"quantity": 0.0}, {"quantity": -2.0}, {"quantity": None}, {"quantity": 1.0}])
    assert EventLabeler(Events(), Clean()).causal_rule(rows).to_list() == ["keep", None, None, None], (
        "below 0 is a return"
    )
    old = Clean(keep="quantity IS NULL OR quantity > 0")
    assert EventLabeler(Events(), old).causal_rule(rows).to_list() == ["keep", "keep", None, None]
    assert EventLabeler(Events(), Clean(keep="")).causal_rule(rows).null_count() == 4
    assert EventLabeler(Events(), Clean(keep="1 = 1")).causal_rule(rows).null_count() == 4
