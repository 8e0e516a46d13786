"""Search spaces: the settings of a model that `recloop tune` tries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included.

    Attributes:
        low, high: Two integers make a range of integers.
        log: Uniform in the logarithm of the number.
        step: Distance of neighbouring numbers; None: every number.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Choice:
    """One of a few values without an order."""

    values: tuple[str | int | float | bool, ...]


SearchSpace = Mapping[str, Range | Choice]
"""Key of `recloop.toml` (``train.lr``, ``model.dropout``) -> values to try."""

SEQUENCE_SPACE: Final[SearchSpace] = {
    "train.lr": Range(3e-4, 1e-2, log=True),
    "train.schedule": Choice(("constant", "cosine")),
    "features.dim": Choice((32, 64, 96, 128)),
    "features.max_history": Choice((20, 50, 100, 200)),
}
"""Settings that the built-in networks over a user's history share."""
