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

FAR = 1 << 40
"""Number of items above a target that is in no list."""


@dataclass(frozen=True)
class TargetRanks:
    """Ties of each target: (Q,) items scored higher, (Q,) items tied with it."""

    above: NDArray[np.int64]
    tied: NDArray[np.int64]

    @classmethod
    def empty(cls, size: int) -> TargetRanks:
        """Create ranks with every target missing."""
        return cls(np.full(size, FAR, dtype=np.int64), np.ones(size, dtype=np.int64))

    def record(
        self, span: slice, target: NDArray[Any], found: TopK | FusedTopK, lists: NDArray[Any], ordered: bool
    ) -> None:
        """Record the ranks of these queries' targets.

        Args:
            target: (b,) item_ix, 0 for items outside the table.
            found: The row's scores, deeper than its lists.
            lists: (b, K) shown lists; only these contain fallback items.
            ordered: True if equal scores have a defined order (closed-form rows: training popularity, then item index).
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
        """Return (Q,) per name of `metrics.RANKING`; NaN for targets outside ``asked``."""
        made = metrics.one_target_expectation(self.above, self.tied, k)
        return {name: np.where(asked, value, np.nan) for name, value in made.items()}
