"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

FIRST_STEPS = 10
"""Step t of a run keeps at most (1 + t) / (FIRST_STEPS + t) of the average, so that the initial weights fade."""


class WeightAverage:
    """Average of the weights after each step; a step keeps the share ``decay`` of it.

    Polyak & Juditsky, SIAM J. Control Optim. 1992.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.parameters = list(network.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights of one step."""
        self.steps += 1
        kept = min(self.decay, (1 + self.steps) / (FIRST_STEPS + self.steps))
        torch._foreach_lerp_(self.average, [p.data for p in self.parameters], 1 - kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged weights for a validation."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for index, parameter in enumerate(self.parameters):
            parameter.data, self.average[index] = self.average[index], parameter.data
