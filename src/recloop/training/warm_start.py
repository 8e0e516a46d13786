"""A warm start: which positions an update learns, and how a network grows with its tables (definitions, section 8).

A position is (user, moment as a target). New ones have a row that the parent has not learned; older ones are context, their
loss masked, but for a replay of as many again: half from the newest 30 days, half uniform over all of them.
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
"""Events after which a new id gets a row of its own; before, its attributes alone carry it."""
RATE = 0.2
"""Of the last full run's learning rate."""
STEPS = 200
"""Steps over which the rate rises to its constant value."""


@dataclass(frozen=True)
class WarmStartState:
    """What a network starts from.

    Attributes:
        state: The parent's train.safetensors: ``network.NAME``, ``exp_avg.NAME``, ``exp_avg_sq.NAME``, ``step.NAME``.
        chosen: (M,) bool, the moments that are targets; every other is context.
        rate: Share of the configured learning rate.
        counted: The child's co-visitation rows: a new item starts among its neighbours.
    """

    state: Mapping[str, np.ndarray]
    chosen: np.ndarray
    rate: float
    counted: Mapping[str, np.ndarray]


def select_targets(data: TrainData, learned: LearnedRange, replay: float, seed: int) -> np.ndarray:
    """(M,) bool: the moments in the loss, new and replayed; none of ``old`` users, none without a past.

    Args:
        learned: What the parent was fitted on: a moment is new when it was held back, or a row of it came later.
        replay: Old positions for each new one.
    """
    starts = data.moment_offsets[:-1]
    first, newest = (
        edge.reduceat(data.seqs, starts) if len(starts) else data.seqs for edge in (np.minimum, np.maximum)
    )
    return with_replay(data, (newest > learned.until_seq) | learned.is_new(first, data.stamps), replay, seed)


def with_replay(data: TrainData, fresh: np.ndarray, replay: float, seed: int) -> np.ndarray:
    """(M,) bool: the ``fresh`` (M,) moments that can be targets, and ``replay`` old ones for each of them."""
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
    """A parameter of the parent in the child's shape: its rows first, then those of the new items.

    A new item with ``OWN_ROW`` events starts at the mean of its neighbours' rows, weighed by co-visitation; without
    neighbours at the mean of all; with fewer events at 0. A row that is 0 in the parent was no row yet: it starts now.

    Args:
        fresh: The child's parameter as it was built: its shape.
        data: The child's arrays.

    Raises:
        ValueError: a shape that the parent's cannot grow into.
    """
    if old.shape == fresh.shape and not is_table(old, data):
        return old
    if old.shape[1:] != fresh.shape[1:] or len(fresh) != data.n_items + 1 or len(old) > len(fresh):
        raise ValueError(f"{name}: {old.shape} does not grow into {fresh.shape}")
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
    """An optimizer's array with rows for the new items: m = 0, v = the column mean."""
    if key == "step":
        return old.reshape(())  # a file of arrays gives it back as one of length 1
    if len(old) == rows:
        return old
    made = np.zeros((rows, *old.shape[1:]), old.dtype)
    made[: len(old)] = old
    if key == "exp_avg_sq":
        made[len(old) :] = old[1:].mean(axis=0)
    return made


def is_table(array: np.ndarray, data: TrainData) -> bool:
    """Whether a parameter has a row for each item, and one that pads."""
    return array.ndim > 1 and len(array) == data.n_items + 1


def has_row(old: np.ndarray, data: TrainData) -> np.ndarray:
    """(N+1,) bool: items that have a row of their own in the parent's table; one that had too few events is 0 there."""
    owned = np.zeros(data.n_items + 1, dtype=bool)
    owned[1 : len(old)] = old[1:].reshape(len(old) - 1, -1).any(axis=1)
    return owned


def waits_for_row(data: TrainData, old: np.ndarray) -> np.ndarray:
    """(N+1,) bool: items that have no row of their own yet: none in the parent's table, and too few events for one."""
    none = ~has_row(old, data) & (data.events < OWN_ROW)
    none[0] = False
    return none
