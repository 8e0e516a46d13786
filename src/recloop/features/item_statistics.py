"""Item statistics of a bundle, from which the features of the ranker are computed.

They are fitted up to a time (`recloop.training.item_statistics`) and stored with the bundle as its arrays ``ranking.*``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from recloop.features.rhythm import Rhythm

NAMES: Final = (
    "popularity_7d", "popularity_28d", "popularity_90d", "trend", "buyers", "repeat_rate", "gap", "age",
    "per_buyer", "repeats",
)  # fmt: skip
"""Columns of ``values``.

Popularity is the natural log of 1 + the targets of the last days. ``trend`` compares 7 with 28 days. ``buyers`` is the log
of 1 + the users; ``repeat_rate`` the share of them with several moments. ``gap`` is the usual number of days between two
moments of a user with the item. ``age`` is the days since its first row. ``per_buyer`` and ``repeats`` are rows for each
user, and repeats for each row.
"""
UNKNOWN: Final = np.float32(-1e30)
"""Value of a number that an item does not have."""


@dataclass(frozen=True)
class ItemStatistics:
    """Statistics by item_ix; row 0 pads.

    Attributes:
        values: (N+1, 10) float32, columns as `NAMES`.
        fields: Names of the categorical fields. codes: (F, N+1) int32, their codes (0 = missing).
        numbers: Names of the numeric fields. amounts: (G, N+1) float32 values on a log scale, or `UNKNOWN`.
        rhythm: Tables by category; None in bundles that were trained before there were any.
    """

    values: np.ndarray
    fields: tuple[str, ...]
    codes: np.ndarray
    numbers: tuple[str, ...]
    amounts: np.ndarray
    rhythm: Rhythm | None = None

    @cached_property
    def n_codes(self) -> int:
        """Number of codes of the field with most."""
        return int(self.codes.max(initial=0)) + 1

    @cached_property
    def keys(self) -> np.ndarray:
        """(F, N+1) int64: codes that differ between fields, `n_codes` apart."""
        return self.codes + self.n_codes * np.arange(len(self.fields))[:, None]

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], fields: Sequence[str], numbers: Sequence[str]
    ) -> ItemStatistics:
        """Read the arrays ``ranking.*`` of a bundle."""
        return cls(
            arrays["ranking.values"], tuple(fields), arrays["ranking.codes"], tuple(numbers), arrays["ranking.amounts"],
            Rhythm.from_arrays(arrays),
        )  # fmt: skip

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of serve.safetensors."""
        own = {"ranking.values": self.values, "ranking.codes": self.codes, "ranking.amounts": self.amounts}
        return own if self.rhythm is None else {**own, **self.rhythm.to_arrays()}
