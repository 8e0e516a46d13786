"""Training arrays written by hand, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from recloop.features.state import offsets_of
from recloop.models.base import TrainData, ValidationQueries

Histories = Sequence[Sequence[Sequence[int]]]


@pytest.fixture(scope="session")
def arrays() -> Callable[..., TrainData]:
    """Make training arrays: ``arrays(histories, ...)``, moments oldest first."""
    return make


def make(
    histories: Histories,
    n_items: int,
    held: dict[int, Sequence[int]] | None = None,
    old: Sequence[int] = (),
    seqs: Sequence[int] | None = None,
    user_codes: np.ndarray | None = None,
) -> TrainData:
    """Moments are a day apart; seq numbers rows by (moment, user) unless given."""
    moments = [moment for history in histories for moment in history]
    number = [m for history in histories for m in range(len(history))]
    rows = np.repeat(number, [len(moment) for moment in moments]).astype(np.int64)
    flat = np.array([item for moment in moments for item in moment], dtype=np.int32)
    by_time = np.argsort(np.argsort(rows, kind="stable"), kind="stable") + 1
    day = 86_400_000_000
    targets = held or {}
    users = np.array(sorted(targets), dtype=np.int64)
    codes = np.zeros((len(histories), 0), np.int32) if user_codes is None else user_codes
    return TrainData(
        item_ids=[f"i{n:03d}" for n in range(1, n_items + 1)],
        user_ids=[f"u{n:03d}" for n in range(len(histories))],
        user_offsets=offsets_of([len(history) for history in histories]),
        moment_offsets=offsets_of([len(moment) for moment in moments]),
        stamps=np.array(number, dtype=np.int64) * day,
        items=flat,
        seqs=by_time if seqs is None else np.array(seqs, dtype=np.int64),
        weights=np.ones(len(flat), dtype=np.float32),
        old=np.isin(np.arange(len(histories)), list(old)),
        user_codes=codes,
        item_codes=np.zeros((n_items + 1, 0), np.int32),
        user_fields=[(f"user.{n}", int(codes[:, n].max()) + 1, 4) for n in range(codes.shape[1])],
        item_fields=[],
        context_fields=[],
        cut=1000 * day,
        counts=np.bincount(flat, minlength=n_items + 1),
        held=ValidationQueries(
            user_ix=users,
            now=np.array([len(histories[user]) for user in users], dtype=np.int64) * day,
            as_of=np.full(len(users), len(flat)),
            offsets=offsets_of([len(targets[user]) for user in users]),
            items=np.array([item for user in users for item in targets[user]], dtype=np.int32),
        )
        if targets
        else None,
    )
