"""Warm start: learned positions, growth of tables and optimizer, movement of new rows."""

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
    MIN_ROW_EVENTS,
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
    """All rows up to a seq, without held-out rows."""
    return LearnedRange(seq, 0, held_seq=1 << 60)


def newest(data: TrainData) -> np.ndarray:
    return np.maximum.reduceat(data.seqs, data.moment_offsets[:-1])


def test_select_targets_without_replay_are_past_the_parents_seq(arrays: Arrays) -> None:
    data = arrays(HISTORIES, 3)
    until = int(np.sort(data.seqs)[-5])
    chosen = select_targets(data, all_until(until), 0.0, 0)
    assert chosen.any()
    assert (chosen == (newest(data) > until)).all()


def test_select_targets_with_replay_excludes_old_users_and_first_moments(arrays: Arrays) -> None:
    data = arrays(HISTORIES, 3, old=[3])
    until = int(np.sort(data.seqs)[-4])
    new = select_targets(data, all_until(until), 0.0, 0)
    both = select_targets(data, all_until(until), 1.0, 0)
    assert both.sum() == 2 * new.sum()
    assert (both | new == both).all()
    assert (both == select_targets(data, all_until(until), 1.0, 0)).all()
    assert not both[data.user_offsets[3] :].any(), "old users are excluded from the loss"
    assert not both[data.user_offsets[:-1]].any(), "a first moment has no history"


def test_select_targets_include_late_rows_and_held_out_moments(arrays: Arrays) -> None:
    """Rows after the parent's fit and its held-out moments are learned."""
    data = arrays(HISTORIES, 3)
    last, cut = int(data.seqs.max()), int(np.unique(data.stamps)[-1])
    held = select_targets(data, LearnedRange(last, cut, 0), 0.0, 0)
    assert (data.stamps[held] >= cut).all()
    assert held.any()
    late = select_targets(data, LearnedRange(last - 1, int(data.stamps.max()) + 1, 0), 0.0, 0)
    assert (newest(data)[late] == last).all()
    assert not select_targets(data, all_until(last), 0.0, 0).any(), "the rest of the window is not learned again"


COUNTED = {
    "neighbours.indptr": np.array([0, 0, 0, 0, 2, 2, 2]),
    "neighbours.ids": np.array([1, 2]),
    "neighbours.weights": np.array([3.0, 1.0], np.float32),
}


def test_grow_parameter_starts_new_rows_at_their_neighbours_mean(arrays: Arrays) -> None:
    data = arrays([[[1], [2], [3], [3], [3], [4]]], 5)
    data = replace(data, counts=np.array([0, 1, 1, MIN_ROW_EVENTS, MIN_ROW_EVENTS, MIN_ROW_EVENTS - 1]))
    old = np.array([[0.0, 0], [1, 0], [0, 1]], np.float32)
    made = grow_parameter("table", old, np.zeros((6, 2), np.float32), data, COUNTED)
    assert (made[:3] == old).all()
    assert made[3].tolist() == [0.75, 0.25]
    assert made[4].tolist() == [0.5, 0.5], "without neighbours: the mean of all rows"
    assert made[5].tolist() == [0, 0], "too few events: only its attributes count"
    assert waits_for_row(data, old).tolist() == [False, False, False, False, False, True]
    with pytest.raises(ValueError, match="cannot grow"):
        grow_parameter("table", np.zeros((3, 3), np.float32), np.zeros((6, 2), np.float32), data, COUNTED)


def test_grow_parameter_starts_zero_rows_with_enough_events(arrays: Arrays) -> None:
    """The parent's rows three to five had too few events and are 0."""
    data = replace(
        arrays([[[1], [2], [3], [4], [5]]], 5),
        counts=np.array([0, 1, 1, MIN_ROW_EVENTS, MIN_ROW_EVENTS, MIN_ROW_EVENTS - 1]),
    )
    parent = np.array([[0.0, 0], [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]], np.float32)
    made = grow_parameter("table", parent, np.zeros((6, 2), np.float32), data, COUNTED)
    assert made.tolist() == [[0, 0], [1, 0], [0, 1], [0.75, 0.25], [0.5, 0.5], [0, 0]]
    assert waits_for_row(data, parent).tolist() == [False, False, False, False, False, True]
    layer = np.zeros((4, 2), np.float32)
    assert grow_parameter("layer", layer, layer, data, COUNTED) is layer, (
        "a parameter that is not an item table is unchanged"
    )


def test_grow_moments_adds_0_for_m_and_the_column_mean_for_v() -> None:
    old = np.array([[9.0, 9], [1, 2], [3, 4]], np.float32)
    assert grow_moments("exp_avg", old, 5)[3:].tolist() == [[0, 0], [0, 0]]
    assert grow_moments("exp_avg_sq", old, 5)[3:].tolist() == [[2, 3], [2, 3]]
    assert grow_moments("step", np.array([7.0], np.float32), 5).shape == ()


def fitted(data: TrainData, folder: Path, warm: WarmStartState | None = None, lr: float = 1e-3) -> TrainedNetwork:
    train = CONFIG.train.model_copy(update={"lr": lr, "epochs": 1 if warm else 2})
    config = CONFIG.model_copy(update={"train": train})
    return fit_network("sasrec", {"blocks": 1, "heads": 1}, data, config, folder, 60.0, True, warm)


@pytest.mark.slow
def test_warm_start_moves_a_new_row_at_most_by_the_rate(arrays: Arrays, tmp_path: Path) -> None:
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
    assert (moved[5] == 0).all(), "two events are too few for an embedding row"
    assert child.arrays["item_vectors"].shape == (6, 8)
    assert float(child.train_state["step.table.weight"].item()) > float(parent.train_state["step.table.weight"].item())


@pytest.mark.slow
def test_warm_start_without_targets_keeps_the_parents_weights(arrays: Arrays, tmp_path: Path) -> None:
    data = arrays(HISTORIES, 3)
    parent = fitted(data, tmp_path / "parent")
    none = np.zeros(len(data.stamps), dtype=bool)
    child = fitted(data, tmp_path / "child", WarmStartState(parent.train_state, none, 0.2, {}))
    for name, array in parent.train_state.items():
        assert (np.ravel(child.train_state[name]) == np.ravel(array)).all(), name


def test_sequence_dataset_uses_masked_positions_as_context_only(arrays: Arrays) -> None:
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
