"""Losses over sampled items: the sampler, expected counts and each formula."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATION = 0.75
"""Parameter t of gBCE: 0 is bce, 1 calibrates to all negatives; 0.75 is the authors' choice."""


class SampledItems(NamedTuple):
    """Items drawn with replacement and shared by all rows of a step."""

    ids: Tensor  # (m,) int64 rows of the item table
    expected: Tensor  # (m,) m q_j: expected count of each draw


class NegativeSampler:
    """Sampler of m items per step: uniform, or half uniform, half by training count.

    It has a separate random generator, so a seed gives the same draws independently of other draws.
    """

    def __init__(self, counts: np.ndarray, m: int, seed: int, by_count: bool) -> None:
        uniform = np.full(len(counts), 1 / len(counts))
        share = counts / counts.sum() if by_count and counts.sum() else uniform
        q = (uniform + share) / 2  # (N,)
        self.edges = np.cumsum(q)
        self.expected = torch.from_numpy((m * q).astype(np.float32))
        self.m = m
        self.rng = np.random.default_rng([seed, 4])

    def __call__(self, targets: Tensor) -> SampledItems:
        """Return the next draws on the device of the step's ``targets``."""
        numbers = self.edges.searchsorted(self.rng.random(self.m) * self.edges[-1], side="right")
        ids = torch.from_numpy(numbers)
        return SampledItems(ids.to(targets.device), self.expected[ids].to(targets.device))


class OwnedItems:
    """Mask of drawn items that are training positives of the row's user.

    Args:
        pairs: (P,) int64, ascending: user_ix * (N+1) + item_ix (`TrainData.owned`).
        users: (B,) int64 user_ix of the step's windows. window: (R,) int64 window of each row.
        size: Number of items N.
    """

    def __init__(self, pairs: Tensor, users: Tensor, window: Tensor, size: int) -> None:
        self.pairs = pairs
        self.users = users
        self.window = window
        self.size = size

    def __call__(self, ids: Tensor) -> Tensor:
        """Return (R, m) bool for the drawn ``ids``, rows of the item table.

        They are (m,), shared by all windows, or (B, m).
        """
        keys = self.users[:, None] * (self.size + 1) + ids + 1  # (B, m)
        position = torch.searchsorted(self.pairs, keys).clamp(max=len(self.pairs) - 1)
        return (self.pairs[position] == keys)[self.window]


class PairScores(NamedTuple):
    """Scores of R rows for their own item (target or rejected) and the m drawn items."""

    own: Tensor  # (R,)
    drawn: Tensor  # (R, m)
    same: Tensor  # (R, m) bool: the drawn item is the row's item or its user's (`OwnedItems`), so not a negative
    expected: Tensor  # (m,)
    size: int  # N

    @classmethod
    def from_vectors(
        cls, vectors: Tensor, items: Tensor, item_rows: Tensor, sampled: SampledItems, owned: OwnedItems | None = None
    ) -> PairScores:
        """Score vectors (R, D) over items (N, D).

        Args:
            item_rows: (R,) rows of ``items``. owned: None masks only the rows' own items.
        """
        is_same = sampled.ids == item_rows[:, None]
        return cls(
            own=(vectors * F.embedding(item_rows, items)).sum(1),
            drawn=vectors @ F.embedding(sampled.ids, items).T,
            same=is_same if owned is None else is_same | owned(sampled.ids),
            expected=sampled.expected.to(vectors.dtype),
            size=len(items),
        )

    def corrected(self) -> Tensor:
        """Return the corrected scores (R, m), c_j = s_j - ln(m q_j).

        The expectation of sum of e^c_j is the sum of e^s_j over all other items.
        """
        return self.drawn - self.expected.log()

    def total(self, scores: Tensor) -> Tensor:
        """Return (R,) ln of the sum of e^score over unmasked draws; -1e9 without any."""
        return scores.masked_fill(self.same, -1e9).logsumexp(1)  # -inf would have a NaN gradient

    def mean(self, terms: Tensor) -> Tensor:
        """Return (R,) mean of (R, m) over unmasked draws, 0 if all are masked."""
        return terms.masked_fill(self.same, 0).sum(1) / (~self.same).sum(1).clamp(min=1)


def ss(s: PairScores) -> Tensor:
    """Return the sampled softmax: -s_y + ln(e^s_y + sum of e^s_j).

    q is uniform and scores are uncorrected (eSASRec, arXiv 2508.06450).
    """
    return torch.logaddexp(s.own, s.total(s.drawn)) - s.own


def ss_logq(s: PairScores) -> Tensor:
    """Return the logQ-corrected sampled softmax: -s_y + ln(e^s_y + sum of e^c_j).

    The positive is in every sample, so it is not corrected.
    """
    return torch.logaddexp(s.own, s.total(s.corrected())) - s.own


def ss_refined(s: PairScores) -> Tensor:
    """Return the refined logQ loss: sg(1 - P_y) (-s_y + ln sum of e^c_j).

    P_y = e^s_y / (e^s_y + sum of e^c_j). Source: Khrylchenko et al., RecSys 2025, arXiv 2507.09331.
    The gradient of the full softmax is (1 - P_y) times the gradient of s_y minus the mean gradient of the *other* items.
    Only this mean needs sampling.
    """
    margin = s.total(s.corrected()) - s.own
    return margin.sigmoid().detach() * margin


def gbce(s: PairScores) -> Tensor:
    """Return gBCE: -beta ln sigma(s_y) - sum of ln(1 - sigma(s_j)).

    beta = a (t (1 - 1/a) + 1/a), a = min(1, m / (N - 1)). Source: gSASRec, Petrov & Macdonald, RecSys 2023
    (arXiv 2308.07192). The paper's constant 1 / (m + 1) is omitted, because AdamW is invariant to it; a dislike thus has
    the weight of one drawn negative.
    """
    share = min(1.0, s.drawn.shape[1] / max(1, s.size - 1))
    beta = share * (CALIBRATION * (1 - 1 / share) + 1 / share)
    return beta * F.softplus(-s.own) + F.softplus(s.drawn).masked_fill(s.same, 0).sum(1)


def bce(s: PairScores) -> Tensor:
    """Return BCE: -ln sigma(s_y) - mean of ln(1 - sigma(s_j)).

    In expectation this is SASRec's loss with one negative per positive.
    """
    return F.softplus(-s.own) + s.mean(F.softplus(s.drawn))


def bpr(s: PairScores) -> Tensor:
    """Return BPR: mean of -ln sigma(s_y - s_j) (Rendle et al., UAI 2009)."""
    return s.mean(F.softplus(s.drawn - s.own[:, None]))


def softmax_rejected(s: PairScores) -> Tensor:
    """Return the softmax loss of a rejected item: softplus(s_d - ln Z) = -ln(1 - p_d).

    Z = sum of e^c_j. The loss is 0 if only d itself was drawn.
    """
    row_losses = F.softplus(s.own - s.total(s.corrected()))
    return row_losses.masked_fill(s.same.all(1), 0)


def bce_rejected(s: PairScores) -> Tensor:
    """Return the BCE loss of a rejected item: softplus(s_d), as for a drawn negative."""
    return F.softplus(s.own)


def bpr_rejected(s: PairScores) -> Tensor:
    """Return the BPR loss of a rejected item: mean of softplus(s_d - s_j)."""
    return s.mean(F.softplus(s.own[:, None] - s.drawn))
