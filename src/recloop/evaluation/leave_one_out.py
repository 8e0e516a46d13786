"""Leave-one-out's numbers: where one target stands in the ranking of a row, in expectation over random breaks of ties.

The definitions (section 2) count a table's row on the list that `recommend` gives, except where each query has one
target: there the place is taken from the scores, so that no order of ids decides between equals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recloop.evaluation import metrics
from recloop.recommend.fusion import FusedTopK
from recloop.recommend.top_k import TopK

FAR = 1 << 40
"""Items above a target that no list holds."""


@dataclass(frozen=True)
class TargetRanks:
    """(Q,) items scored strictly higher than each query's target, and items tied with it, itself included."""

    above: NDArray[np.int64]
    tied: NDArray[np.int64]

    @classmethod
    def of(cls, size: int) -> TargetRanks:
        """Nothing found yet."""
        return cls(np.full(size, FAR, dtype=np.int64), np.ones(size, dtype=np.int64))

    def find(
        self, span: slice, target: NDArray[Any], found: TopK | FusedTopK, lists: NDArray[Any], ordered: bool
    ) -> None:
        """Place the targets of these queries.

        Args:
            target: (b,) item_ix, 0 for one that no list can hold.
            found: What the row's scores are taken from, deeper than its lists.
            lists: (b, K) the lists shown: an item of the ladder stands there alone.
            ordered: Equal scores have an order of their own (counting rows: training popularity, then item index).
        """
        hit = (found.items == target[:, None]) & (target[:, None] > 0)  # (b, R)
        inside = hit.any(axis=1)
        own = np.where(hit, found.scores, -np.inf).max(axis=1, initial=-np.inf)[:, None]
        above, tied = (found.scores > own).sum(axis=1), (found.scores == own).sum(axis=1)
        shown = (lists == target[:, None]) & (target[:, None] > 0)
        by_list = shown.any(axis=1) & (~inside | ordered)
        self.above[span] = np.where(by_list, shown.argmax(axis=1), np.where(inside & ~np.bool_(ordered), above, FAR))
        self.tied[span] = np.where(by_list | ~inside, 1, tied)

    def values(self, k: int, asked: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
        """(Q,) for each name of `metrics.RANKING`; NaN where the query's target is not ``asked`` for."""
        made = metrics.one_target_expectation(self.above, self.tied, k)
        return {name: np.where(asked, value, np.nan) for name, value in made.items()}
