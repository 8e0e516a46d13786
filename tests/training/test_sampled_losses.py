"""Sampled losses: values by hand, gradients against full softmax, draws, and training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recloop.models.base import TrainData, load_model
from recloop.settings import build
from recloop.testing import fit_on_world
from recloop.training import trainer
from recloop.training.losses import SAMPLED_LOSSES, weighted
from recloop.training.sampled_losses import CALIBRATION, NegativeSampler, PairScores, SampledItems
from recloop.training.warm_start import WarmStartState

Arrays = Callable[..., TrainData]
NAMES = sorted(SAMPLED_LOSSES)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# One row of score 1 for its own item, item 0, and .5, -1 for items 1, 2 of four; drawn: 1, 0, 2, 1, to be expected
# 2, 1, .5 and 2 times. The target among the drawn items is not a negative.
OWN, RIVALS, EXPECTED = 1.0, (0.5, -1.0, 0.5), (2.0, 0.5, 2.0)
PLAIN = sum(math.exp(s) for s in RIVALS)
CORRECTED = sum(math.exp(s) / e for s, e in zip(RIVALS, EXPECTED, strict=True))
BY_HAND = {
    "ss": math.log(math.exp(OWN) + PLAIN) - OWN,
    "ss_logq": math.log(math.exp(OWN) + CORRECTED) - OWN,
    "ss_refined": CORRECTED / (math.exp(OWN) + CORRECTED) * (math.log(CORRECTED) - OWN),
    # m = 4 of 3 other items is all of them and more: a = 1, beta = 1, the plain sum
    "gbce": -math.log(sigma(OWN)) - sum(math.log(1 - sigma(s)) for s in RIVALS),
    "bce": -math.log(sigma(OWN)) - sum(math.log(1 - sigma(s)) for s in RIVALS) / 3,
    "bpr": -sum(math.log(sigma(OWN - s)) for s in RIVALS) / 3,
}
REFUSED = {
    **dict.fromkeys(("ss", "ss_logq", "ss_refined"), -math.log(1 - math.exp(OWN) / (math.exp(OWN) + CORRECTED))),
    **dict.fromkeys(("gbce", "bce"), -math.log(1 - sigma(OWN))),
    "bpr": -sum(math.log(sigma(s - OWN)) for s in RIVALS) / 3,
}


def by_hand() -> PairScores:
    items = torch.tensor([[1.0], [0.5], [-1.0], [7.0]], dtype=torch.float64)
    drawn = SampledItems(torch.tensor([1, 0, 2, 1]), torch.tensor([2.0, 1.0, 0.5, 2.0]))
    return PairScores.from_vectors(torch.ones(1, 1, dtype=torch.float64), items, torch.tensor([0]), drawn)


@pytest.mark.parametrize("name", NAMES)
def test_target_loss_by_hand(name: str) -> None:
    assert float(SAMPLED_LOSSES[name][0](by_hand())) == pytest.approx(BY_HAND[name], abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_rejected_loss_by_hand(name: str) -> None:
    assert float(SAMPLED_LOSSES[name][1](by_hand())) == pytest.approx(REFUSED[name], abs=1e-12)


def test_gbce_positive_weight_follows_the_sampling_rate() -> None:
    """4 of 8 other items drawn: a = 0.5, beta = 0.5 (0.75 (1 - 2) + 2) = 0.625."""
    assert CALIBRATION == 0.75
    few = by_hand()._replace(size=9)
    more = BY_HAND["gbce"] + math.log(sigma(OWN)) * (1 - 0.625)
    assert float(SAMPLED_LOSSES["gbce"][0](few)) == pytest.approx(more, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", [0, 1])
def test_sampled_loss_with_only_the_target_drawn_is_finite(name: str, part: int) -> None:
    vectors = torch.full((2, 1), 300.0, requires_grad=True)
    items = torch.ones(1, 1, requires_grad=True)
    scores = PairScores.from_vectors(
        vectors, items, torch.tensor([0, 0]), SampledItems(torch.tensor([0, 0]), torch.tensor([1.0, 1.0]))
    )
    loss = weighted(SAMPLED_LOSSES[name][part](scores), torch.tensor([1.0, 2.0]))
    slopes = torch.autograd.grad(loss, (vectors, items))
    assert 0 <= loss.item() <= 300
    assert all(torch.isfinite(slope).all() for slope in slopes)


def test_negative_sampler_frequencies_equal_q() -> None:
    counts = np.array([0, 10, 30])
    for by_count, q in ((False, [1 / 3] * 3), (True, [1 / 6, 1 / 6 + 1 / 8, 1 / 6 + 3 / 8])):
        draws = NegativeSampler(counts, 200, 5, by_count)
        seen = np.zeros(3)
        for _ in range(300):
            ids, expected = draws(torch.zeros(1))
            seen += np.bincount(ids, minlength=3)
            np.testing.assert_allclose(expected, 200 * np.array(q)[ids], rtol=1e-6)
        np.testing.assert_allclose(seen / seen.sum(), q, atol=0.006)  # 60,000 draws: three standard errors
    without_counts = NegativeSampler(np.zeros(3, np.int64), 6, 5, by_count=True)
    assert without_counts(torch.zeros(1)).expected.tolist() == [2.0] * 6  # without counts the draws are uniform


def test_negative_sampler_with_one_seed_repeats_its_draws() -> None:
    one, two, other = (NegativeSampler(np.arange(50), 8, seed, True) for seed in (3, 3, 4))
    first = [one(torch.zeros(1)).ids.tolist() for _ in range(3)]
    torch.rand(7)
    assert [two(torch.zeros(1)).ids.tolist() for _ in range(3)] == first
    assert first[0] != first[1]
    assert [other(torch.zeros(1)).ids.tolist() for _ in range(3)] != first


DRAWS, ITEMS, TARGETS = 20_000, 200, 12


def mean_gradient(name: str, m: int) -> tuple[float, float]:
    """Relative error of the mean gradient of m negatives against ``ce``: as it is, and after the
    best factor, which tells the direction alone.

    As in a network that has learned something: 200 items whose counts fall as 1 / rank, 12 targets drawn by count, each
    with a probability of a tenth on average.
    """
    rng = np.random.default_rng(0)
    counts = np.ceil(1000 / np.arange(1, ITEMS + 1)).astype(np.int64)
    targets = torch.from_numpy(rng.choice(ITEMS, TARGETS, p=counts / counts.sum()))
    table = rng.normal(size=(ITEMS, 16)).astype(np.float32)
    items = torch.from_numpy(table).requires_grad_()
    near = 0.3 * table[targets] + 0.4 * rng.normal(size=(TARGETS, 16)).astype(np.float32)
    vectors = torch.from_numpy(near.astype(np.float32)).requires_grad_()
    exact = torch.nn.functional.cross_entropy(vectors @ items.T, targets)
    target_loss, _, corrected = SAMPLED_LOSSES[name]
    draws = NegativeSampler(counts, m, 0, corrected)

    def step(ids: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        return target_loss(PairScores.from_vectors(vectors, items, targets, SampledItems(ids, expected))).mean()

    found = [torch.zeros_like(vectors), torch.zeros_like(items)]
    many = 200
    for _ in range(DRAWS // many):
        ids, expected = (torch.stack(part) for part in zip(*(draws(targets) for _ in range(many)), strict=True))
        loss = torch.func.vmap(step)(ids, expected).sum() / DRAWS
        found = [whole + part for whole, part in zip(found, torch.autograd.grad(loss, (vectors, items)), strict=True)]
    true, ours = (
        torch.cat([part.flatten() for part in parts]) for parts in (torch.autograd.grad(exact, (vectors, items)), found)
    )
    best = (true @ ours) / (ours @ ours)
    return float((ours - true).norm() / true.norm()), float((best * ours - true).norm() / true.norm())


@pytest.mark.slow
def test_ss_refined_mean_gradient_equals_that_of_full_softmax() -> None:
    error, _ = mean_gradient("ss_refined", 256)
    assert error <= 0.05


@pytest.mark.slow
def test_sampled_losses_mean_gradients_against_full_softmax() -> None:
    """The table of docs/decisions/: ``pytest -s -m slow tests/training/test_sampled_losses.py -k gradients``."""
    for m in (256, 32):
        errors = {name: mean_gradient(name, m) for name in NAMES}
        for name, (error, direction) in errors.items():
            print(f"m = {m:3}  {name:10} {error:8.4f} {direction:8.4f}")
        assert errors["ss_refined"][0] == pytest.approx(errors["ss_logq"][0])
    assert min(errors, key=lambda name: errors[name][1]) in ("ss_refined", "ss_logq")


def test_ss_refined_and_ss_logq_have_equal_gradients() -> None:
    """(1 - P_y) times the slope of the rest is the slope of ss_logq."""
    torch.manual_seed(0)
    leaves = torch.randn(5, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    drawn = NegativeSampler(np.arange(1, 31), 20, 0, by_count=True)(torch.zeros(1))
    scores = [PairScores.from_vectors(*leaves, torch.arange(5), drawn) for _ in range(2)]
    one, two = (SAMPLED_LOSSES[name][0](s).sum() for name, s in zip(("ss_logq", "ss_refined"), scores, strict=True))
    assert not torch.isclose(one, two)
    for mine, other in zip(torch.autograd.grad(one, leaves), torch.autograd.grad(two, leaves), strict=True):
        torch.testing.assert_close(mine, other)


def forked(arrays: Arrays) -> TrainData:
    """Item 2 follows item 1 four times of five, item 3 otherwise."""
    return arrays([[[1], [3 if n % 5 == 0 else 2]] for n in range(60)], 8)


@pytest.mark.parametrize("name", NAMES)
def test_train_with_each_loss_ranks_the_next_items_first(name: str, arrays: Arrays, tmp_path: Path) -> None:
    """Each loss ranks the next items before the others, the frequent one first."""
    train = {"loss": name, "negatives": 16, "lr": 0.02, "epochs": 30}
    config = build({"features": {"dim": 8, "max_history": 5, "context": []}, "train": train}, environment={})
    network = load_model("sasrec", {"dropout": 0.0, "blocks": 1, "heads": 1, "start": "random"})
    learner, _ = trainer.train(network, forked(arrays), config, tmp_path, 600, quiet=True)
    with torch.no_grad():
        table = learner.vectors()
        one = torch.zeros(1, 1, dtype=torch.long)
        users = network.forward_user(table[one + 1], one, one == 0, torch.zeros(1, 0, dtype=torch.long))
        order = (users @ table[1:].T)[0].argsort(descending=True) + 1
    others = [item for item in order.tolist() if item != 1]  # some losses mask item 1, which its user owns
    assert others[:2] == [2, 3]


def test_train_with_drawn_negatives_is_repeatable(arrays: Arrays, tmp_path: Path) -> None:
    """A parent and its warm-started child repeat their weights."""
    data = forked(arrays)
    config = build(
        {"features": {"dim": 8, "max_history": 5, "context": []}, "train": {"loss": "ss_refined", "epochs": 1}},
        environment={},
    )

    def run(name: str, warm: WarmStartState | None) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        (tmp_path / name).mkdir()
        network = load_model("sasrec", {"start": "random"})
        _, watch = trainer.train(network, data, config, tmp_path / name, 600, True, warm)
        return network.state_dict(), {f"network.{key}": part for key, part in watch.kept.weights.items()} | (
            watch.kept.optimizer
        )

    parent, state = run("parent", None)
    assert torch.equal(run("parent again", None)[0]["table.weight"], parent["table.weight"])
    arrays_of = {key: part.numpy() for key, part in state.items()}
    warm = WarmStartState(arrays_of, np.ones(len(data.stamps), bool), 0.2, {})
    once, again = run("once", warm)[0], run("again", warm)[0]
    assert not torch.equal(once["table.weight"], parent["table.weight"])
    assert all(torch.equal(again[key], part) for key, part in once.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_train_of_sasrec_with_each_loss_beats_chance(name: str, tmp_path: Path) -> None:
    """After a first run Recall@10 of the next basket is above three times chance."""
    fitted = fit_on_world(tmp_path / "shop", "sasrec", (f"train.loss={name}", "train.epochs=3", "train.time_budget=1h"))
    answers = fitted.ask(range(len(fitted.users)))
    hits = [len(set(a.items) & held) / len(held) for a, held in zip(answers, fitted.targets, strict=True)]
    assert np.mean(hits) > 3 * 10 / len(fitted.bundle.items)
