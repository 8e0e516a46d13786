"""Validation moments as a file for other libraries, and NDCG@10 of the lists that they return."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recloop.evaluation import metrics
from recloop.features.state import offsets_of
from recloop.models.base import TrainData
from recloop.training.validation import LIST_LENGTH, ValidationSet


def write_sequences(data: TrainData, moments: ValidationSet, file: Path) -> None:
    """Write training sequences and validation histories as npz; targets are left out.

    Item numbers count from 1 to ``n_items``, oldest first. ``train_items`` (E,) are the rows of U users by
    ``train_offsets`` (U+1,). ``query_items`` (H,) are the whole histories of Q queries by ``query_offsets`` (Q+1,); lists must
    not hold them.
    """
    if data.targets is not None or moments.seen is None:
        raise ValueError(
            "data with input rows or lists of seen items: other libraries learn each row and hide seen items"
        )
    query, query_items = moments.seen
    np.savez(
        file,
        n_items=data.n_items,
        train_items=data.items,
        train_offsets=data.moment_offsets[data.user_offsets],
        query_items=query_items,
        query_offsets=offsets_of(np.bincount(query, minlength=len(moments))),
    )


def ndcg(lists: np.ndarray, moments: ValidationSet, n_items: int) -> float:
    """Return the mean NDCG@10 of (Q, 10) lists, by the scorer of our own looks."""
    if lists.shape != (len(moments), LIST_LENGTH) or lists.min() < 1 or lists.max() > n_items:
        expected = f"({len(moments)}, {LIST_LENGTH}) item numbers from 1 to {n_items}"
        raise ValueError(
            f"lists of another library: {lists.shape}, {lists.min()} to {lists.max()}; expected {expected}"
        )
    if moments.seen is not None:
        query, seen = moments.seen
        shown = np.isin(
            np.repeat(np.arange(len(lists)), LIST_LENGTH) * (n_items + 1) + lists.ravel(), query * (n_items + 1) + seen
        )
        if shown.any():
            raise ValueError(f"lists of another library: {shown.sum()} seen items; expected none")
    return float(metrics.ranking(lists, moments.targets, moments.offsets, LIST_LENGTH)["NDCG"].mean())
