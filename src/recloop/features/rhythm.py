"""Rhythm of purchases: weekday, time of day, and days until items are taken again.

Tables by category are fitted up to a time (`recloop.training.rhythm`) and stored with the bundle as its arrays
``rhythm.*``. The rhythm of a user is a count of own rows by weekday and hour (`recloop.features.user_profile`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from recloop.features.encode import utc_offsets
from recloop.records import SECOND

WEEKDAYS: Final = 7
HOUR_BINS: Final = 8
"""Bins of three hours of a day."""
BINS: Final = WEEKDAYS + HOUR_BINS
HAZARD_DAYS: Final = (0.5, 1.5, 2.5, 3.5, 5, 7, 9, 12, 15, 19, 24, 30, 38, 48, 60, 80, 110, 150)
"""Borders of the bins of days since the last row."""
OWN: Final = ("own.same_weekday", "own.same_hour", "own.week_lag")
"""Shares of the own rows on the weekday and near the hour of the query; days to the nearest whole week since the last."""
FIELD: Final = ("weekday", "hour", "hazard")
"""Features of each categorical field."""


@dataclass(frozen=True)
class Rhythm:
    """Tables by field and category code.

    Attributes:
        times: (F, K, 15) float32 log of the share of a weekday, then of a bin of hours, over that of all items.
        hazard: (F, K, 19) float32 log of the repeats a day and row at risk, by bin of `HAZARD_DAYS`.
    """

    times: np.ndarray
    hazard: np.ndarray

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Rhythm | None:
        """Read the arrays ``rhythm.*`` of a bundle; None without them."""
        return cls(arrays["rhythm.times"], arrays["rhythm.hazard"]) if "rhythm.times" in arrays else None

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of serve.safetensors."""
        return {"rhythm.times": self.times, "rhythm.hazard": self.hazard}


def weekdays_and_hours(stamps: np.ndarray, timezone: str) -> tuple[np.ndarray, np.ndarray]:
    """(n,) weekday from 0 = Monday, and (n,) bin of hours, of stamps in a time zone."""
    hours = (stamps + utc_offsets(stamps, timezone)) // (3_600 * SECOND)
    return (hours // 24 + 3) % WEEKDAYS, hours % 24 // (24 // HOUR_BINS)


def hazard_bins(days: np.ndarray) -> np.ndarray:
    """(n,) bin of `HAZARD_DAYS` of days since a row."""
    return np.searchsorted(np.array(HAZARD_DAYS), days, side="right")
