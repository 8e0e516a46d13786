"""Popular: what most people took, the same for everybody."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from recloop.models.base import ModelConfig, TrainData


class Popular:
    """Items by number of training positives, ties by item index.

    The row to beat in any table, the last rung of the ladder, and what fills short lists.
    """

    class Config(ModelConfig):
        """Popular has nothing to set."""

    kind: ClassVar[str] = "counts"
    source: ClassVar[str] = "popular"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:
        """``popular`` (N,) int32: item_ix, most positives first."""
        return {"popular": popular_order(data.counts)}


def popular_order(counts: np.ndarray) -> np.ndarray:
    """(N,) int32 item_ix by (count falling, index); ``counts`` (N+1,) with the padding row first."""
    order = np.argsort(-counts[1:].astype(np.int64), kind="stable") + 1
    return order.astype(np.int32)
