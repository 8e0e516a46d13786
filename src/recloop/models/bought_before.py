"""Bought-before: what this user took before, newer moments counting more."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from recloop.models.base import ModelConfig, TrainData


class BoughtBefore:
    """score(i) = sum over the user's moments that hold i of .5^(age / half-life) (definitions, section 2).

    Age is taken at the user's newest moment, which orders items as the age at now does.

    Counts moments, not rows. All of it lives in the user's state, so there is nothing to fit but the half-life, which
    is chosen on validation where it is ``auto`` (`recloop.training.baselines`).
    """

    class Config(ModelConfig):
        """``half_life`` in days; ``none``: every moment counts the same; ``auto``: by validation."""

        half_life: Literal["auto", "none"] | float = "auto"

    kind: ClassVar[str] = "counts"
    source: ClassVar[str] = "history"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:  # noqa: ARG002 - the contract's signature
        """No arrays: the counts are the state's own."""
        return {}
