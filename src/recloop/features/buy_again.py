"""Own items of a user by the hazard of another purchase now.

Training, evaluation, serving and verification call these functions. Ages of items depend on the time of the query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from recloop.features.encode import EncodedBatch
from recloop.features.user_profile import keys_of
from recloop.records import DAY

SHAPE: Final = 1.5
"""Shape of the log-logistic distribution of gaps; above 1 the hazard rises, then falls."""
PRIOR_OWN_GAPS: Final = 10.0
"""Gaps of the item's usual length that a user's own gaps are averaged with."""


@dataclass(frozen=True)
class OwnItems:
    """Items that were targets in the histories of B queries.

    There are P pairs, ascending by query and item.
    """

    queries: np.ndarray  # (P,) from 0
    items: np.ndarray  # (P,) item_ix
    counts: np.ndarray  # (P,) moments with the item as a target
    first: np.ndarray  # (P,) stamp of the oldest of them
    last: np.ndarray  # (P,) stamp of the newest

    @classmethod
    def of(cls, encoded: EncodedBatch, queries: slice) -> OwnItems:
        """Summarize the histories of some queries."""
        row_offsets = encoded.row_offsets[queries.start : queries.stop + 1]
        rows = slice(int(row_offsets[0]), int(row_offsets[-1]))
        is_target = encoded.targets[rows]
        owners = np.repeat(np.arange(len(row_offsets) - 1), np.diff(row_offsets))[is_target]
        items = encoded.items[rows][is_target].astype(np.int64)
        stamps = np.repeat(encoded.stamps, np.diff(encoded.item_offsets))[rows][is_target]
        keys = keys_of(owners, items)
        order = np.argsort(keys, kind="stable")  # rows of a query are oldest first
        starts = np.flatnonzero(np.diff(keys[order], prepend=-1))
        counts = np.diff(starts, append=len(order))
        oldest, newest = order[starts], order[starts + counts - 1]
        return cls(owners[oldest], items[oldest], counts, stamps[oldest], stamps[newest])

    def hazards(self, log_gaps: np.ndarray, now: np.ndarray) -> np.ndarray:
        """(P,) float64 counts times the hazard of another moment with the item.

        Args:
            log_gaps: (N+1,) `recloop.features.gaps.usual_log_gaps`. now: (B,) stamps.
        """
        since = np.log1p(np.maximum(now[self.queries] - self.last, 0) / DAY)
        n_gaps = self.counts - 1
        own_gap = np.log1p((self.last - self.first) / DAY / np.maximum(n_gaps, 1))
        usual = (PRIOR_OWN_GAPS * log_gaps[self.items] + n_gaps * own_gap) / (PRIOR_OWN_GAPS + n_gaps)
        hazards: np.ndarray = self.counts * SHAPE * np.exp(-since) / (1.0 + np.exp(-SHAPE * (since - usual)))
        return hazards
