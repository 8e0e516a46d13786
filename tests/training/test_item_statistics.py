"""Statistics of items against their plain definitions."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from recloop.records import DAY
from recloop.training.item_statistics import gaps_of


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_gaps_of_random_rows_equal_their_definition(rows: int) -> None:
    random = np.random.default_rng(rows)
    users, items = random.integers(0, 4, rows), random.integers(1, 5, rows)
    stamps = random.integers(0, 50, rows) * DAY
    moments = defaultdict(list)
    for user, item, stamp in zip(users.tolist(), items.tolist(), stamps.tolist(), strict=True):
        moments[user, item].append(stamp)
    gaps, gap_items, buyers, repeaters = gaps_of(users, items, stamps, 5)
    expected = [
        (item, (later - earlier) / DAY)
        for (_, item), times in moments.items()
        for earlier, later in zip(sorted(times), sorted(times)[1:], strict=False)
    ]
    assert sorted(zip(gap_items.tolist(), gaps.tolist(), strict=True)) == sorted(expected)
    assert buyers.tolist() == [sum(item == n for _, item in moments) for n in range(5)]
    assert repeaters.tolist() == [sum(item == n and len(t) > 1 for (_, item), t in moments.items()) for n in range(5)]
