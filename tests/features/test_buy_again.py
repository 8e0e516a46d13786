"""The hazard of own items by hand, usual gaps, and the source in batches."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recloop.features.buy_again import PRIOR_OWN_GAPS, SHAPE, OwnItems
from recloop.features.encode import EncodedBatch
from recloop.features.gaps import DEFAULT_GAP, PRIOR_GAPS, gaps_of, usual_log_gaps
from recloop.features.state import StateBatch, offsets_of
from recloop.records import DAY


def encoded(*users: list[tuple[int, list[int]]], now: int = 100) -> EncodedBatch:
    """Histories as (day, items); a negative item is only an input."""
    moments = [moment for user in users for moment in user]
    items = np.array([item for _, row in moments for item in row], dtype=np.int32)
    return EncodedBatch(
        states=StateBatch.empty([""] * len(users)),
        moment_offsets=offsets_of(np.array([len(user) for user in users])),
        stamps=np.array([day * DAY for day, _ in moments], dtype=np.int64),
        item_offsets=offsets_of(np.array([len(row) for _, row in moments])),
        items=np.abs(items),
        targets=items > 0,
        negative_offsets=np.zeros(len(users) + 1, dtype=np.int64),
        negatives=np.zeros(0, dtype=np.int32),
        context=np.zeros((len(users), 0), dtype=np.int32),
        context_names=[],
        now=np.full(len(users), now * DAY),
    )


def test_own_items_are_targets_with_their_number_and_stamps() -> None:
    own = OwnItems.of(encoded([(1, [3, -5])], [(2, [3, 7]), (9, [7])], [(4, [-3])]), slice(0, 3))
    assert own.queries.tolist() == [0, 1, 1]
    assert own.items.tolist() == [3, 3, 7]
    assert own.counts.tolist() == [1, 1, 2]
    assert (own.first // DAY).tolist() == [1, 2, 2]
    assert (own.last // DAY).tolist() == [1, 2, 9]


def test_hazard_by_hand() -> None:
    log_gaps = np.log1p(np.array([0.0, 20.0]))
    own = OwnItems.of(encoded([(10, [1]), (40, [1]), (90, [1])]), slice(0, 1))
    usual = (PRIOR_OWN_GAPS * math.log(21) + 2 * math.log(41)) / (PRIOR_OWN_GAPS + 2)
    since = math.log(11)  # ten days ago
    expected = 3 * SHAPE / 11 / (1 + math.exp(-SHAPE * (since - usual)))
    assert own.hazards(log_gaps, np.array([100 * DAY])).tolist() == pytest.approx([expected])


def test_hazard_rises_until_the_item_is_due_and_then_falls() -> None:
    own = OwnItems.of(encoded([(0, [1])]), slice(0, 1))
    by_day = [own.hazards(np.log1p([0.0, 20.0]), np.array([day * DAY]))[0] for day in range(1, 90)]
    peak = int(np.argmax(by_day))
    assert 0 < peak < 40
    assert by_day[:peak] == sorted(by_day[:peak])
    assert by_day[peak:] == sorted(by_day[peak:], reverse=True)


def test_hazard_before_the_newest_moment_counts_as_now() -> None:
    own = OwnItems.of(encoded([(5, [1])]), slice(0, 1))
    values = [own.hazards(np.log1p([0.0, 9.0]), np.array([day * DAY]))[0] for day in (3, 5)]
    assert values[0] == values[1] > 0


def test_usual_gap_is_shrunk_to_that_of_all_items() -> None:
    users, items = np.array([0, 0, 0, 1]), np.array([1, 1, 2, 1])
    stamps = np.array([0, 4, 0, 2]) * DAY
    gaps, of_items, users_of, repeaters = gaps_of(users, items, stamps, 4)
    assert gaps.tolist() == [4.0]
    assert of_items.tolist() == [1]
    assert users_of.tolist() == [0, 2, 1, 0]
    assert repeaters.tolist() == [0, 1, 0, 0]
    assert usual_log_gaps(gaps, of_items, 4).tolist() == pytest.approx([math.log(5)] * 4)
    two = usual_log_gaps(np.array([4.0, 9.0]), np.array([1, 2]), 4)
    mean = (math.log(5) + math.log(10)) / 2
    assert two[1] == pytest.approx((math.log(5) + PRIOR_GAPS * mean) / (1 + PRIOR_GAPS))
    none = np.zeros(0)
    assert usual_log_gaps(none, none.astype(np.int64), 2).tolist() == pytest.approx([math.log1p(DEFAULT_GAP)] * 2)


def test_hazards_do_not_depend_on_the_batch() -> None:
    generator = np.random.default_rng(0)
    users = [[(day, (generator.choice(9, 3, replace=False) + 1).tolist()) for day in range(n)] for n in (0, 3, 8)]
    batch = encoded(*users)
    log_gaps = generator.random(12)
    together = OwnItems.of(batch, slice(0, 3))
    values = together.hazards(log_gaps, batch.now)
    for number, user in enumerate(users):
        alone = OwnItems.of(encoded(user), slice(0, 1))
        np.testing.assert_array_equal(alone.items, together.items[together.queries == number])
        np.testing.assert_array_equal(alone.hazards(log_gaps, batch.now[:1]), values[together.queries == number])
    part = OwnItems.of(batch, slice(1, 3))
    np.testing.assert_array_equal(part.items, together.items)
