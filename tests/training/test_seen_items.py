"""Items of a history that the full softmax leaves out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from recloop.config import Config
from recloop.models.base import TrainData, load_model
from recloop.training import losses
from recloop.training.batches import Batch, SequenceDataset
from recloop.training.seen_items import SeenItems
from recloop.training.trainer import Learner, deterministic

Arrays = Callable[..., TrainData]
R, N, D = 13, 40, 8


def batch_of(data: TrainData) -> Batch:
    """Batch of the windows of all users."""
    sequences = SequenceDataset(data, 8)
    return sequences.batch(sequences.training(), sequences.draw(0, 0))


def test_seen_items_are_those_of_the_moments_before_each_target(arrays: Arrays) -> None:
    """The first user's targets, newest first, are items 4 and 2 or 3; the second user's is item 1, which is known."""
    batch = batch_of(arrays([[[1], [2, 3], [4]], [[1], [1]]], 5))
    seen = SeenItems.from_batch(batch)
    targets = (batch.targets[batch.targets > 0]).tolist()
    assert (targets[0], targets[1] in (2, 3), targets[2]) == (4, True, 1)
    pairs = [*zip(seen.rows.tolist(), (seen.items + 1).tolist(), strict=True)]
    assert pairs == [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1)]


@pytest.mark.parametrize("chunk", [1, 3 * N, 10**6])
def test_cross_entropy_without_seen_items_equals_that_of_torch(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hidden score is -inf, except that of the target, which stays."""
    monkeypatch.setattr(losses, "CHUNK_SCORES", chunk)
    torch.manual_seed(0)
    vectors = torch.randn(R, D, dtype=torch.float64, requires_grad=True)
    items = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(0, N, (R,)), torch.rand(R, dtype=torch.float64) + 0.1
    is_seen = torch.rand(R, N) < 0.3
    is_seen[5] = False
    is_seen[torch.arange(R), targets] = True
    rows, hidden = is_seen.nonzero().unbind(1)
    ours = losses.cross_entropy(vectors, items, targets, weights, SeenItems(rows, hidden))
    is_hidden = is_seen & (torch.arange(N) != targets[:, None])
    each = F.cross_entropy((vectors @ items.T).masked_fill(is_hidden, -torch.inf), targets, reduction="none")
    theirs = (weights * each).sum() / weights.sum()
    torch.testing.assert_close(ours, theirs)
    mine, other = (torch.autograd.grad(loss * 3, (vectors, items)) for loss in (ours, theirs))
    torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    ("name", "filter_seen", "hidden"),
    [("two_tower", True, True), ("two_tower", False, False), ("sasrec", True, False)],
)
def test_training_step_leaves_out_seen_items_of_networks_that_hide_them(
    arrays: Arrays, name: str, filter_seen: bool, hidden: bool
) -> None:
    """Item 1 is in each history and no target; item 5 is another user's."""
    data = arrays([[[1], [2], [3]], [[4], [5], [6]]], 6)
    with deterministic(0):
        network = load_model(name, {"dropout": 0.0})
        network.build(data, 8, 8)
        learner = Learner(network, data, Config().train, filter_seen=filter_seen)
        sequences = SequenceDataset(data, 8)
        batch = sequences.batch(sequences.training()[np.array([0])], sequences.draw(0, 0))
        found = learner.criterion  # the gradient of the loss alone: the towers also read the history
        gradients = []

        def record(items: torch.Tensor, *rest: object) -> torch.Tensor:
            leaf = items.detach().requires_grad_()
            loss = found(leaf, *rest)  # type: ignore[arg-type]
            gradients.append(torch.autograd.grad(loss, leaf)[0])
            return loss

        learner.criterion = record  # type: ignore[assignment]
        learner.criterion.masks_owned = False  # type: ignore[attr-defined]
        learner.training_step(batch, 0)
    assert bool((gradients[0][0] == 0).all()) is hidden, "item 1"
    assert (gradients[0][4] != 0).any(), "item 5"
