"""A warm start: which positions are learned, how tables and optimizer grow, and how far a new row moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recloop.config import Config
from recloop.features.learned_range import LearnedRange
from recloop.models.base import TrainData, load_model
from recloop.training.fit import TrainedNetwork, fit_network
from recloop.training.warm_start import (
    OWN_ROW,
    WarmStartState,
    grow_moments,
    grow_parameter,
    select_targets,
    waits_for_row,
)

pytest.importorskip("torch")

Arrays = Callable[..., TrainData]
HISTORIES = [[[1], [2], [3], [1]], [[2], [3], [1], [2]], [[3], [1], [2], [3]], [[1, 2], [3], [1, 2], [3]]]
CONFIG = Config.model_validate({"features": {"dim": 8, "max_history": 10, "context": []}, "train": {"epochs": 2}})


def all_until(seq: int) -> LearnedRange:
    """Everything up to a seq, nothing held back."""
    return LearnedRange(seq, 0, held_seq=1 << 60)


def newest(data: TrainData) -> np.ndarray:
    return np.maximum.reduceat(data.seqs, data.moment_offsets[:-1])


def test_new_positions_lie_past_the_parents_last_seq(arrays: Arrays) -> None:
    data = arrays(HISTORIES, 3)
    until = int(np.sort(data.seqs)[-5])
    chosen = select_targets(data, all_until(until), 0.0, 0)
    assert chosen.any()
    assert (chosen == (newest(data) > until)).all()


def test_replay_draws_as_many_again_by_seed_never_of_old_users_or_first_moments(arrays: Arrays) -> None:
    data = arrays(HISTORIES, 3, old=[3])
    until = int(np.sort(data.seqs)[-4])
    new = select_targets(data, all_until(until), 0.0, 0)
    both = select_targets(data, all_until(until), 1.0, 0)
    assert both.sum() == 2 * new.sum()
    assert (both | new == both).all()
    assert (both == select_targets(data, all_until(until), 1.0, 0)).all()
    assert not both[data.user_offsets[3] :].any(), "old users are in no loss"
    assert not both[data.user_offsets[:-1]].any(), "a first moment has nothing before it"


def test_positions_late_row_before_the_cut_is_new_and_held_back_moments_are_new(arrays: Arrays) -> None:
    """A row that arrived after the parent was fitted is learned, however old; so are moments held back from it."""
    data = arrays(HISTORIES, 3)
    last, cut = int(data.seqs.max()), int(np.unique(data.stamps)[-1])
    held = select_targets(data, LearnedRange(last, cut, 0), 0.0, 0)
    assert (data.stamps[held] >= cut).all()
    assert held.any()
    late = select_targets(data, LearnedRange(last - 1, int(data.stamps.max()) + 1, 0), 0.0, 0)
    assert (newest(data)[late] == last).all()
    assert not select_targets(data, all_until(last), 0.0, 0).any(), "the rest of the window is not new again"


COUNTED = {
    "neighbours.indptr": np.array([0, 0, 0, 0, 2, 2, 2]),
    "neighbours.ids": np.array([1, 2]),
    "neighbours.weights": np.array([3.0, 1.0], np.float32),
}


def test_a_new_row_starts_among_its_neighbours_and_0_before_three_events(arrays: Arrays) -> None:
    data = arrays([[[1], [2], [3], [3], [3], [4]]], 5)
    data = replace(data, counts=np.array([0, 1, 1, OWN_ROW, OWN_ROW, OWN_ROW - 1]))
    old = np.array([[0.0, 0], [1, 0], [0, 1]], np.float32)
    made = grow_parameter("table", old, np.zeros((6, 2), np.float32), data, COUNTED)
    assert (made[:3] == old).all()
    assert made[3].tolist() == [0.75, 0.25]
    assert made[4].tolist() == [0.5, 0.5], "no neighbour: the mean of all"
    assert made[5].tolist() == [0, 0], "not yet: its attributes alone carry it"
    assert waits_for_row(data, old).tolist() == [False, False, False, False, False, True]
    with pytest.raises(ValueError, match="cannot grow"):
        grow_parameter("table", np.zeros((3, 3), np.float32), np.zeros((6, 2), np.float32), data, COUNTED)


def test_a_row_that_the_parent_had_not_earned_waits_or_starts_in_the_child(arrays: Arrays) -> None:
    """The parent's table has five items; the fourth and fifth had too few events there and are 0."""
    data = replace(arrays([[[1], [2], [3], [4], [5]]], 5), counts=np.array([0, 1, 1, OWN_ROW, OWN_ROW, OWN_ROW - 1]))
    parent = np.array([[0.0, 0], [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]], np.float32)
    made = grow_parameter("table", parent, np.zeros((6, 2), np.float32), data, COUNTED)
    assert made.tolist() == [[0, 0], [1, 0], [0, 1], [0.75, 0.25], [0.5, 0.5], [0, 0]]
    assert waits_for_row(data, parent).tolist() == [False, False, False, False, False, True]
    layer = np.zeros((4, 2), np.float32)
    assert grow_parameter("layer", layer, layer, data, COUNTED) is layer, "no table of items: as it was"


def test_optimizer_rows_grow_with_m_0_and_v_the_column_mean() -> None:
    old = np.array([[9.0, 9], [1, 2], [3, 4]], np.float32)
    assert grow_moments("exp_avg", old, 5)[3:].tolist() == [[0, 0], [0, 0]]
    assert grow_moments("exp_avg_sq", old, 5)[3:].tolist() == [[2, 3], [2, 3]]
    assert grow_moments("step", np.array([7.0], np.float32), 5).shape == ()


def fitted(data: TrainData, folder: Path, warm: WarmStartState | None = None, lr: float = 1e-3) -> TrainedNetwork:
    train = CONFIG.train.model_copy(update={"lr": lr, "epochs": 1 if warm else 2})
    config = CONFIG.model_copy(update={"train": train})
    return fit_network("sasrec", {"blocks": 1, "heads": 1}, data, config, folder, 60.0, True, warm)


@pytest.mark.slow
def test_the_first_steps_move_a_new_row_no_further_than_the_rate(arrays: Arrays, tmp_path: Path) -> None:
    parent = fitted(arrays(HISTORIES, 3), tmp_path / "parent")
    data = arrays([*HISTORIES, [[1], [4], [4], [4], [5]]], 5)
    counted = load_model("covisitation", {}).fit(data)
    chosen = select_targets(data, all_until(0), 1.0, 0)
    lr = 0.1
    child = fitted(data, tmp_path / "child", WarmStartState(parent.train_state, chosen, 0.2, counted), lr)
    table = "network.table.weight"
    before = grow_parameter("table", parent.train_state[table], np.zeros((6, 8), np.float32), data, counted)
    moved = np.abs(child.train_state[table] - before)
    assert 0 < moved[4].max() <= 0.2 * lr
    assert (moved[5] == 0).all(), "two events are too few for a row of its own"
    assert child.arrays["item_vectors"].shape == (6, 8)
    assert float(child.train_state["step.table.weight"].item()) > float(parent.train_state["step.table.weight"].item())


@pytest.mark.slow
def test_nothing_chosen_leaves_the_parents_weights(arrays: Arrays, tmp_path: Path) -> None:
    data = arrays(HISTORIES, 3)
    parent = fitted(data, tmp_path / "parent")
    none = np.zeros(len(data.stamps), dtype=bool)
    child = fitted(data, tmp_path / "child", WarmStartState(parent.train_state, none, 0.2, {}))
    for name, array in parent.train_state.items():
        assert (np.ravel(child.train_state[name]) == np.ravel(array)).all(), name


def test_masked_positions_are_context_and_in_no_loss(arrays: Arrays) -> None:
    from recloop.training.batches import SequenceDataset

    data = arrays(HISTORIES, 3)
    chosen = np.zeros(len(data.stamps), dtype=bool)
    chosen[2] = True  # the third moment of the first user
    sequences = SequenceDataset(data, 10, chosen)
    windows = sequences.training()
    assert (windows.starts.tolist(), windows.stops.tolist()) == ([0], [2])
    batch = sequences.batch(windows, sequences.draw(0, 0))
    assert batch.items.tolist() == [[1, 2]]
    assert batch.targets.tolist() == [[3, 0]]
    assert (batch.weights > 0).tolist() == [[True, False]]
