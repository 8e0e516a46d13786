"""Time-decay pooling: weighted means of a history's item vectors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOWEST_RATE, FASTEST_RATE = 0.02, 2.0
"""Initial decay per moment of the first and the last mean; the others lie between them, evenly in the logarithm."""


class TimeDecayPooling(nn.Module):
    """Sum of ``means`` projected means over tokens, each with weights e^(-r age).

    Age is in moments, and each r > 0 is learned. Fast means know the newest moments, slow ones the whole history. At the
    start the projections make the average of all means. Without tokens the means are 0.

    Shapes: B windows, T tokens, M moments, D = ``dim``, K = ``means``.
    """

    def __init__(self, dim: int, means: int) -> None:
        super().__init__()
        rates = torch.logspace(math.log10(SLOWEST_RATE), math.log10(FASTEST_RATE), means)
        self.rate = nn.Parameter(rates.expm1().log())  # r = softplus(rate)
        self.project = nn.Linear(means * dim, dim, bias=False)
        with torch.no_grad():
            self.project.weight.copy_(torch.eye(dim).repeat(1, means) / means)

    def pool_user(self, history: Tensor, moments: Tensor, mask: Tensor) -> Tensor:
        """Pool histories as of now.

        (B, T, D) vectors, (B, T) moments from the newest, (B, T) mask -> (B, D).
        """
        weights = torch.exp(-F.softplus(self.rate)[:, None] * moments[:, None]) * mask[:, None]  # (B, K, T)
        means = weights @ history / weights.sum(2, keepdim=True).clamp(min=1e-6)  # (B, K, D)
        pooled: Tensor = self.project(means.flatten(1))
        return pooled

    def pool_moments(
        self, history: Tensor, moments: Tensor, mask: Tensor, size: int, arrived: Tensor | None = None
    ) -> Tensor:
        """(B, M, D) pooled histories at the end of each moment m < ``size``.

        Moments are counted from the newest.

        Args:
            arrived: (B, T, T) True where token j had arrived by the last row of token i's moment; None: everywhere.
        """
        number = torch.arange(size, device=mask.device)[None, :, None]  # (1, M, 1)
        age = moments[:, None, :] - number  # (B, M, T) moments between token and end
        is_visible = (age >= 0) & mask[:, None, :]
        if arrived is not None:
            same_moment = ((age == 0) & mask[:, None, :]).to(history.dtype)
            is_visible = is_visible & (same_moment @ arrived.to(history.dtype) > 0)
        age = age.clamp(min=0)
        means = [self._mean(history, torch.exp(-rate * age) * is_visible) for rate in F.softplus(self.rate)]
        pooled: Tensor = self.project(torch.cat(means, dim=2))
        return pooled

    @staticmethod
    def _mean(history: Tensor, weights: Tensor) -> Tensor:
        """(B, M, D) means of vectors (B, T, D) with weights (B, M, T)."""
        mean: Tensor = weights @ history / weights.sum(2, keepdim=True).clamp(min=1e-6)
        return mean
