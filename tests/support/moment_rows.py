"""Training arrays of a few users, written as moments of items."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recloop.features.state import offsets_of
from recloop.models.base import TrainData


def data_of(users: Sequence[Sequence[Sequence[int]]], n_items: int) -> TrainData:
    """Training arrays of users' moments, each a set of item_ix."""
    moments = [moment for user in users for moment in user]
    items = np.array([item for moment in moments for item in moment], dtype=np.int32)
    nothing = np.zeros((0, 0), dtype=np.int32)
    return TrainData(
        item_ids=[str(n) for n in range(1, n_items + 1)],
        user_ids=[str(n) for n in range(len(users))],
        user_offsets=offsets_of([len(user) for user in users]),
        moment_offsets=offsets_of([len(moment) for moment in moments]),
        stamps=np.arange(len(moments), dtype=np.int64),
        items=items,
        seqs=np.arange(len(items), dtype=np.int64),
        weights=np.ones(len(items), dtype=np.float32),
        old=np.zeros(len(users), dtype=bool),
        user_codes=nothing,
        item_codes=nothing,
        user_fields=[],
        item_fields=[],
        context_fields=[],
        cut=len(moments),
        counts=np.bincount(items, minlength=n_items + 1),
    )
