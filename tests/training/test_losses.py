"""Losses against those of torch: values, gradients, weights, chunks."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from recloop.config import Train
from recloop.errors import UserError
from recloop.models.base import TrainData, load_model
from recloop.settings import build
from recloop.training import losses, sampled_losses

Arrays = Callable[..., TrainData]
R, N, D = 13, 40, 8


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    vectors = torch.randn(R, D, dtype=torch.float64, requires_grad=True)
    items = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    return vectors, items, torch.randint(0, N, (R,)), torch.rand(R, dtype=torch.float64) + 0.1


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss * 3, leaves)  # the factor must reach the gradient


@pytest.mark.parametrize("chunk", [1, 3 * N, 10**6])
def test_cross_entropy_equals_the_weighted_one_of_torch(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_SCORES", chunk)
    vectors, items, targets, weights = drawn()
    ours = losses.cross_entropy(vectors, items, targets, weights)
    each = F.cross_entropy(vectors @ items.T, targets, reduction="none")
    theirs = (weights * each).sum() / weights.sum()
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, vectors, items), gradients(theirs, vectors, items), strict=True):
        torch.testing.assert_close(mine, other)


def test_cross_entropy_with_equal_weights_is_the_mean() -> None:
    vectors, items, targets, _ = drawn()
    ours = losses.cross_entropy(vectors, items, targets, torch.full((R,), 5.0, dtype=torch.float64))
    torch.testing.assert_close(ours, F.cross_entropy(vectors @ items.T, targets))


def test_cross_entropy_with_weight_0_ignores_the_row() -> None:
    vectors, items, targets, weights = drawn()
    weights[4] = 0
    ours = losses.cross_entropy(vectors, items, targets, weights)
    to_vectors, _ = gradients(ours, vectors, items)
    rest = torch.arange(R) != 4
    torch.testing.assert_close(ours, losses.cross_entropy(vectors[rest], items, targets[rest], weights[rest]))
    assert torch.all(to_vectors[4] == 0)


def test_cross_entropy_of_large_scores_is_finite() -> None:
    vectors, items, targets, weights = (tensor.float() for tensor in drawn())
    large = (vectors * 1e4).detach().requires_grad_()
    loss = losses.cross_entropy(large, items, targets.long(), weights)
    (gradient,) = torch.autograd.grad(loss, large)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()


def data_of(n_items: int, arrays: Arrays) -> TrainData:
    return arrays([[[1], [2]], [[1], [1]]], n_items)


def test_criterion_auto_is_full_softmax_up_to_100000_items(arrays: Arrays) -> None:
    network = load_model("sasrec", {})
    small, large = data_of(100_000, arrays), data_of(100_001, arrays)
    assert losses.Criterion(network, small, Train()).target_loss is losses.cross_entropy
    assert losses.Criterion(network, large, Train()).target_loss is sampled_losses.ss_refined
    assert losses.Criterion(network, large, Train(loss="ce")).name == "ce"
    for name, (positive, refused, _) in losses.SAMPLED_LOSSES.items():
        found = losses.Criterion(network, small, Train.model_validate({"loss": name}))
        assert (found.name, found.target_loss, found.rejected_loss) == (name, positive, refused)


def test_criterion_of_two_tower_and_neumf_uses_their_own_losses(arrays: Arrays) -> None:
    data = data_of(30, arrays)
    towers = load_model("two_tower", {})
    assert losses.Criterion(towers, data_of(towers.max_full_softmax_items, arrays), Train()).name == "ce"
    assert losses.Criterion(towers, data_of(towers.max_full_softmax_items + 1, arrays), Train()).name == "ss_logq"
    assert losses.Criterion(towers, data, Train(loss="ss_refined")).sampler == towers.draw_negatives
    assert losses.Criterion(towers, data, Train(loss="bpr")).sampler != towers.draw_negatives  # q is uniform there
    assert losses.Criterion(towers, data, Train(loss="ce")).sampler is None
    neumf = load_model("neumf", {})
    assert losses.Criterion(neumf, data, Train(loss="bce")).target_loss == neumf.sampled_loss
    with pytest.raises(
        UserError, match=r"train\.loss=bpr: expected auto or bce, the loss that NeuMF .*try: --set train\.loss=auto"
    ):
        losses.Criterion(neumf, data, Train(loss="bpr"))


def test_train_loss_unknown_raises_and_names_the_nearest() -> None:
    with pytest.raises(
        UserError, match=r"train\.loss=ss_log: expected 'auto'.* or 'bpr'; nearest: ss_logq; try: correct"
    ):
        build({"train": {"loss": "ss_log"}}, environment={})


def test_criterion_weighs_targets_and_rejected_items_together(arrays: Arrays) -> None:
    """Targets of weights 1 and 3 and a dislike of weight 2 count 1/6, 1/2 and 1/3."""
    criterion = losses.Criterion(load_model("sasrec", {}), data_of(N, arrays), Train())
    vectors, items, own, _ = drawn()
    positive = losses.LossRows(vectors[:2], own[:2], torch.tensor([1.0, 3.0], dtype=torch.float64))
    refused = losses.LossRows(vectors[2:3], own[2:3], torch.tensor([2.0], dtype=torch.float64))
    p = (vectors @ items.T).softmax(1)[torch.arange(R), own]
    expected = (-p[0].log() - 3 * p[1].log() - 2 * torch.log1p(-p[2])) / 6
    torch.testing.assert_close(criterion(items, positive, refused), expected)
    torch.testing.assert_close(criterion(items, positive, None), (-p[0].log() - 3 * p[1].log()) / 4)


def test_rejected_item_loss_by_hand() -> None:
    """Scores 2, 1, 0; dislikes of the first (weight 3) and last: -ln(1 - p)."""
    vectors, items = torch.ones(2, 1, dtype=torch.float64), torch.tensor([[2.0], [1.0], [0.0]], dtype=torch.float64)
    loss = losses.rejected_item_loss(
        vectors, items, torch.tensor([0, 2]), torch.tensor([3.0, 1.0], dtype=torch.float64)
    )
    e = math.e
    first, last = math.log(1 + e**2 / (e + 1)), math.log(1 + 1 / (e**2 + e))
    assert float(loss) == pytest.approx((3 * first + last) / 4, abs=1e-12)


@pytest.mark.parametrize("chunk", [1, 3 * N, 10**6])
def test_rejected_item_loss_equals_minus_log_of_one_minus_p(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "CHUNK_SCORES", chunk)
    vectors, items, rejected, weights = drawn()
    ours = losses.rejected_item_loss(vectors, items, rejected, weights)
    p = (vectors @ items.T).softmax(1)[torch.arange(R), rejected]
    theirs = -(weights * torch.log1p(-p)).sum() / weights.sum()
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, vectors, items), gradients(theirs, vectors, items), strict=True):
        torch.testing.assert_close(mine, other)


def test_rejected_item_loss_of_a_dominant_item_is_finite() -> None:
    vectors, items, rejected, weights = (tensor.float() for tensor in drawn())
    large = (vectors * 1e4).detach().requires_grad_()
    loss = losses.rejected_item_loss(large, items, rejected.long(), weights)
    (gradient,) = torch.autograd.grad(loss, large)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
