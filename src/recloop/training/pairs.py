"""Training pairs of user and item, for networks that know users by id."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from recloop.models.base import TrainData
from recloop.training.batches import SequenceDataset
from recloop.training.warm_start import WarmStartState, parent_rows


class PairBatch(NamedTuple):
    """R pairs of a step; a rejected pair has the label 0."""

    users: Tensor  # (R,) int64 user_ix from 0
    items: Tensor  # (R,) int64 item_ix from 1
    weights: Tensor  # (R,) float32
    is_positive: Tensor  # (R,) bool

    @property
    def n_tokens(self) -> int:
        """Number of positive pairs."""
        return int(self.is_positive.sum())


class PairDataset(Dataset[PairBatch]):
    """Pairs of the training targets and of the rejected items, without ``old`` users.

    Args:
        chosen: (M,) bool, the moments whose targets are learned; None means all.
    """

    def __init__(self, data: TrainData, chosen: np.ndarray | None = None) -> None:
        moment = data.row_moment
        user = data.moment_user[moment]
        is_learned = data.target_rows & ~data.old[user]
        if chosen is not None:
            is_learned = is_learned & chosen[moment]
        parts = [(user[is_learned], data.items[is_learned], data.weights[is_learned])]
        refused = data.negatives
        if refused is not None and chosen is None:
            is_kept = ~data.old[refused.user_ix]
            parts.append((refused.user_ix[is_kept], refused.items[is_kept], refused.weights[is_kept]))
        users, items, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
        self.users = torch.from_numpy(users.astype(np.int64))
        self.items = torch.from_numpy(items.astype(np.int64))
        self.weights = torch.from_numpy(weights.astype(np.float32))
        self.is_positive = torch.arange(len(users)) < len(parts[0][0])

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, rows: np.ndarray) -> PairBatch:
        index = torch.from_numpy(rows)
        return PairBatch(self.users[index], self.items[index], self.weights[index], self.is_positive[index])


class PairSampler(Sampler[np.ndarray]):
    """Sampler of each step's pairs; the order changes each epoch."""

    def __init__(self, size: int, pairs: int, seed: int) -> None:
        self.size = size
        self.pairs = pairs
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.size / self.pairs)

    def __iter__(self) -> Iterator[np.ndarray]:
        order = np.random.default_rng([self.seed, self.epoch, 2]).permutation(self.size)
        for step in range(len(self)):
            yield order[step * self.pairs : (step + 1) * self.pairs]


def users_with_row(data: TrainData, pairs: PairDataset, warm: WarmStartState) -> Tensor:
    """Return (U+1, 1) bool: users of the parent or of a pair that is learned."""
    has_row = torch.from_numpy(warm.state["network.has_row"][parent_rows(warm.users, data.user_ids)])
    has_row[1 + pairs.users[pairs.is_positive]] = True
    return has_row


def fit_fold_in(network: Any, sequences: SequenceDataset, vectors: Tensor) -> None:
    """Fit the network's map from a history to a user vector on the users with a row.

    A history is the newest window of a user, as in serving.

    Args:
        vectors: (N+1, D) item vectors.
    """
    users = np.flatnonzero(network.has_row[1:, 0].numpy(force=True))
    if not len(users):
        return
    windows = sequences.latest_windows(users)
    lengths = sequences.lengths(windows)
    first = sequences.rows.offsets[windows.starts]
    rows = np.repeat(first - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
    owner = torch.from_numpy(np.repeat(np.arange(len(users)), lengths))
    with torch.no_grad():
        history = vectors[torch.from_numpy(sequences.rows.items[rows])].cpu()
        sums = torch.zeros(len(users), history.shape[1]).index_add(0, owner, history)
        means = sums / torch.from_numpy(lengths.astype(np.float32))[:, None]
        network.cpu().fit_fold_in(means, network.users.weight[torch.from_numpy(users + 1)])
