"""Warm start: select an update's target positions and grow the network's tables.

Source: docs/definitions/update.md. A position is (user, moment as a target). New positions have a row that the parent
has not learned. Older positions are context with masked loss, except for a replay sample of the same size. Half of
it is from the newest 30 days and half is uniform over all older positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from recloop.features.learned_range import LearnedRange
from recloop.models.base import TrainData
from recloop.records import DAY

RECENT_SPAN = 30 * DAY
MIN_ROW_EVENTS = 3
"""Events after which a new id gets a row; before, only its attributes represent it."""
LEARNING_RATE_SHARE = 0.2
"""Share of the last full run's learning rate."""
WARM_UP_STEPS = 200
"""Warm-up steps of the learning rate."""


@dataclass(frozen=True)
class WarmStartState:
    """Starting point of a warm-started network.

    Attributes:
        state: The parent's train.safetensors: ``network.NAME``, ``exp_avg.NAME``, ``exp_avg_sq.NAME``, ``step.NAME``.
        chosen: (M,) bool, the moments that are targets; the others are context.
        rate: Share of the configured learning rate.
        counted: Co-visitation rows of the child, which give a new item its initial row.
        graphs: The parent's ONNX graphs by file name, which get the child's weights.
        users: Users of the parent in the order of its tables of users.
    """

    state: Mapping[str, np.ndarray]
    chosen: np.ndarray
    rate: float
    counted: Mapping[str, np.ndarray]
    graphs: Mapping[str, bytes] = field(default_factory=dict)
    users: Sequence[str] = ()

    @property
    def network_weights(self) -> dict[str, np.ndarray]:
        """The parent's weights by ``network.NAME``."""
        return {name: array for name, array in self.state.items() if name.startswith("network.")}


def select_targets(data: TrainData, learned: LearnedRange, replay: float, seed: int) -> np.ndarray:
    """Return the moments in the loss, new and replayed, (M,) bool.

    Moments of ``old`` users and moments without a past are excluded.

    Args:
        learned: The range that the parent was fitted on. A moment is new if it was held out or has a later row.
        replay: Number of old positions per new position.
    """
    starts = data.moment_offsets[:-1]
    first_seqs, newest_seqs = (
        reduction.reduceat(data.seqs, starts) if len(starts) else data.seqs for reduction in (np.minimum, np.maximum)
    )
    return with_replay(data, (newest_seqs > learned.until_seq) | learned.is_new(first_seqs, data.stamps), replay, seed)


def with_replay(data: TrainData, is_new: np.ndarray, replay: float, seed: int) -> np.ndarray:
    """Add ``replay`` old moments per usable ``is_new`` (M,) moment; return (M,) bool."""
    usable = data.moments_with_past()
    selected: np.ndarray = usable & is_new
    old_moments = np.flatnonzero(usable & ~selected)
    n_replayed = min(len(old_moments), round(replay * int(selected.sum())))
    rng = np.random.default_rng([seed, 8])
    recent_moments = old_moments[data.stamps[old_moments] >= data.cut - RECENT_SPAN]
    recent_sample = rng.choice(recent_moments, min(len(recent_moments), n_replayed // 2), replace=False)
    remaining = np.setdiff1d(old_moments, recent_sample)
    other_sample = rng.choice(remaining, n_replayed - len(recent_sample), replace=False)
    selected[recent_sample] = True
    selected[other_sample] = True
    return selected


def grow_parameter(
    name: str, parent: np.ndarray, child: np.ndarray, data: TrainData, counted: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Grow a parameter of the parent to the child's shape; rows of new items follow.

    A new item with ``MIN_ROW_EVENTS`` events starts at the mean of its neighbours' rows, weighted by co-visitation. Without
    neighbours it starts at the mean of all rows. With fewer events it starts at 0. A zero row of the parent counts as new.

    Args:
        child: Newly built parameter of the child, used for its shape.
        data: The child's arrays.

    Raises:
        ValueError: the parent's shape cannot grow into the child's.
    """
    if parent.shape == child.shape and not is_table(parent, data):
        return parent
    if parent.shape[1:] != child.shape[1:] or len(child) != data.n_items + 1 or len(parent) > len(child):
        raise ValueError(f"{name}: shape {parent.shape} cannot grow to {child.shape}")
    grown = np.zeros_like(child)
    grown[: len(parent)] = parent
    has_parent_row = has_row(parent, data)
    rows = np.flatnonzero(has_parent_row)
    mean = parent[rows].mean(axis=0) if len(rows) else np.zeros(parent.shape[1:], parent.dtype)
    starting = ~has_parent_row & (data.events >= MIN_ROW_EVENTS)
    starting[0] = False
    if not starting.any():
        return grown
    pointers, ids, weights = (counted[f"neighbours.{array}"] for array in ("indptr", "ids", "weights"))
    for item in np.flatnonzero(starting):
        neighbours = slice(pointers[item], pointers[item + 1])
        is_usable = has_parent_row[ids[neighbours]]
        usable_weights = weights[neighbours][is_usable]
        grown[item] = (
            usable_weights @ parent[ids[neighbours][is_usable]] / usable_weights.sum()
            if usable_weights.sum() > 0
            else mean
        )
    return grown


def grow_user_rows(parent: np.ndarray, parent_users: Sequence[str], users: Sequence[str]) -> np.ndarray:
    """Move the rows (U'+1, D) of the parent's users to the child's, (U+1, D).

    A new user starts at the mean of all rows.

    Raises:
        ValueError: the parent has another number of users.
    """
    if len(parent) != len(parent_users) + 1:
        raise ValueError(f"rows of users: {len(parent)}, expected {len(parent_users) + 1}")
    rows = parent_rows(parent_users, users)
    grown: np.ndarray = parent[rows]
    grown[1:][rows[1:] == 0] = parent[1:].mean(axis=0) if len(parent) > 1 else 0
    return grown


def parent_rows(parent_users: Sequence[str], users: Sequence[str]) -> np.ndarray:
    """Return the row (U+1,) of each user in the parent's tables; 0 for a new user."""
    row_of = {user: row for row, user in enumerate(parent_users, start=1)}
    return np.array([0, *(row_of.get(user, 0) for user in users)], dtype=np.int64)


def grow_moments(key: str, parent: np.ndarray, rows: int) -> np.ndarray:
    """Add rows for new items to an optimizer array: m = 0, v = the column mean."""
    if key == "step":
        return parent.reshape(())  # a file stores a scalar as an array of length 1
    if len(parent) == rows:
        return parent
    grown = np.zeros((rows, *parent.shape[1:]), parent.dtype)
    grown[: len(parent)] = parent
    if key == "exp_avg_sq":
        grown[len(parent) :] = parent[1:].mean(axis=0)
    return grown


def is_table(array: np.ndarray, data: TrainData) -> bool:
    """Return True if a parameter has a row for each item and a padding row."""
    return array.ndim > 1 and len(array) == data.n_items + 1


def has_row(parent: np.ndarray, data: TrainData) -> np.ndarray:
    """Return a (N+1,) bool mask of items with a nonzero row in the parent's table."""
    mask = np.zeros(data.n_items + 1, dtype=bool)
    mask[1 : len(parent)] = parent[1:].reshape(len(parent) - 1, -1).any(axis=1)
    return mask


def waits_for_row(data: TrainData, parent: np.ndarray) -> np.ndarray:
    """Return a (N+1,) bool mask of items without a parent row and with too few events."""
    is_waiting = ~has_row(parent, data) & (data.events < MIN_ROW_EVENTS)
    is_waiting[0] = False
    return is_waiting
