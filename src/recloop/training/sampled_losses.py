"""Losses over a few drawn items in place of all: what is drawn, how often that was to be expected, and what it costs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATION = 0.75
"""t of gBCE: 0 is plain bce, 1 gives the probabilities that all negatives would; .75 is the authors' own choice."""


class SampledItems(NamedTuple):
    """m items, drawn with replacement, that all rows of a step share."""

    ids: Tensor  # (m,) int64 rows of the item table
    expected: Tensor  # (m,) m q_j: how often each was to be drawn


class NegativeSampler:
    """m draws a step from q: uniform over N items, or half uniform and half by training count.

    They come from a generator of their own, so that a seed gives the same ones whatever else is drawn beside.
    """

    def __init__(self, counts: np.ndarray, m: int, seed: int, by_count: bool) -> None:
        uniform = np.full(len(counts), 1 / len(counts))
        share = counts / counts.sum() if by_count and counts.sum() else uniform
        q = (uniform + share) / 2  # (N,)
        self.edges = np.cumsum(q)
        self.expected = torch.from_numpy((m * q).astype(np.float32))
        self.m, self.rng = m, np.random.default_rng([seed, 4])

    def __call__(self, targets: Tensor) -> SampledItems:
        """The next draws, on the device of the step's ``targets``."""
        place = self.edges.searchsorted(self.rng.random(self.m) * self.edges[-1], side="right")
        ids = torch.from_numpy(place)
        return SampledItems(ids.to(targets.device), self.expected[ids].to(targets.device))


class OwnedItems:
    """Which drawn items a row's user has among the training positives: they are not negatives of this user.

    Args:
        pairs: (P,) int64, ascending: user_ix * (N+1) + item_ix (`TrainData.owned`).
        users: (B,) int64 user_ix of the step's windows. window: (R,) int64, the window of each row.
        size: N.
    """

    def __init__(self, pairs: Tensor, users: Tensor, window: Tensor, size: int) -> None:
        self.pairs, self.users, self.window, self.size = pairs, users, window, size

    def __call__(self, ids: Tensor) -> Tensor:
        """(R, m) bool for the drawn ``ids`` (m,), rows of the item table (item_ix - 1)."""
        keys = self.users[:, None] * (self.size + 1) + ids + 1  # (B, m)
        place = torch.searchsorted(self.pairs, keys).clamp(max=len(self.pairs) - 1)
        return (self.pairs[place] == keys)[self.window]


class PairScores(NamedTuple):
    """What R rows say of their own item, the target or the one turned down, and of the m drawn ones."""

    own: Tensor  # (R,)
    drawn: Tensor  # (R, m)
    same: Tensor  # (R, m) bool: the drawn item is not a negative of the row: its own one, or its user's (`OwnedItems`)
    expected: Tensor  # (m,)
    size: int  # N

    @classmethod
    def of(
        cls, vectors: Tensor, items: Tensor, own: Tensor, drawn: SampledItems, owned: OwnedItems | None = None
    ) -> PairScores:
        """Of vectors (R, D) over items (N, D); own (R,) rows of ``items``; ``owned`` None: own items alone are masked."""
        same = drawn.ids == own[:, None]
        return cls(
            own=(vectors * F.embedding(own, items)).sum(1),
            drawn=vectors @ F.embedding(drawn.ids, items).T,
            same=same if owned is None else same | owned(drawn.ids),
            expected=drawn.expected.to(vectors.dtype),
            size=len(items),
        )

    def corrected(self) -> Tensor:
        """(R, m) c_j = s_j - ln(m q_j): sum of e^c_j has the mean of sum of e^s_j over all other items."""
        return self.drawn - self.expected.log()

    def total(self, scores: Tensor) -> Tensor:
        """(R,) ln of the sum of e^score over the drawn items that are not masked; -1e9 where all are."""
        return scores.masked_fill(self.same, -1e9).logsumexp(1)  # not -inf: its gradient would be NaN

    def mean(self, terms: Tensor) -> Tensor:
        """(R,) mean of (R, m) over the drawn items that are not masked; 0 where all are."""
        return terms.masked_fill(self.same, 0).sum(1) / (~self.same).sum(1).clamp(min=1)


def ss(s: PairScores) -> Tensor:
    """-s_y + ln(e^s_y + sum of e^s_j): q uniform, uncorrected (eSASRec, arXiv 2508.06450)."""
    return torch.logaddexp(s.own, s.total(s.drawn)) - s.own


def ss_logq(s: PairScores) -> Tensor:
    """-s_y + ln(e^s_y + sum of e^c_j): the positive is not corrected, it is always there."""
    return torch.logaddexp(s.own, s.total(s.corrected())) - s.own


def ss_refined(s: PairScores) -> Tensor:
    """sg(1 - P_y) (-s_y + ln sum of e^c_j), P_y = e^s_y / (e^s_y + sum of e^c_j): Khrylchenko et al., RecSys 2025,
    arXiv 2507.09331.

    The gradient of the full softmax is (1 - P_y) times that of s_y less the mean slope of the *other* items, and only
    this mean has to be drawn.
    """
    margin = s.total(s.corrected()) - s.own
    return margin.sigmoid().detach() * margin


def gbce(s: PairScores) -> Tensor:
    """-beta ln sigma(s_y) - sum of ln(1 - sigma(s_j)), beta = a (t (1 - 1/a) + 1/a), a = m / (N - 1) at most 1: gSASRec,
    Petrov & Macdonald, RecSys 2023 (arXiv 2308.07192).

    Without their constant 1 / (m + 1), which AdamW does not feel: so a dislike weighs what one drawn negative does.
    """
    share = min(1.0, s.drawn.shape[1] / max(1, s.size - 1))
    beta = share * (CALIBRATION * (1 - 1 / share) + 1 / share)
    return beta * F.softplus(-s.own) + F.softplus(s.drawn).masked_fill(s.same, 0).sum(1)


def bce(s: PairScores) -> Tensor:
    """-ln sigma(s_y) - mean of ln(1 - sigma(s_j)): SASRec's own loss, one negative a positive, in expectation."""
    return F.softplus(-s.own) + s.mean(F.softplus(s.drawn))


def bpr(s: PairScores) -> Tensor:
    """Mean of -ln sigma(s_y - s_j): Rendle et al., "BPR", UAI 2009."""
    return s.mean(F.softplus(s.drawn - s.own[:, None]))


def softmax_refused(s: PairScores) -> Tensor:
    """softplus(s_d - ln Z) = -ln(1 - p_d), Z = sum of e^c_j: a dislike or a skip in the softmax family.

    Where nothing but d was drawn there is nothing to compare with: 0.
    """
    each = F.softplus(s.own - s.total(s.corrected()))
    return each.masked_fill(s.same.all(1), 0)


def bce_refused(s: PairScores) -> Tensor:
    """softplus(s_d): a negative like any other."""
    return F.softplus(s.own)


def bpr_refused(s: PairScores) -> Tensor:
    """Mean of softplus(s_d - s_j): everything drawn goes before it."""
    return s.mean(F.softplus(s.own[:, None] - s.drawn))
