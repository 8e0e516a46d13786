"""One very long id costs its own length, not that of every query."""

from __future__ import annotations

import tracemalloc

import numpy as np

from recloop.evaluation.paired import windows
from recloop.evaluation.queries import Queries
from recloop.monitoring.shadow_report import estimates


def test_long_id_among_many_costs_its_own_length() -> None:
    users = [*(f"u{n:03}" for n in range(200)), "u" * 1_000_000]
    size = len(users)
    times = np.zeros(size, dtype=np.int64)
    queries = Queries(users[::-1], times, times, np.arange(size + 1), ["i"] * size)
    tracemalloc.start()
    try:
        newest = windows(queries, count=1, size=size)[0]
        means = estimates(np.ones((size, 5)), users)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert newest.users == sorted(users)[-len(newest) :]
    assert all(mean["value"] == 1.0 for mean in means.values())
    assert peak < 100_000_000
