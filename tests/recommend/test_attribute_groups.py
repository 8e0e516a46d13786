"""Best items of groups of equal field values."""

from __future__ import annotations

import numpy as np
import pytest

from recloop.features.attribute_affinity import scores_of
from recloop.recommend import attribute_groups
from recloop.recommend.attribute_groups import GroupedItems, group_numbers
from recloop.recommend.top_k import best_rows

N_VALUES = 6


def best_of_all(profile: np.ndarray, items: np.ndarray, prior: np.ndarray, slots: np.ndarray, n: int) -> list[int]:
    """Score every item alone."""
    scores = prior[items] + scores_of(profile, slots[items], shares_of(slots)[items])
    best: list[int] = items[best_rows(scores, n)].tolist()
    return best


def shares_of(slots: np.ndarray) -> np.ndarray:
    return (slots > 0).astype(np.float32) / slots.shape[1]


@pytest.mark.parametrize("seed", range(30))
def test_best_items_equal_those_of_scoring_every_item(seed: int) -> None:
    draw = np.random.default_rng(seed)
    slots = draw.integers(0, N_VALUES, (300, int(draw.integers(1, 4))))
    prior = draw.integers(-3, 3, 300).astype(np.float32)  # few values: many ties
    profile = draw.integers(-2, 3, N_VALUES).astype(np.float32)
    items = np.flatnonzero(draw.random(300) < draw.random()).astype(np.int32)
    grouped = GroupedItems.of(items, group_numbers(slots, N_VALUES), prior, slots, shares_of(slots))
    banned = np.flatnonzero(draw.random(300) < 0.5 * draw.random()).astype(np.int32)
    for left_out in (banned[:0], banned):
        allowed = items[~np.isin(items, left_out)]
        for n in (1, 7, 40, 500):
            assert grouped.best(profile, n, left_out).tolist() == best_of_all(profile, allowed, prior, slots, n)


def test_no_item_is_the_best_of_none() -> None:
    slots = np.zeros((3, 2), dtype=np.int64)
    grouped = GroupedItems.of(
        np.zeros(0, dtype=np.int32), group_numbers(slots, 1), np.zeros(3, np.float32), slots, shares_of(slots)
    )
    assert not len(grouped.best(np.zeros(1, np.float32), 5, np.zeros(0, dtype=np.int32)))


def test_rows_have_equal_numbers_exactly_if_they_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    slots = draw.integers(0, 3, (200, 5))
    rows = [tuple(row) for row in slots.tolist()]
    known = dict(zip(rows, group_numbers(slots, 3).tolist(), strict=True))
    monkeypatch.setattr(attribute_groups, "MAX_NUMBER", 1_000)  # numbers are made dense on the way
    for numbers in (group_numbers(slots, 3), group_numbers(slots, 1_000)):
        pairs = set(zip(rows, numbers.tolist(), strict=True))
        assert len(pairs) == len(set(rows)) == len(set(numbers.tolist())) == len(set(known.values()))
