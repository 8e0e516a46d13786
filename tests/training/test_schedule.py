"""Learning rate over a run and the moving average of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recloop.training.schedule import FINAL_RATE_SHARE, cosine_rate, share_done
from recloop.training.weight_average import WeightAverage


def test_share_done_is_the_larger_of_steps_and_budget() -> None:
    assert share_done(5, 20, seconds=1.0, budget=100.0) == 0.25
    assert share_done(5, 2_000, seconds=50.0, budget=100.0) == 0.5
    assert share_done(3, 2, seconds=0.0, budget=1.0) == share_done(0, 9, seconds=7.0, budget=1.0) == 1.0


def test_share_done_of_a_run_that_its_epochs_end_is_independent_of_the_clock() -> None:
    for seconds in (0.0, 0.1, 0.9):
        assert share_done(0, 50, seconds, budget=100.0) == 0.0
        assert share_done(7, 50, seconds, budget=100.0) == 0.14


def test_cosine_rate_falls_from_one_to_the_final_share() -> None:
    assert cosine_rate(0.0) == 1.0
    assert cosine_rate(0.5) == pytest.approx((1 + FINAL_RATE_SHARE) / 2)
    assert cosine_rate(1.0) == pytest.approx(FINAL_RATE_SHARE)


def test_weight_average_by_hand() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 0.0)
    average = WeightAverage(layer, decay=0.1)
    for weight in (1.0, 3.0):
        nn.init.constant_(layer.weight, weight)
        average.update()
    with average.applied():
        assert layer.weight.item() == pytest.approx(0.1 * 0.9 * 1.0 + 0.9 * 3.0)
    assert layer.weight.item() == 3.0


def test_weight_average_forgets_initial_weights_of_a_short_run() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 0.0)
    average = WeightAverage(layer, decay=0.9999)
    nn.init.constant_(layer.weight, 1.0)
    for _ in range(30):
        average.update()
    with average.applied():
        assert layer.weight.item() > 0.99


def test_weight_average_applied_gives_the_optimizer_its_weights_back() -> None:
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    average = WeightAverage(layer, decay=0.5)
    before = layer.weight.detach().clone()
    with average.applied():
        pass
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before - 1.0)
