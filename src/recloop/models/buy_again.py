"""Buy-again: own items of a user by their number and how due they are."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from recloop.features.gaps import gaps_of, usual_log_gaps
from recloop.models.base import ModelConfig, TrainData


class BuyAgain:
    """Number of moments with an item times the hazard of another one now.

    The idea is that of Bhagat et al., "Buy It Again: Modeling Repeat Purchase Recommendations", KDD 2018. The hazard is
    that of a log-logistic distribution around the usual gap (`recloop.features.buy_again`).
    """

    class Config(ModelConfig):
        """No options."""

    kind: ClassVar[str] = "due"
    source: ClassVar[str] = "buy_again"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:
        """Fit ``log_gaps`` (N+1,) float32.

        It is the usual ln(1 + days) between two targets of a user and an item.
        """
        is_target = data.target_rows
        users = data.moment_user[data.row_moment][is_target].astype(np.int64)
        stamps = data.stamps[data.row_moment][is_target]
        size = data.n_items + 1
        gaps, items, _, _ = gaps_of(users, data.items[is_target], stamps, size)
        return {"log_gaps": usual_log_gaps(gaps, items, size).astype(np.float32)}
