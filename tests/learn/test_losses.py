"""Losses against torch's own and against each other: values, gradients, weights, chunks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody reads

from recloop.errors import UserError
from recloop.learn import losses

R, N, D = 13, 40, 8


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    vectors = torch.randn(R, D, dtype=torch.float64, requires_grad=True)
    items = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    return vectors, items, torch.randint(0, N, (R,)), torch.rand(R, dtype=torch.float64) + 0.1


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss * 3, leaves)  # the factor: what stands before the loss must reach the gradient


@pytest.mark.parametrize("chunk", [1, 3 * N, 10**6])
def test_ce_is_the_weighted_cross_entropy_of_torch(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    vectors, items, targets, weights = drawn()
    ours = losses.cross_entropy(vectors, items, targets, weights)
    each = F.cross_entropy(vectors @ items.T, targets, reduction="none")
    theirs = (weights * each).sum() / weights.sum()
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, vectors, items), gradients(theirs, vectors, items), strict=True):
        torch.testing.assert_close(mine, other)


def test_equal_weights_are_the_plain_mean() -> None:
    vectors, items, targets, _ = drawn()
    ours = losses.cross_entropy(vectors, items, targets, torch.full((R,), 5.0, dtype=torch.float64))
    torch.testing.assert_close(ours, F.cross_entropy(vectors @ items.T, targets))


def test_a_weight_of_zero_takes_the_row_out() -> None:
    vectors, items, targets, weights = drawn()
    weights[4] = 0
    ours = losses.cross_entropy(vectors, items, targets, weights)
    to_vectors, _ = gradients(ours, vectors, items)
    rest = torch.arange(R) != 4
    torch.testing.assert_close(ours, losses.cross_entropy(vectors[rest], items, targets[rest], weights[rest]))
    assert torch.all(to_vectors[4] == 0)


def test_large_scores_stay_finite() -> None:
    vectors, items, targets, weights = (tensor.float() for tensor in drawn())
    large = (vectors * 1e4).detach().requires_grad_()
    loss = losses.cross_entropy(large, items, targets.long(), weights)
    (gradient,) = torch.autograd.grad(loss, large)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def test_names() -> None:
    assert losses.loss_function("auto") is losses.loss_function("ce") is losses.cross_entropy
    with pytest.raises(UserError, match=r"train\.loss=bpr: expected auto or ce"):
        losses.loss_function("bpr")


def test_a_dislike_by_hand() -> None:
    """Scores 2, 1, 0, the first disliked at weight 3, the last at weight 1: -ln(1 - p), weighed."""
    vectors, items = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[2.0], [1.0], [0.0]], dtype=torch.float64)
    loss = losses.turned_down(vectors, items, torch.tensor([0, 2]), torch.tensor([3.0, 1.0], dtype=torch.float64))
    e = math.e
    first, last = math.log(1 + e**2 / (e + 1)), math.log(1 + 1 / (e**2 + e))
    assert float(loss) == pytest.approx((3 * first + last) / 4, abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 3 * N, 10**6])
def test_a_dislike_is_minus_the_log_of_what_is_left(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK", chunk)
    vectors, items, rejected, weights = drawn()
    ours = losses.turned_down(vectors, items, rejected, weights)
    p = (vectors @ items.T).softmax(1)[torch.arange(R), rejected]
    theirs = -(weights * torch.log1p(-p)).sum() / weights.sum()
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, vectors, items), gradients(theirs, vectors, items), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_dislike_stays_finite_where_its_item_has_all_the_score() -> None:
    vectors, items, rejected, weights = (tensor.float() for tensor in drawn())
    large = (vectors * 1e4).detach().requires_grad_()
    loss = losses.turned_down(large, items, rejected.long(), weights)
    (gradient,) = torch.autograd.grad(loss, large)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
