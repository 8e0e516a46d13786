"""Counts of degraded answers and of posted values that filters cannot read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

LOGGER = logging.getLogger(__name__)


@dataclass
class AnswerCounts:
    """Counts since the start of the process; used on the event loop only.

    Attributes:
        degraded_answers: Answers without a part.
        mistyped_items: Posted items with a value of another type than the live bundle has.
    """

    degraded_answers: int = 0
    mistyped_items: int = 0
    _missing: tuple[str, ...] = ()

    def add(self, degraded: Sequence[str]) -> None:
        """Count an answer; log the parts that it misses if the previous one had others."""
        self.degraded_answers += bool(degraded)
        missing = tuple(degraded)
        if missing != self._missing:
            self._missing = missing
            LOGGER.warning("answers miss parts: %s", ", ".join(missing) or "none")
