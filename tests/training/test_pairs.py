"""Pairs of user and item: examples, order, a trained network of user rows, warm start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from recloop.models.base import Negatives, TrainData
from recloop.settings import build
from recloop.training.fit import TrainedNetwork, fit_network
from recloop.training.pairs import PairDataset, PairSampler
from recloop.training.warm_start import WarmStartState, grow_user_rows

Arrays = Callable[..., TrainData]
N = 12
TASTES = 2
CONFIG = build(
    {
        "split": {"filter_seen": True},
        "features": {"dim": 8, "max_history": 10, "context": []},
        "train": {"lr": 0.03, "epochs": 30, "ema": 0.0},
    },
    (),
    {},
)
OPTIONS = {"hidden": 8, "pairs": 64}


def two_tastes(arrays: Arrays, users: int = 40) -> TrainData:
    """Users take items of one half of the catalog; half of the users hold out one item of it."""
    rng = np.random.default_rng(0)
    histories = []
    for user in range(users):
        items = 1 + (user % TASTES) * (N // TASTES) + rng.permutation(N // TASTES)
        histories.append([[int(item)] for item in items])
    held = {user: histories[user][-1] for user in range(0, users, 2)}
    return arrays([past[:-1] if user in held else past for user, past in enumerate(histories)], N, held=held)


def test_pairs_are_targets_and_rejected_items_without_holdout_users(arrays: Arrays) -> None:
    data = arrays([[[1], [2, 3]], [[4]], [[5]]], 6, old=[2])
    data = replace(data, targets=np.array([True, False, True, True, True]))
    rejected = Negatives(np.array([1, 2]), np.array([6, 6]), np.zeros(2), np.zeros(2), np.full(2, 0.5, np.float32))
    pairs = PairDataset(replace(data, negatives=rejected))
    batch = pairs[np.arange(len(pairs))]
    found = list(zip(batch.users.tolist(), batch.items.tolist(), batch.is_positive.tolist(), strict=True))
    assert found == [(0, 1, True), (0, 3, True), (1, 4, True), (1, 6, False)]
    assert batch.weights.tolist() == [1, 1, 1, 0.5]
    assert batch.n_tokens == 3
    chosen = PairDataset(replace(data, negatives=rejected), np.array([False, True, False, False]))
    assert chosen[np.arange(len(chosen))].items.tolist() == [3]


def test_pair_sampler_draws_each_pair_once_in_a_new_order() -> None:
    sampler = PairSampler(10, 4, seed=0)
    epochs = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        steps = list(sampler)
        assert [len(step) for step in steps] == [4, 4, 2]
        assert len(sampler) == 3
        epochs.append(np.concatenate(steps))
        assert sorted(epochs[-1].tolist()) == list(range(10))
    assert not np.array_equal(*epochs)


@pytest.fixture(scope="module")
def data(arrays: Arrays) -> TrainData:
    return two_tastes(arrays)


@pytest.fixture(scope="module")
def trained(data: TrainData, tmp_path_factory: pytest.TempPathFactory) -> TrainedNetwork:
    return fit_network("neumf", OPTIONS, data, CONFIG, tmp_path_factory.mktemp("run"), 600, quiet=True)


def test_neumf_learns_the_taste_of_each_user(trained: TrainedNetwork, data: TrainData) -> None:
    assert trained.validation > 0.9
    assert trained.arrays["user_vectors"].shape == (data.n_users + 1, 8)
    assert trained.users is not None
    assert list(trained.users.ids.ids) == data.user_ids
    assert trained.metrics.tokens_per_second > 0


def test_neumf_trained_twice_is_equal(trained: TrainedNetwork, data: TrainData, tmp_path: Path) -> None:
    again = fit_network("neumf", OPTIONS, data, CONFIG, tmp_path, 600, quiet=True)
    for name in ("item_vectors", "user_vectors"):
        np.testing.assert_array_equal(again.arrays[name], trained.arrays[name])
    assert again.graph == trained.graph


def test_neumf_update_moves_the_rows_of_users_by_id(
    trained: TrainedNetwork, data: TrainData, arrays: Arrays, tmp_path: Path
) -> None:
    more = two_tastes(arrays, 41)
    child = replace(more, user_ids=["a new user that sorts first", *data.user_ids])
    warm = WarmStartState(trained.train_state, np.zeros(len(child.stamps), bool), 0.2, {}, users=data.user_ids)
    update = fit_network("neumf", OPTIONS, child, CONFIG, tmp_path, 600, quiet=True, warm=warm)
    np.testing.assert_array_equal(update.arrays["user_vectors"][2:], trained.arrays["user_vectors"][1:])
    assert not update.arrays["user_vectors"][1].any(), "a new user without a learned pair is folded in"


def test_neumf_update_learns_the_pairs_of_a_new_user(
    trained: TrainedNetwork, data: TrainData, arrays: Arrays, tmp_path: Path
) -> None:
    more = two_tastes(arrays, 41)
    child = replace(more, user_ids=[*data.user_ids, "z new"], held=None)
    chosen = np.zeros(len(child.stamps), bool)
    chosen[child.user_offsets[40] :] = True
    warm = WarmStartState(trained.train_state, chosen, 0.2, {}, users=data.user_ids)
    update = fit_network("neumf", OPTIONS, child, CONFIG, tmp_path, 600, quiet=True, warm=warm)
    start = trained.train_state["network.users.weight"][1:].mean(axis=0)
    assert 0.001 < np.abs(update.arrays["user_vectors"][41] - start).max() < 1


def test_grow_user_rows_with_another_number_of_users_is_refused() -> None:
    with pytest.raises(ValueError, match="rows of users: 3, expected 2"):
        grow_user_rows(np.zeros((3, 2)), ["a"], ["a", "b"])
