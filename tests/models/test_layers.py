"""Shared layers of the networks."""

from __future__ import annotations

import pytest
import torch

from recloop.models.layers import Dropout


def test_dropout_in_training_keeps_the_expectation_and_the_gradient_of_kept_values() -> None:
    torch.manual_seed(0)
    layer = Dropout(0.2)
    x = torch.ones(50, 41, requires_grad=True)  # not a multiple of eight values
    y = layer(x)
    y.sum().backward()
    kept = 1 - layer.n_dropped / 256
    assert (y == 0).float().mean().item() == pytest.approx(1 - kept, abs=0.03)
    assert sorted(set(y.ravel().tolist())) == pytest.approx([0.0, 1 / kept])
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def test_dropout_repeats_by_seed_and_drops_nothing_outside_training() -> None:
    layer = Dropout(0.5)
    x = torch.ones(9, 9)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    layer.active = False
    assert layer(x) is x
    layer.active = True
    assert layer.eval()(x) is x
    assert Dropout(0.0).train()(x) is x
