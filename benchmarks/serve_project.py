"""Seeded project of a given number of items for the serving benchmark.

Popularity follows a Zipf law, and each user prefers two categories. Every item has at least one event before the cut, so
all items are in the item table. With ``heavy``, further users have many events, for the cost by length of the past.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

USERS: Final = 2_000
MIN_EVENTS: Final = 200_000
EVENTS_PER_ITEM: Final = 1.25
CATEGORIES: Final = 50
START: Final = 1_735_689_600  # 2025-01-01, seconds
SECONDS: Final = 180 * 86_400
COVERAGE_SHARE: Final = 0.8  # part of the days in which the first event of every item lies, before the cut at 0.9
SETTINGS: Final = """\
# Seeded project of benchmarks/serve.py.
[data]
events = "events.parquet"
items = "items.parquet"
[data.columns]
event_type = "event_type"
[events]
positive = ["purchase"]
[clean]
duplicates = "off"
burst = "off"
[split]
targets = "next"
validation_users = 32
filter_seen = true
[features]
dim = 64
max_history = 50
[features.item.category]
from = "category"
dim = 8
[model]
name = "{model}"
[train]
epochs = 1
time_budget = "{budget}"
windows = "last"
[evaluate]
baselines = []
[placement.home]
list = "for_you"
n = 10
[placement.home.weights]
model = 1.0
neighbours = 0.5
popular = 0.25
[serve]
port = 0
"""


def write(
    folder: Path,
    n_items: int,
    *,
    seed: int = 0,
    budget: str = "20s",
    model: str = "sasrec",
    heavy: tuple[int, ...] = (),
) -> None:
    """Write events, items and settings; the project is not trained yet."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng([seed, n_items])
    names = np.array([f"i{n:07d}" for n in range(n_items)])
    category = generator.integers(0, CATEGORIES, n_items)
    items = pl.DataFrame(
        {
            "item_id": names,
            "category": [f"c{code:02d}" for code in category.tolist()],
            "price": np.round(generator.gamma(2.0, 10.0, n_items), 2),
            "in_stock": generator.random(n_items) < 0.9,
        }
    )
    items.write_parquet(folder / "items.parquet")
    users, item_rows, stamps = _purchases(generator, category)
    for length in heavy:
        users = np.concatenate([users, np.full(length, f"heavy{length}")])
        item_rows = np.concatenate([item_rows, generator.integers(0, n_items, length)])
        stamps = np.concatenate([stamps, START + np.sort(generator.integers(0, SECONDS, length))])
    order = np.argsort(stamps, kind="stable")
    events = {"user_id": users[order], "item_id": names[item_rows[order]], "timestamp": stamps[order]}
    pl.DataFrame(events).with_columns(event_type=pl.lit("purchase")).write_parquet(folder / "events.parquet")
    (folder / "recloop.toml").write_text(SETTINGS.format(model=model, budget=budget), "utf-8")


def _purchases(generator: np.random.Generator, category: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User ids, item rows and stamps in seconds of all ordinary users."""
    n_items = len(category)
    n_events = max(MIN_EVENTS, int(n_items * EVENTS_PER_ITEM))
    weights = 1 / np.arange(1, n_items + 1) ** 0.8
    popular = generator.permutation(n_items)
    drawn = popular[np.searchsorted(np.cumsum(weights) / weights.sum(), generator.random(n_events - n_items))]
    item_rows = np.concatenate([generator.permutation(n_items), drawn])
    preferred = generator.integers(0, CATEGORIES, (USERS, 2))
    fans = [np.flatnonzero((preferred == code).any(axis=1)) for code in range(CATEGORIES)]
    user_rows = generator.integers(0, USERS, n_events)
    for code, members in enumerate(fans):  # half of a category's events are by users who prefer it
        rows = np.flatnonzero((category[item_rows] == code) & (generator.random(n_events) < 0.5))
        if len(members):
            user_rows[rows] = generator.choice(members, len(rows))
    stamps = START + generator.integers(0, SECONDS, n_events)
    stamps[:n_items] = START + generator.integers(0, int(COVERAGE_SHARE * SECONDS), n_items)
    return np.array([f"u{n:05d}" for n in range(USERS)])[user_rows], item_rows, stamps
