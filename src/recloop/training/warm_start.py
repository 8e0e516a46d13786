"""Warm start: select an update's target positions and grow the network's tables.

Source: docs/definitions/update.md. A position is (user, moment as a target). New positions have a row that the parent
has not learned. Older positions are context with masked loss, except for a replay sample of the same size. Half of
it is from the newest 30 days and half is uniform over all older positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recloop.features.learned_range import LearnedRange
from recloop.models.base import TrainData
from recloop.records import DAY

RECENT = 30 * DAY
OWN_ROW = 3
"""Events after which a new id gets a row; before, only its attributes represent it."""
RATE = 0.2
"""Share of the last full run's learning rate."""
STEPS = 200
"""Warm-up steps of the learning rate."""


@dataclass(frozen=True)
class WarmStartState:
    """Starting point of a warm-started network.

    Attributes:
        state: The parent's train.safetensors: ``network.NAME``, ``exp_avg.NAME``, ``exp_avg_sq.NAME``, ``step.NAME``.
        chosen: (M,) bool, the moments that are targets; the others are context.
        rate: Share of the configured learning rate.
        counted: Co-visitation rows of the child, which give a new item its initial row.
    """

    state: Mapping[str, np.ndarray]
    chosen: np.ndarray
    rate: float
    counted: Mapping[str, np.ndarray]


def select_targets(data: TrainData, learned: LearnedRange, replay: float, seed: int) -> np.ndarray:
    """Return the moments in the loss, new and replayed, (M,) bool.

    Moments of ``old`` users and moments without a past are excluded.

    Args:
        learned: The range that the parent was fitted on. A moment is new if it was held out or has a later row.
        replay: Number of old positions per new position.
    """
    starts = data.moment_offsets[:-1]
    first, newest = (
        edge.reduceat(data.seqs, starts) if len(starts) else data.seqs for edge in (np.minimum, np.maximum)
    )
    return with_replay(data, (newest > learned.until_seq) | learned.is_new(first, data.stamps), replay, seed)


def with_replay(data: TrainData, fresh: np.ndarray, replay: float, seed: int) -> np.ndarray:
    """Add ``replay`` old moments per usable ``fresh`` (M,) moment; return (M,) bool."""
    able = data.moments_with_past()
    new: np.ndarray = able & fresh
    old = np.flatnonzero(able & ~new)
    wanted = min(len(old), round(replay * int(new.sum())))
    rng = np.random.default_rng([seed, 8])
    recent = old[data.stamps[old] >= data.cut - RECENT]
    first = rng.choice(recent, min(len(recent), wanted // 2), replace=False)
    rest = np.setdiff1d(old, first)
    second = rng.choice(rest, wanted - len(first), replace=False)
    new[first] = True
    new[second] = True
    return new


def grow_parameter(
    name: str, old: np.ndarray, fresh: np.ndarray, data: TrainData, counted: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Grow a parameter of the parent to the child's shape; rows of new items follow.

    A new item with ``OWN_ROW`` events starts at the mean of its neighbours' rows, weighted by co-visitation. Without
    neighbours it starts at the mean of all rows. With fewer events it starts at 0. A zero row of the parent counts as new.

    Args:
        fresh: Newly built parameter of the child, used for its shape.
        data: The child's arrays.

    Raises:
        ValueError: the parent's shape cannot grow into the child's.
    """
    if old.shape == fresh.shape and not is_table(old, data):
        return old
    if old.shape[1:] != fresh.shape[1:] or len(fresh) != data.n_items + 1 or len(old) > len(fresh):
        raise ValueError(f"{name}: shape {old.shape} cannot grow to {fresh.shape}")
    made = np.zeros_like(fresh)
    made[: len(old)] = old
    owned = has_row(old, data)
    rows = np.flatnonzero(owned)
    mean = old[rows].mean(axis=0) if len(rows) else np.zeros(old.shape[1:], old.dtype)
    starting = ~owned & (data.events >= OWN_ROW)
    starting[0] = False
    if not starting.any():
        return made
    pointers, ids, weights = (counted[f"neighbours.{part}"] for part in ("indptr", "ids", "weights"))
    for item in np.flatnonzero(starting):
        near = slice(pointers[item], pointers[item + 1])
        known = owned[ids[near]]
        share = weights[near][known]
        made[item] = share @ old[ids[near][known]] / share.sum() if share.sum() > 0 else mean
    return made


def grow_moments(key: str, old: np.ndarray, rows: int) -> np.ndarray:
    """Add rows for new items to an optimizer array: m = 0, v = the column mean."""
    if key == "step":
        return old.reshape(())  # a file stores a scalar as an array of length 1
    if len(old) == rows:
        return old
    made = np.zeros((rows, *old.shape[1:]), old.dtype)
    made[: len(old)] = old
    if key == "exp_avg_sq":
        made[len(old) :] = old[1:].mean(axis=0)
    return made


def is_table(array: np.ndarray, data: TrainData) -> bool:
    """Return True if a parameter has a row for each item and a padding row."""
    return array.ndim > 1 and len(array) == data.n_items + 1


def has_row(old: np.ndarray, data: TrainData) -> np.ndarray:
    """Return a (N+1,) bool mask of items with a nonzero row in the parent's table."""
    owned = np.zeros(data.n_items + 1, dtype=bool)
    owned[1 : len(old)] = old[1:].reshape(len(old) - 1, -1).any(axis=1)
    return owned


def waits_for_row(data: TrainData, old: np.ndarray) -> np.ndarray:
    """Return a (N+1,) bool mask of items without a parent row and with too few events."""
    none = ~has_row(old, data) & (data.events < OWN_ROW)
    none[0] = False
    return none
