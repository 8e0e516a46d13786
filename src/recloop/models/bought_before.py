"""Bought-before: items of the user's own history, newer moments weighted higher."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from recloop.models.base import ModelConfig, TrainData


class BoughtBefore:
    """score(i) = sum over the user's moments with i of 0.5^(age / half-life).

    See docs/definitions/baselines.md. Age is measured at the user's newest moment, which gives the same order as the
    age now. Moments are counted, not rows. All counts are in the user's state, so only the half-life is fitted.
    ``auto`` chooses it on validation (`recloop.training.baselines`).
    """

    class Config(ModelConfig):
        """Options.

        ``half_life`` is in days; ``none``: every moment has weight 1; ``auto``: chosen on validation.
        """

        half_life: Literal["auto", "none"] | float = "auto"

    kind: ClassVar[str] = "counts"
    source: ClassVar[str] = "history"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:  # noqa: ARG002 - the contract's signature
        """Return no arrays, because the counts are in the state."""
        return {}
