"""Example users of a report: query, list and taken items."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recloop.evaluation.queries import Queries
from recloop.evaluation.table_rows import Example
from recloop.features.state import StateBatch
from recloop.features.state_history import StateHistory
from recloop.recommend.recommender import Recommender
from recloop.records import Query

EXAMPLE_QUANTILES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Quantiles of history length for the example users of the report."""


def examples_of(
    recommender: Recommender, placement: str, queries: Queries, positives: NDArray[np.int64], timeline: StateHistory
) -> list[Example]:
    """Return the example users (`EXAMPLE_QUANTILES`): query, list and taken items."""
    user_of_query = np.array(queries.users, dtype=object)
    last_of_user = np.append(np.flatnonzero(user_of_query[1:] != user_of_query[:-1]), len(queries) - 1)
    order = last_of_user[np.argsort(positives[last_of_user], kind="stable")]
    selected = sorted(
        {int(order[int(share * (len(order) - 1))]) for share in EXAMPLE_QUANTILES}, key=lambda q: (positives[q], q)
    )
    users = [queries.users[q] for q in selected]
    states = timeline.states(users, queries.as_of[selected].tolist(), queries.now[selected].tolist())
    batch = [
        Query(user_id=user, now=int(queries.now[q]), placement=placement)
        for user, q in zip(users, selected, strict=True)
    ]
    answers = recommender.recommend(states, batch, with_inputs=False)
    examples = []
    for b, (q, answer) in enumerate(zip(selected, answers, strict=True)):
        newest = range(states.moment_offsets[b + 1] - 1, states.moment_offsets[b] - 1, -1)[:3]
        history = [
            (int(states.stamps[m]), _names(states, states.item_offsets[m], states.item_offsets[m + 1])) for m in newest
        ]
        taken = queries.targets[queries.offsets[q] : queries.offsets[q + 1]]
        slots = [(slot.item_id, slot.score, slot.source) for slot in answer.slots]
        examples.append(Example(users[b], int(queries.now[q]), int(positives[q]), history, slots, taken))
    return examples


def _names(states: StateBatch, low: int, high: int) -> list[str]:
    names: list[str] = states.names[states.items[low:high]].tolist()
    return names
