"""Popular lists per segment of users."""

from __future__ import annotations

import numpy as np

from recloop.features.value_text import as_text
from recloop.models.base import TrainData
from recloop.recommend.fallback import segment_lists
from recloop.training.dataset import ItemUserTables

SEGMENT_LENGTH = 1000
"""Items of a list."""


def segment_arrays(data: TrainData, tables: ItemUserTables, half_life: float | None) -> dict[str, np.ndarray]:
    """Compute popular lists per ``serve.segment`` value; empty if it is not set."""
    if not tables.spec.segment:
        return {}
    values = [None if row is None else row.get(tables.spec.segment) for row in tables.user_attributes]
    segments = [None if value is None else as_text(value) for value in values]
    row_user = data.moment_user[data.row_moment]
    weights = data.decay(half_life)[data.row_moment]
    is_target = data.target_rows
    return segment_lists(
        segments, row_user[is_target], data.items[is_target], weights[is_target], data.n_items + 1, SEGMENT_LENGTH
    )
