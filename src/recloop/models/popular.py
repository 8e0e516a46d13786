"""Popular: items by number of positives, the same list for all users."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pydantic

from recloop.models.base import ModelConfig, TrainData


class Popular:
    """Items by number of training positives, ties by item index.

    With a half-life newer moments weigh more. It is the baseline of evaluation tables and the last fallback.
    """

    class Config(ModelConfig):
        """Options.

        ``half_life`` in days, measured at the cut; None: every positive has weight 1. `tune` chooses it on validation.
        """

        half_life: float | None = pydantic.Field(None, gt=0)

    kind: ClassVar[str] = "counts"
    source: ClassVar[str] = "popular"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:
        """Fit ``popular`` (N,) int32: item_ix, most positives first."""
        return {"popular": popular_order(data.popularity(self.config.half_life))}


def popular_order(counts: np.ndarray) -> np.ndarray:
    """(N,) int32 item_ix by descending count, ties by index.

    ``counts`` is (N+1,) with the padding row first.
    """
    order = np.argsort(-counts[1:], kind="stable") + 1
    return order.astype(np.int32)
