"""Time-decay pooling: weighted mean of a history's item vectors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeDecayPooling(nn.Module):
    """Mean over tokens with weight e^(-r age).

    Age is in moments and r > 0 is learned. Without tokens the mean is 0.

    Shapes: B windows, T tokens, M moments, D width.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.full((1,), -2.0))  # r = softplus(rate)

    def pool_user(self, history: Tensor, moments: Tensor, mask: Tensor) -> Tensor:
        """Pool histories as of now.

        (B, T, D) vectors, (B, T) moments from the newest, (B, T) mask -> (B, D).
        """
        weight = torch.exp(-F.softplus(self.rate) * moments) * mask  # (B, T)
        mean: Tensor = (history * weight[:, :, None]).sum(1) / weight.sum(1, keepdim=True).clamp(min=1e-6)
        return mean

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
        weight = torch.exp(-F.softplus(self.rate) * age.clamp(min=0)) * is_visible  # (B, M, T)
        mean: Tensor = weight @ history / weight.sum(2, keepdim=True).clamp(min=1e-6)
        return mean
