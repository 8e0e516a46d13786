"""Cache of results by mask: bounded by weight, the least recently used leaves first."""

from __future__ import annotations

import numpy as np

from recloop.recommend.mask_cache import MaskCache
from recloop.recommend.table_mask import TableMask


def test_cache_over_its_weight_drops_the_least_recently_used_result() -> None:
    derived: list[int] = []

    def count(table: TableMask) -> int:
        derived.append(table.n_allowed)
        return table.n_allowed

    cache = MaskCache(5, weigh=lambda n_allowed: n_allowed)
    masks = {n: TableMask.of(np.arange(10) < n) for n in (1, 2, 3, 9)}
    for n in (
        2,
        3,
        2,
        1,
        2,
        3,
        9,
        9,
    ):  # 1 does not fit beside 2 and 3: 3 leaves; 9 alone is over the weight, but newest
        assert cache.get(masks[n], count) == n
    assert derived == [2, 3, 1, 3, 9]
