"""Lists without the parts that failed or are left out under load."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from typing import Final

import numpy as np
import polars as pl

from recloop.errors import UserError
from recloop.recommend.fusion import FusedTopK
from recloop.recommend.top_k import TopK

LOGGER = logging.getLogger(__name__)
RANKER: Final = "ranker"
"""The fusion orders the list."""
SOURCES: Final = "sources"
"""No source could be asked; the fallback fills the list."""
DEADLINE: Final = "deadline"
"""The request waited too long for its sources; the fallback fills the list."""
STATE: Final = "state"
"""The user's state could not be read; the list is that of an unknown user."""


def is_fallback_only(without: Collection[str]) -> bool:
    """Return True if a list is made without any source."""
    return SOURCES in without or DEADLINE in without


def finite(fused: FusedTopK) -> FusedTopK:
    """Return fused lists.

    Raises:
        FloatingPointError: a score is not a number.
    """
    if np.isnan(fused.scores).any():
        raise FloatingPointError("a score is not a number")
    return fused


def working(best: Callable[[str], TopK], sources: Sequence[str], without: Collection[str]) -> dict[str, TopK]:
    """Return the lists of the sources that can be asked and give numbers.

    Args:
        best: Returns the list of a source.
        without: Sources to leave out.
    """
    recalled = {}
    for source in sources:
        if source in without:
            continue
        try:
            top_k = best(source)
        except (UserError, pl.exceptions.PolarsError):  # of a filter
            raise
        except Exception as error:  # noqa: BLE001 - the other sources answer
            LOGGER.warning("the source %s failed: %s", source, type(error).__name__)
            continue
        if np.isnan(top_k.scores).any():
            LOGGER.warning("the source %s gave scores that are not numbers", source)
            continue
        recalled[source] = top_k
    return recalled
