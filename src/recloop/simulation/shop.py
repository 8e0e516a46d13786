"""Simulator of a shop's log with known user utilities, for tests and trials.

A customer likes some categories, is more or less sensitive to prices, and has favourites. Baskets are drawn from that
utility, from companions of the last basket's items (each item has two), and from habit. So a list can be evaluated by
the true `SimulatedShop.utility` and not only by the next purchase.

    world = SimulatedShop(seed=0)
    world.events()            # a Polars frame with columns of records.Event
    world.write("shop")       # events.csv, items.csv, users.csv and a recloop.toml
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from recloop import records
from recloop.records import DAY, SECOND

START: Final = 1_735_689_600 * SECOND  # 2025-01-01T00:00:00Z
CATEGORIES: Final = ("bakery", "beauty", "coffee", "dairy", "fruit", "garden", "pets", "tea")
KINDS: Final = ("plain", "fine", "family", "organic", "small", "royal", "rustic", "spring", "classic", "dark")
AGES: Final = ("18-29", "30-44", "45-59", "60+")
COMPANIONS: Final = 2
LATE_ITEMS: Final = 0.05  # share of items that are launched in the last tenth of the days: cold at the cut
SILENT_USERS: Final = 0.03  # share of users with attributes and no event: warm to a service, new to a model

PROJECT: Final = """\
# Project with the log of a simulated shop.
[data]
events = "events.csv"
items = "items.csv"
users = "users.csv"
[data.columns]
event_type = "event_type"
value = "value"
quantity = "quantity"
group_id = "group_id"
event_id = "event_id"
name = "name"
[events]
neutral = ["impression", "click"]
positive = ["purchase"]
negative = ["dislike"]
[features]
dim = 32
max_history = 50
[features.item.category]
from = "category"
dim = 8
[features.item.price]
kind = "number"
from = "price"
dim = 4
[features.user.age]
from = "age"
dim = 4
[train]
time_budget = "60s"
[serve]
segment = "age"
"""


@dataclass(frozen=True)
class _Truth:
    """Hidden parameters: tastes, qualities and companions. U users, I items."""

    category: np.ndarray  # (I,) int
    price: np.ndarray  # (I,) float
    quality: np.ndarray  # (I,) float
    launch: np.ndarray  # (I,) int64 microseconds
    companions: np.ndarray  # (I, COMPANIONS) int
    age: np.ndarray  # (U,) int
    utility: np.ndarray  # (U, I) float
    baskets: np.ndarray  # (U,) int: number of baskets of each user


class SimulatedShop:
    """Small simulated shop; deterministic for the same arguments.

    Args:
        seed: Seed of all random draws.
        users: Number of customers, including silent ones (`SILENT_USERS`).
        items: Number of catalog items, including those never bought.
        days: Length of the log.
    """

    def __init__(self, seed: int = 0, users: int = 300, items: int = 200, days: int = 180) -> None:
        self.seed, self.days = seed, days
        self.user_ids = [f"u{n:0{len(str(users))}d}" for n in range(1, users + 1)]
        self.item_ids = [f"i{n:0{len(str(items))}d}" for n in range(1, items + 1)]
        self._user_ix = {user_id: ix for ix, user_id in enumerate(self.user_ids)}
        self._truth = _draw(np.random.default_rng([seed, 0]), users, items, days)

    def utility(self, user_id: str) -> np.ndarray:
        """Return each item's true utility for a user, (items,) float64 by `item_ids`.

        The array is read-only.
        """
        row: np.ndarray = self._truth.utility[self._user_ix[user_id]]
        return row

    def best(self, user_id: str) -> str:
        """Return the item with the highest utility for a user."""
        return self.item_ids[int(self.utility(user_id).argmax())]

    def items(self) -> pl.DataFrame:
        """Return the catalog as a shop exports it: item_id, name, category, price."""
        truth = self._truth
        return pl.DataFrame(
            {
                records.ITEM_ID: self.item_ids,
                "name": [f"{KINDS[ix % len(KINDS)]} {CATEGORIES[c]} {ix + 1}" for ix, c in enumerate(truth.category)],
                "category": [CATEGORIES[c] for c in truth.category],
                "price": truth.price,
            }
        )

    def users(self) -> pl.DataFrame:
        """Return the customers as a shop exports them: user_id, age."""
        return pl.DataFrame({records.USER_ID: self.user_ids, "age": [AGES[a] for a in self._truth.age]})

    def events(self) -> pl.DataFrame:
        """Return the log by time: baskets (one stamp, one group_id), clicks, dislikes.

        Columns: event_id, user_id, item_id, timestamp (int64 microseconds UTC), event_type, value, quantity, group_id.
        """
        return self._events.clone()

    @cached_property
    def _events(self) -> pl.DataFrame:
        rows = [row for ix in range(len(self.user_ids)) for row in self._history(ix)]
        columns = (records.USER_ID, records.ITEM_ID, records.TIMESTAMP, records.EVENT_TYPE)
        schema = {name: records.EVENT_SCHEMA[name] for name in columns}
        schema |= {name: records.EVENT_SCHEMA[name] for name in (records.VALUE, records.QUANTITY, records.GROUP_ID)}
        frame = pl.DataFrame(rows, schema=schema, orient="row")
        frame = frame.sort(records.TIMESTAMP, records.USER_ID, records.ITEM_ID, maintain_order=True)
        ids = pl.int_range(1, pl.len() + 1).cast(pl.String).str.zfill(7)
        return frame.select(pl.format("e{}", ids).alias(records.EVENT_ID), *schema)

    def write(self, folder: Path | str) -> Path:
        """Write the shop as a project and return the folder.

        Files: events.csv, items.csv, users.csv, recloop.toml.
        """
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        stamp = pl.from_epoch(records.TIMESTAMP, time_unit="us").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        self.events().with_columns(stamp).write_csv(root / "events.csv")
        self.items().write_csv(root / "items.csv")
        self.users().write_csv(root / "users.csv")
        (root / "recloop.toml").write_text(PROJECT, "utf-8")
        return root

    def _history(self, ix: int) -> Iterator[tuple[object, ...]]:
        """Draw one user's rows from a separate generator, so other users do not matter."""
        truth, user_id = self._truth, self.user_ids[ix]
        generator = np.random.default_rng([self.seed, 1, ix])
        utility = truth.utility[ix]
        first = generator.uniform(0, 0.6) * self.days
        days = np.sort(generator.uniform(first, self.days, truth.baskets[ix])).astype(np.int64)
        last: np.ndarray = np.empty(0, np.int64)
        for number, day in enumerate(np.unique(days), 1):
            stamp = START + int(day) * DAY + int(generator.integers(7 * 3600, 22 * 3600)) * SECOND
            on_sale = truth.launch <= stamp
            basket = self._basket(generator, np.where(on_sale, utility, -np.inf), last[on_sale[last]])
            looks = pick(generator, np.where(on_sale, 0.7 * utility, -np.inf), 1 + int(generator.poisson(0.8)))
            moments = stamp - np.cumsum(generator.integers(5, 120, len(looks)))[::-1] * SECOND
            for item, moment in zip(looks, moments, strict=True):
                yield (user_id, self.item_ids[item], int(moment), "click", None, None, None)
            for item in basket:
                quantity = 1.0 + float(generator.poisson(0.25))
                value = round(float(truth.price[item]) * quantity, 2)
                yield (user_id, self.item_ids[item], stamp, "purchase", value, quantity, f"b-{user_id}-{number}")
            if generator.random() < 0.05:
                item = int(pick(generator, np.where(on_sale, -utility, -np.inf), 1)[0])
                yield (user_id, self.item_ids[item], stamp + 60 * SECOND, "dislike", None, None, None)
            last = np.sort(basket)

    def _basket(self, generator: np.random.Generator, utility: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Draw one basket, (n,) item numbers; companions of the last count as favourites."""
        pull = np.zeros(len(utility))
        np.add.at(pull, self._truth.companions[last].ravel(), 2.5)
        return pick(generator, utility + pull, 1 + int(generator.poisson(1.9)))


def _draw(generator: np.random.Generator, users: int, items: int, days: int) -> _Truth:
    kinds = len(CATEGORIES)
    category = generator.integers(0, kinds, items)
    price = np.round(np.exp(generator.normal(1.2 + 0.15 * category, 0.5)), 2)
    quality = generator.normal(0, 1, items)
    launch = np.full(items, START)
    late = generator.choice(items, int(LATE_ITEMS * items), replace=False)
    launch[late] = START + (generator.uniform(0.9, 1.0, len(late)) * days).astype(np.int64) * DAY
    companions = generator.integers(0, items, (items, COMPANIONS))
    age = generator.integers(0, len(AGES), users)
    # (ages, categories): mean taste of an age group; its members scatter around it.
    group = generator.normal(0, 1.0, (len(AGES), kinds))
    taste = group[age] + generator.normal(0, 1.0, (users, kinds))
    thrift = generator.gamma(2.0, 0.2, users)
    favourite = generator.normal(0, 1.0, (users, items)) + 2.0 * (generator.random((users, items)) < 0.02)
    utility = (
        1.2 * taste[:, category] + 0.8 * quality - thrift[:, None] * (np.log(price) - np.log(price).mean()) + favourite
    )
    baskets = np.maximum(2, generator.negative_binomial(3, 3 / (3 + 8.5), users))
    baskets[users - int(SILENT_USERS * users) :] = 0
    return _Truth(category, price, quality, launch, companions, age, utility, baskets)


def pick(generator: np.random.Generator, utility: np.ndarray, n: int) -> np.ndarray:
    """Draw n different items by the softmax of their utility (Gumbel top-n, not -inf)."""
    noisy = utility + generator.gumbel(size=len(utility))
    n = min(n, int(np.isfinite(utility).sum()))
    return np.argsort(-noisy, kind="stable")[:n]
