"""Affinity between field values: of users to items, and of recent items to items.

A query's profile has one number for each value of the item fields. The score of an item is its prior and the profile at
its values, so items without history have a score too (docs/definitions/attributes.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from recloop.features.encode import EncodedBatch, attribute_codes
from recloop.features.spec import FeatureSpec
from recloop.features.vocabulary import FieldCodes

PREFIX: Final = "attributes."
"""Prefix of the arrays of a bundle."""
RECENT_ROWS: Final = 20
"""Newest rows of a history whose items count."""
USER_FIELD: Final = "user."


@dataclass(frozen=True)
class FieldColumns:
    """Code columns of the fields of one side, numbered over all fields.

    Attributes:
        offsets: (C,) number of code 0 of each column's field.
        fields: (C,) index of each column's field; several categories have several columns.
        size: Number of codes of all fields.
    """

    offsets: np.ndarray
    fields: np.ndarray
    size: int

    @classmethod
    def of(cls, side: str, spec: FeatureSpec, codes: FieldCodes) -> FieldColumns:
        """Return the columns of `recloop.features.encode.attribute_codes` for a side."""
        described = attribute_codes(side, spec, codes, [])[1]
        names = list(dict.fromkeys(name for name, _, _ in described))
        starts = np.cumsum([0, *(codes.size(name) for name in names)])
        fields = np.array([names.index(name) for name, _, _ in described], dtype=np.int64)
        return cls(starts[fields], fields, int(starts[-1]))

    def numbers(self, codes: np.ndarray) -> np.ndarray:
        """(n, C) numbers of field codes (n, C) over all fields."""
        numbers: np.ndarray = codes.astype(np.int64) + self.offsets
        return numbers

    def shares(self, slots: np.ndarray) -> np.ndarray:
        """(n, C) float32: 1 / known values of the field, 0 for an unknown value."""
        known = slots > 0
        shares = known.astype(np.float32)
        for field in np.flatnonzero(np.bincount(self.fields) > 1).tolist():
            columns = np.flatnonzero(self.fields == field)
            shares[:, columns] /= np.maximum(1, known[:, columns].sum(axis=1, keepdims=True))
        return shares


@dataclass(frozen=True)
class AttributeAffinity:
    """Affinities of a bundle, as its arrays ``attributes.*``.

    A slot is a field value that is counted; slot 0 collects all others. U slots of users, V of items, N items.

    Attributes:
        affinity: (1+U+V, 1+V) float32 smoothed log lift of each item value, given a user value (rows 1..U) or a value of
            the same field of a recent item (rows U+1..U+V); row 0 and column 0 are 0.
        user_slots, item_slots: int32 slot of each number of `FieldColumns`.
        prior: (N+1,) float32 log of the decayed targets of an item. value_prior: (1+V,) its mean over a value's items.
        strengths: (2,) float32 factors of user fields and of recent items; 0: not used.
    """

    affinity: np.ndarray
    user_slots: np.ndarray
    item_slots: np.ndarray
    prior: np.ndarray
    value_prior: np.ndarray
    strengths: np.ndarray

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> AttributeAffinity | None:
        """Read the arrays of a bundle; None if it has no affinities."""
        if f"{PREFIX}affinity" not in arrays:
            return None
        return cls(**{name: arrays[PREFIX + name] for name in cls.__dataclass_fields__})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of serve.safetensors."""
        return {PREFIX + name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def n_users(self) -> int:
        """Number of slots of user values."""
        return len(self.affinity) - len(self.value_prior)

    def profile(
        self,
        user: np.ndarray,
        user_shares: np.ndarray,
        recent: np.ndarray,
        shares: np.ndarray,
        strengths: np.ndarray | None = None,
    ) -> np.ndarray:
        """(1+V,) float32 value of each item slot for one query.

        Args:
            user, user_shares: (Cu,) slots of the user's fields and their shares.
            recent, shares: (n, C) slots of the recent items and their shares.
            strengths: Factors of user fields and of recent items; None: those of the bundle.
        """
        strengths = self.strengths if strengths is None else strengths
        profile = strengths[0] * (user_shares @ self.affinity[user])
        if len(recent) and strengths[1] > 0:
            rows = np.where(recent > 0, recent + self.n_users, 0).ravel()
            profile += strengths[1] * (shares.ravel() @ self.affinity[rows]) / np.float32(len(recent))
        return np.asarray(profile, dtype=np.float32)

    def outside_prior(self, slots: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """(n,) float32 prior of items without a row: the mean over their known fields."""
        weights = shares.sum(axis=1)
        prior: np.ndarray = scores_of(self.value_prior, slots, shares) / np.maximum(weights, 1)
        return prior


def scores_of(profile: np.ndarray, slots: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(n,) float32 sum over the fields of the mean profile of their known values."""
    scores = np.zeros(len(slots), dtype=np.float32)
    for column in range(slots.shape[1]):
        scores += profile[slots[:, column]] * shares[:, column]
    return scores


def recent_items(encoded: EncodedBatch, b: int) -> np.ndarray:
    """(n,) item_ix of the newest rows of query b, at most `RECENT_ROWS`."""
    low, high = encoded.row_offsets[b : b + 2].tolist()
    newest: np.ndarray = encoded.items[max(low, high - RECENT_ROWS) : high]
    return newest


@lru_cache(maxsize=64)
def user_code_columns(names: tuple[str, ...]) -> np.ndarray:
    """Return the columns of a batch's context that hold user fields."""
    return np.flatnonzero([name.startswith(USER_FIELD) for name in names])
