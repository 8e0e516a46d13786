"""Drawn negatives: owned items are masked, and q is the frequency of draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recloop.config import Config, Train
from recloop.models.base import TrainData, load_model
from recloop.training.batches import EpochDataset, LengthBucketSampler, SequenceDataset
from recloop.training.pairs import PairBatch
from recloop.training.sampled_losses import OwnedItems
from recloop.training.trainer import Learner, PairLearner, deterministic

Arrays = Callable[..., TrainData]
HISTORY = 8


def baskets(arrays: Arrays, users: int = 40, items: int = 12, old: tuple[int, ...] = ()) -> TrainData:
    """Users with 3 to 9 moments of 1 to 4 items; item 1 is only in large baskets."""
    rng = np.random.default_rng(0)
    histories = []
    for _ in range(users):
        moments = []
        for _ in range(rng.integers(3, 10)):
            basket = 2 + rng.choice(items - 1, rng.integers(1, 5), replace=False)
            moments.append(sorted({1, *basket.tolist()} if len(basket) == 4 else basket.tolist()))
        histories.append(moments)
    return arrays(histories, items, old=old)


@pytest.mark.parametrize("which", ["all", "last"])
def test_target_share_equals_the_frequency_of_drawn_targets(arrays: Arrays, which: str) -> None:
    """Over 400 epochs each item is drawn as a target with frequency q."""
    data = baskets(arrays, old=(0, 3, 4))
    sequences = SequenceDataset(data, HISTORY)
    windows = sequences.training(which)
    data = replace(data, targeted=sequences.target_moments(windows))
    steps = LengthBucketSampler(sequences.lengths(windows), 0, tokens=64)
    epoch, seen = EpochDataset(sequences, windows, 0, steps), np.zeros(data.n_items + 1)
    for number in range(400):
        steps.set_epoch(number)
        for chosen in steps:
            seen += np.bincount(epoch[chosen].targets.numpy().ravel(), minlength=data.n_items + 1)
    seen[0] = 0
    share, drawn = data.target_share(), seen / seen.sum()
    assert share.sum() == pytest.approx(1)
    assert np.abs(drawn - share).max() < 0.004
    counted = data.counts / data.counts.sum()
    assert np.abs(counted - share).max() > 0.02, "shares of rows differ: an item of large baskets is drawn less often"


def test_two_tower_expected_counts_equal_the_drawn_frequencies(arrays: Arrays) -> None:
    """Expected counts M q_j against observed counts of id j over 2,000 steps."""
    data = baskets(arrays, users=60)
    share = data.target_share()[1:]
    network = load_model("two_tower", {"uniform": 6})
    with deterministic(0):
        network.build(data, 8, HISTORY)
        seen, rng = np.zeros(data.n_items), np.random.default_rng(1)
        for _ in range(2000):
            targets = torch.from_numpy(rng.choice(data.n_items, 10, p=share))
            ids, _ = network.draw_negatives(targets)
            seen += np.bincount(ids.numpy(), minlength=data.n_items)
        everything = torch.arange(data.n_items)
        ids, expected = network.draw_negatives(everything)
    mean = dict(zip(ids.tolist(), expected.tolist(), strict=True))  # of a step of N targets and 6 uniform ones
    found = np.array([(mean[j] - 6 / data.n_items) / data.n_items * 10 + 6 / data.n_items for j in range(data.n_items)])
    np.testing.assert_allclose(seen / 2000, found, atol=0.06)


def test_owned_items_mark_the_items_of_each_rows_user(arrays: Arrays) -> None:
    data = arrays([[[1], [2, 3]], [[3], [4]], [[5]]], 5)
    pairs = torch.from_numpy(data.owned())
    owned = OwnedItems(pairs, users=torch.tensor([1, 0]), window=torch.tensor([0, 0, 1]), size=5)
    ids = torch.tensor([0, 2, 3, 4])  # items 1, 3, 4, 5
    assert owned(ids).tolist() == [[False, True, True, False], [False, True, True, False], [True, True, False, False]]


@pytest.mark.parametrize(
    ("name", "loss", "masked"),
    [
        ("two_tower", "ss_logq", True),
        ("two_tower", "auto", False),
        ("two_tower", "ss_refined", True),
        ("sasrec", "bce", True),
        ("sasrec", "bpr", True),
        ("sasrec", "ss", False),
        ("sasrec", "gbce", False),
        ("sasrec", "ss_logq", False),
    ],
)
def test_loss_with_masking_gives_owned_items_no_gradient(arrays: Arrays, name: str, loss: str, masked: bool) -> None:
    """An owned item outside window and targets moves only without masking."""
    data = arrays([[[1], [2], [3]], [[4], [5], [6]]], 6)
    extra = {"uniform": 256} if name == "two_tower" else {}
    config = Config.model_validate({"train": {"loss": loss, "negatives": 256}})
    with deterministic(0):
        network = load_model(name, {"dropout": 0.0, **extra, **({"alone": 0.0} if name == "two_tower" else {})})
        network.build(data, 8, HISTORY)
        learner = Learner(network, data, config.train)
        sequences = SequenceDataset(data, HISTORY)
        windows = sequences.training()
        batch = sequences.batch(windows[np.array([0])], sequences.draw(0, 0))
        batch = batch._replace(targets=torch.where(batch.targets == 3, 2, batch.targets))  # item 3 is not a target here
        table = learner.vectors().detach().requires_grad_()
        learner.vectors = lambda: table  # type: ignore[method-assign]
        learner.training_step(batch, 0).backward()
    assert table.grad is not None
    assert bool((table.grad[3] != 0).any()) is not masked, "item 3 is owned by the user"
    assert (table.grad[5] != 0).any(), "item 5 is owned by another user"


def test_neumf_loss_gives_owned_items_no_gradient(arrays: Arrays) -> None:
    """The user of the only pair took items 1, 2 and 3; the pair is item 2."""
    data = arrays([[[1], [2], [3]], [[4], [5], [6]]], 6)
    with deterministic(0):
        network = load_model("neumf", {"negatives": 256})
        network.build(data, 8, HISTORY)
        learner = PairLearner(network, data, Config().train)
        table = torch.randn(7, 8).requires_grad_()
        learner.vectors = lambda: table  # type: ignore[method-assign]
        batch = PairBatch(torch.tensor([0]), torch.tensor([2]), torch.ones(1), torch.ones(1, dtype=torch.bool))
        learner.training_step(batch, 0).backward()
    assert table.grad is not None
    assert (table.grad != 0).any(1).tolist() == [False, False, True, False, True, True, True]


def test_two_tower_with_masked_owned_items_clusters_tastes_better(arrays: Arrays) -> None:
    """Each user has one taste; owned items as negatives push its items apart."""
    rng = np.random.default_rng(0)
    tastes = rng.integers(20, size=200)
    histories = [[[int(t * 25 + 1 + i)] for i in rng.choice(25, 8, replace=False)] for t in tastes]
    data = arrays(histories, 500)

    def cosine_inside(mask: bool) -> float:
        with deterministic(0):
            network = load_model("two_tower", {"start": "random", "dropout": 0.0})
            network.build(data, 16, HISTORY)
            sequences = SequenceDataset(data, HISTORY)
            windows = sequences.training()
            steps = LengthBucketSampler(sequences.lengths(windows), 0, tokens=140)
            epoch, learner = EpochDataset(sequences, windows, 0, steps), Learner(network, data, Train(loss="ss_logq"))
            if not mask:
                learner.criterion.masks_owned = False
            optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
            for number in range(10):
                steps.set_epoch(number)
                for chosen in steps:
                    loss = learner.training_step(epoch[chosen], 0)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
            with torch.no_grad():
                vectors = learner.eval().vectors()[1:].numpy().reshape(20, 25, -1)
        centres = vectors.mean(axis=1)
        return float((centres**2).sum(axis=1).mean() - centres.mean(axis=0) @ centres.mean(axis=0))

    masked, plain = cosine_inside(mask=True), cosine_inside(mask=False)
    print(f"inside a taste: masked {masked:.3f}, not masked {plain:.3f}")
    assert masked > plain
