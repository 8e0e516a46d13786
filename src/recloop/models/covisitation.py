"""Co-visitation: counts of items in the moments that follow an item's moments."""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
import pydantic
import scipy.sparse as sp

from recloop.models.base import ModelConfig, TrainData, decay_at
from recloop.models.neighbour_rows import PairCounts, nearest
from recloop.models.search_space import Choice, Range, SearchSpace

LAG_WEIGHTS = (1.0, 0.7, 0.5, 0.35, 0.25, 0.2, 0.15, 0.1)
RECENT_WEIGHTS = (1.0, 0.6, 0.4, 0.25, 0.2)
"""Weights of the newest moments of a scored history, newest first."""
GUEST_WEIGHT = 0.05
"""Weight of two items in one guest basket."""
Weight = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
MAX_MOMENT_ITEMS = 512
"""Most rows of one moment or basket that are counted: the pairs of two moments grow with the product of their rows."""


class CoVisitation:
    """c(a, b) = sum over a user's moments m and lags l of w_l with a in m, b in m+l.

    Lags are 1 to 8 (docs/definitions/baselines.md). With a half-life, each term has the weight
    0.5^(age of m+l at the cut / half-life).

    Of a moment of more than `MAX_MOMENT_ITEMS` rows, that many rows count, spread evenly over it.

    Row a = c(a, .) / (its sum + shrink), cut to its ``width`` largest entries. The last five moments score a history:
    score(b) = sum of the rows of their items, weighted 1, 0.6, 0.4, 0.25, 0.2, newest first.
    """

    class Config(ModelConfig):
        """Options.

        ``lags`` holds the weight of each lag, ``recent`` the weight of each of the newest moments of a scored history.
        ``shrink`` is added to a row's sum; a row keeps ``width`` neighbours. ``half_life`` is in days; None: every moment has
        weight 1. ``guests`` is the weight of two items in one guest basket, ``same`` that of two items in one moment.
        """

        lags: tuple[Weight, ...] = pydantic.Field(LAG_WEIGHTS, min_length=1)
        recent: tuple[Weight, ...] = pydantic.Field(RECENT_WEIGHTS, min_length=1)
        shrink: float = pydantic.Field(20.0, ge=0, allow_inf_nan=False)
        width: int = pydantic.Field(200, ge=1)
        half_life: float | None = pydantic.Field(None, gt=0)
        guests: Weight = GUEST_WEIGHT
        same: Weight = 0.0

    search_space: ClassVar[SearchSpace] = {
        "model.shrink": Range(1.0, 200.0, log=True),
        "model.width": Choice((100, 200, 400)),
    }

    kind: ClassVar[str] = "neighbours"
    source: ClassVar[str] = "neighbours"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:
        """Fit the three ``neighbours.*`` arrays of a CSR matrix.

        These are ``indptr`` (N+2,) int32 (int64 from 2^31 entries), ``ids`` int32 and ``weights`` float32. In ties at the
        end of a row the smaller item index is kept.
        """
        size = data.n_items + 1
        moment_items = _moment_items(data.items, data.moment_offsets, size)
        decayed = _weighted(moment_items, data.decay(self.config.half_life))
        item_moments = sp.csr_array(moment_items.T)
        factors = [
            (item_moments, _following(decayed, data.moment_user, self.config.lags)),
            *_guest_pairs(data, self.config.half_life, self.config.guests),
            *([(item_moments, sp.csr_array(self.config.same * decayed))] if self.config.same else []),
        ]
        groups, items = zip(*factors, strict=True)
        counts = PairCounts(sp.hstack(groups, format="csr"), sp.vstack(items, format="csr"), len(data.moment_user))
        return nearest(counts, self.config.width, self.config.shrink)


def _moment_items(items: np.ndarray, offsets: np.ndarray, size: int) -> sp.csr_array:
    """(M, size) items of each moment, from at most `MAX_MOMENT_ITEMS` rows of one.

    Args:
        items: (E,) item_ix; moment m has the rows ``offsets[m]:offsets[m + 1]``.
    """
    lengths = np.diff(offsets)
    if lengths.max(initial=0) > MAX_MOMENT_ITEMS:
        rank = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)  # in the moment
        length = np.repeat(np.maximum(lengths, MAX_MOMENT_ITEMS), lengths)
        is_counted = rank * MAX_MOMENT_ITEMS // length != (rank - 1) * MAX_MOMENT_ITEMS // length
        items = items[is_counted]
        offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, MAX_MOMENT_ITEMS))])
    return sp.csr_array((np.ones(len(items)), items, offsets), shape=(len(lengths), size))


def _weighted(moment_items: sp.csr_array, weights: np.ndarray) -> sp.csr_array:
    """Multiply the items (M, N+1) of each moment by its weight (M,)."""
    values = np.repeat(weights, np.diff(moment_items.indptr))
    return sp.csr_array((values, moment_items.indices, moment_items.indptr), shape=moment_items.shape)


def _guest_pairs(data: TrainData, half_life: float | None, weight: float) -> list[tuple[sp.csr_array, sp.csr_array]]:
    """Factors (N+1, M) and (M, N+1) of the pair counts of guest baskets.

    The list is empty without baskets.
    """
    if data.guests is None or not weight:
        return []
    baskets = _moment_items(data.guests.items, data.guests.offsets, data.n_items + 1)
    decay = weight * decay_at(data.guests.stamps, data.cut, half_life)
    return [(sp.csr_array(baskets.T), _weighted(baskets, decay))]


def _following(moment_items: sp.csr_array, user: np.ndarray, lags: tuple[float, ...]) -> sp.csr_array:
    """(M, N+1) weighted items that follow each moment.

    Row m = sum over lags l of w_l times the items of the same user's moment m + l.
    """
    size = moment_items.shape[0]
    last = np.append(np.flatnonzero(user[1:] != user[:-1]), size - 1)  # a user's moments are consecutive
    lengths = np.diff(last, prepend=-1)
    n_later = np.minimum(np.repeat(last, lengths) - np.arange(size), len(lags))
    indptr = np.concatenate([[0], np.cumsum(n_later)])
    lag = np.arange(indptr[-1]) - np.repeat(indptr[:-1], n_later)
    later = np.repeat(np.arange(1, size + 1), n_later) + lag
    shift = sp.csr_array((np.array(lags)[lag], later, indptr), shape=(size, size))
    return sp.csr_array(shift @ moment_items)
