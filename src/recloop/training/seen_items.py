"""Items that a user had before a target, which the full softmax leaves out."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from recloop.training.batches import Batch


class SeenItems(NamedTuple):
    """K pairs of a target row and an item of its history.

    Lists that hide seen items cannot hold them, so the target does not compete with them.
    """

    rows: Tensor  # (K,) int64, ascending: number of the target row
    items: Tensor  # (K,) int64 rows of the item table

    @classmethod
    def from_batch(cls, batch: Batch) -> SeenItems:
        """Pairs of all targets of a batch, in the order of its windows and moments."""
        window, moment = (batch.targets > 0).nonzero().unbind(1)  # (R,)
        is_seen = (batch.moments[window] >= moment[:, None]) & batch.mask[window]  # (R, T)
        rows, token = is_seen.nonzero().unbind(1)
        return cls(rows, batch.items[window[rows], token] - 1)

    def hide(self, scores: Tensor, start: int) -> None:
        """Set scores at seen items to -inf.

        Args:
            scores: (n, N) scores of the target rows from ``start`` on.
        """
        low, high = torch.searchsorted(self.rows, torch.tensor([start, start + len(scores)], device=self.rows.device))
        rows, items = self.rows[low:high], self.items[low:high]
        scores.view(-1).index_fill_(0, (rows - start) * scores.shape[1] + items, -torch.inf)
