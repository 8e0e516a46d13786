"""Leave-one-out metrics: a target's rank in expectation over random tie-breaking.

A row is measured on the list of `recommend`, except if each query has one target (docs/definitions/ranking-metrics.md).
Then the rank is computed from the scores, so the order of ids does not decide ties.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recloop.evaluation import metrics
from recloop.recommend.fusion import FusedTopK
from recloop.recommend.top_k import TopK

FAR_RANK = 1 << 40
"""Number of items above a target that is in no list."""


@dataclass(frozen=True)
class TargetRanks:
    """Ties of each target: (Q,) items scored higher, (Q,) items tied with it."""

    above: NDArray[np.int64]
    tied: NDArray[np.int64]

    @classmethod
    def empty(cls, size: int) -> TargetRanks:
        """Create ranks with every target missing."""
        return cls(np.full(size, FAR_RANK, dtype=np.int64), np.ones(size, dtype=np.int64))

    def record(
        self, span: slice, target: NDArray[Any], scored: TopK | FusedTopK, lists: NDArray[Any], ordered: bool
    ) -> None:
        """Record the ranks of these queries' targets.

        Args:
            target: (b,) item_ix, 0 for items outside the table.
            scored: The row's scores, deeper than its lists.
            lists: (b, K) shown lists; only these contain fallback items.
            ordered: True if equal scores have a defined order (closed-form rows: training popularity, then item index).
        """
        is_target = (scored.items == target[:, None]) & (target[:, None] > 0)  # (b, R)
        is_recalled = is_target.any(axis=1)
        target_score = np.where(is_target, scored.scores, -np.inf).max(axis=1, initial=-np.inf)[:, None]
        above, tied = (scored.scores > target_score).sum(axis=1), (scored.scores == target_score).sum(axis=1)
        in_list = (lists == target[:, None]) & (target[:, None] > 0)
        by_list = in_list.any(axis=1) & (~is_recalled | ordered)
        self.above[span] = np.where(
            by_list, in_list.argmax(axis=1), np.where(is_recalled & ~np.bool_(ordered), above, FAR_RANK)
        )
        self.tied[span] = np.where(by_list | ~is_recalled, 1, tied)

    def values(self, k: int, mask: NDArray[np.bool_]) -> dict[str, NDArray[np.float64]]:
        """Return (Q,) per name of `metrics.RANKING`; NaN for targets outside ``mask``."""
        expectations = metrics.one_target_expectation(self.above, self.tied, k)
        return {name: np.where(mask, value, np.nan) for name, value in expectations.items()}
