"""Simulator of users who respond to lists by a known utility.

`recloop.simulation.shop.SimulatedShop` generates a finished log. This simulator responds: given a list it returns the
user's clicks, dwells, skips and dislikes. So a service can be tested on reacting users, and the true difference between
two lists is known in closed form. Tastes drift, users and items arrive over time, and some items are *bait*: they draw
clicks beyond their utility.

    world = BrowsingSimulator(seed=0)
    world.write("shop", days=60)                          # a project with the log of the shop's lists
    for now, user_id in world.visits(60, 61):             # then, over HTTP:
        items = ask(user_id)
        post(world.respond(user_id, items, now, request_id))
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from recloop import records
from recloop.files import JsonTree
from recloop.records import DAY, SECOND, iso
from recloop.simulation.shop import AGES, CATEGORIES, KINDS, START, pick

SLOTS: Final = 10  # length of the shop's lists
EXAMINED: Final = 0.6  # slot k (from 0) is examined with probability (k + 1) ** -EXAMINED
BAIT: Final = 0.1  # share of items that draw clicks beyond their utility
LATE_USERS: Final = 0.2  # share of users that arrive after the first third of the days
LATE_ITEMS: Final = 0.15  # share of items that arrive after the first third of the days
TYPES: Final = ("click", "dwell", "purchase", "skip", "dislike")

PROJECT: Final = """\
# Project with the log of simulated users who browse.
[data]
events = "events.csv"
items = "items.csv"
users = "users.csv"
[data.columns]
event_type = "event_type"
value = "value"
group_id = "group_id"
event_id = "event_id"
name = "name"
[events]
neutral = ["impression"]
positive = []
negative = ["hide"]
weights = { purchase = 5, click = 1, skip = -0.5, dislike = -1 }
[features]
dim = 32
max_history = 50
[features.item.category]
from = "category"
dim = 8
[features.user.age]
from = "age"
dim = 4
[train]
time_budget = "60s"
[serve]
segment = "age"
"""


class BrowsingSimulator:
    """Simulated users and items; deterministic for the same arguments.

    Args:
        seed: Seed of all random draws.
        users, items: Numbers of users and items, late arrivals included.
        days: Days over which tastes drift and newcomers arrive.
        drift: Change of a taste over these days, from 0 (none) to 1 (an independent taste of the same strength).
        demand: Utility at which half of the examined slots become clicks.
    """

    def __init__(
        self, seed: int = 0, users: int = 400, items: int = 300, days: int = 90, drift: float = 0.5, demand: float = 1.5
    ) -> None:
        self.seed, self.days, self.drift, self.demand = seed, days, drift, demand
        self.user_ids = [f"u{n:0{len(str(users))}d}" for n in range(1, users + 1)]
        self.item_ids = [f"i{n:0{len(str(items))}d}" for n in range(1, items + 1)]
        self._user_ix = {user_id: ix for ix, user_id in enumerate(self.user_ids)}
        self._item_ix = {item_id: ix for ix, item_id in enumerate(self.item_ids)}
        draw = np.random.default_rng([seed, 0])
        kinds = len(CATEGORIES)
        self._category = draw.integers(0, kinds, items)
        self._quality = draw.normal(0, 1, items)
        self.bait = draw.random(items) < BAIT  # (items,) bool
        self._bait = 1.8 * self.bait
        self._duration = np.round(np.exp(draw.normal(4.5, 0.8, items)))  # seconds; the median is 90
        self._price = np.round(np.exp(draw.normal(1.2, 0.5, items)), 2)
        self._launch = _arrivals(draw, items, LATE_ITEMS, days)
        self._age = draw.integers(0, len(AGES), users)
        self._arrival = _arrivals(draw, users, LATE_USERS, days)
        group = draw.normal(0, 0.7, (len(AGES), kinds))
        self._taste = group[self._age] + draw.normal(0, 0.8, (users, kinds))  # at the first day
        self._later = group[self._age] + draw.normal(0, 0.8, (users, kinds))  # at the last day
        self._own = draw.normal(0, 0.8, (users, items))
        self._rate = draw.gamma(3, 1 / 15, users)  # visits a day

    def utility(self, user_id: str, now: int) -> np.ndarray:
        """Return each item's true utility (items,) for a user at a time, by `item_ids`."""
        user = self._user_ix[user_id]
        turn = self.drift * np.pi / 2 * min(1.0, max(0.0, (now - START) / (self.days * DAY)))
        taste = np.cos(turn) * self._taste[user] + np.sin(turn) * self._later[user]
        worth: np.ndarray = 1.3 * taste[self._category] + 0.6 * self._quality + self._own[user]
        return worth

    def on_sale(self, now: int) -> np.ndarray:
        """Return (items,) bool: launched by then."""
        there: np.ndarray = self._launch <= now
        return there

    def enjoyment(self, user_id: str, now: int) -> np.ndarray:
        """Return the probability (items,) that a user likes each item, without bait.

        This is the true ranking.
        """
        return _sigmoid(1.5 * (self.utility(user_id, now) - self.demand))

    def expected(self, user_id: str, items: Sequence[str], now: int) -> dict[str, float]:
        """Return a list's expected clicks and purchases, and P(any click) (``hit``).

        The exact expectation of what `respond` draws: slots are answered independently.
        """
        ix = [self._item_ix[item] for item in items]
        chances = self._chances(user_id, now)
        clicks = _looked(len(ix)) * chances["click"][ix]
        return {
            "click": float(clicks.sum()),
            "purchase": float((clicks * chances["purchase"][ix]).sum()),
            "hit": float(1 - np.prod(1 - clicks)),
        }

    def _chances(self, user_id: str, now: int) -> dict[str, np.ndarray]:
        """Return P(click | examined), P(purchase | click), P(skip | no click), P(dislike)."""
        worth = self.utility(user_id, now)
        return {
            "click": _sigmoid(1.5 * (worth - self.demand) + self._bait),
            "purchase": _sigmoid(worth - 2.5),
            "skip": 0.4 * _sigmoid(-worth),
            "dislike": 0.2 * _sigmoid(-1.5 * (worth + 2.0)),
        }

    def visits(self, first_day: float, last_day: float) -> Iterator[tuple[int, str]]:
        """Yield (now, user_id) of every visit in these days, by time."""
        found = []
        for ix, user_id in enumerate(self.user_ids):
            draw = np.random.default_rng([self.seed, 1, ix])
            stamp = float(self._arrival[ix] - START) / DAY + float(draw.random()) / self._rate[ix]
            while stamp < last_day:
                if stamp >= first_day:
                    found.append((START + int(stamp * DAY), user_id))
                stamp += 0.02 + float(draw.exponential(1 / self._rate[ix]))  # at least half an hour
        return iter(sorted(found))

    def respond(self, user_id: str, items: Sequence[str], now: int, request_id: str) -> list[JsonTree]:
        """Return a user's response to a list as rows for ``POST /v1/events``, by time.

        Deterministic for the same arguments. Two lists share the random numbers of each slot.
        """
        draw = self._draw(2, user_id, request_id)
        luck, noise = draw.random((len(items), 4)), draw.normal(size=len(items))
        looked, chances = _looked(len(items)), self._chances(user_id, now)
        worth = self.utility(user_id, now)
        rows: list[tuple[str, str, float | None]] = []
        bought: list[str] = []
        for slot, item in enumerate(items):
            ix = self._item_ix[item]
            if luck[slot, 0] >= looked[slot]:
                continue
            if luck[slot, 1] < chances["click"][ix]:
                rows += [("click", item, None), ("dwell", item, self._seconds(ix, worth[ix], noise[slot]))]
                if luck[slot, 2] < chances["purchase"][ix]:
                    bought.append(item)
            elif luck[slot, 2] < chances["skip"][ix]:
                rows.append(("skip", item, None))
            elif luck[slot, 3] < chances["dislike"][ix]:
                rows.append(("dislike", item, None))
        return self._events(user_id, rows, bought, now, request_id)

    def search(self, user_id: str, now: int, request_id: str, but: Collection[str] = ()) -> list[JsonTree]:
        """Return events on items that a user finds without a list, by true utility.

        Args:
            but: Items to exclude, because a list has shown them.
        """
        draw = self._draw(3, user_id, request_id)
        worth, chances = self.utility(user_id, now), self._chances(user_id, now)
        there = self.on_sale(now)
        there[[self._item_ix[item] for item in but]] = False
        found = pick(draw, np.where(there, worth, -np.inf), 1 + int(draw.poisson(0.3)))
        rows: list[tuple[str, str, float | None]] = []
        bought = []
        for ix in found.tolist():
            item = self.item_ids[ix]
            rows += [("click", item, None), ("dwell", item, self._seconds(ix, worth[ix], float(draw.normal())))]
            if draw.random() < chances["purchase"][ix]:
                bought.append(item)
        return self._events(user_id, rows, bought, now, request_id)

    def shop_list(self, user_id: str, now: int) -> list[str]:
        """Return the shop's list without a recommender: noisy bestsellers."""
        draw = self._draw(4, user_id, str(now))
        pull = np.where(self.on_sale(now), 0.7 * self._quality + 0.5 * self._bait, -np.inf)
        return [self.item_ids[ix] for ix in pick(draw, pull, SLOTS)]

    def _seconds(self, ix: int, worth: float, noise: float) -> float:
        """Draw a dwell time: a share of the item's duration that rises with its utility."""
        return round(float(self._duration[ix] * _sigmoid(np.array(1.2 * (worth - 1.0) + 0.7 * noise))), 1)

    def _events(
        self, user_id: str, rows: list[tuple[str, str, float | None]], bought: list[str], now: int, request_id: str
    ) -> list[JsonTree]:
        """Build rows five seconds apart, with the purchases as one basket at the end.

        A dwell has the stamp of its click, so both are one moment.
        """
        events = []
        stamp = now
        for place, (kind, item, value) in enumerate([*rows, *(("purchase", item, None) for item in bought)]):
            stamp += 5 * SECOND * (kind != "dwell" and place <= len(rows))
            event: JsonTree = {
                "event_id": f"{request_id}-{place}", "user_id": user_id, "item_id": item, "event_type": kind,
                "timestamp": iso(stamp // SECOND * SECOND), "request_id": request_id,
            }  # fmt: skip
            if value is not None:
                event["value"] = value
            if kind == "purchase":
                event["value"] = float(self._price[self._item_ix[item]])
                event["group_id"] = f"b-{request_id}"
            events.append(event)
        return events

    def _draw(self, purpose: int, user_id: str, name: str) -> np.random.Generator:
        digest = hashlib.blake2b(f"{user_id}\0{name}".encode(), digest_size=8).digest()
        return np.random.default_rng([self.seed, purpose, int.from_bytes(digest, "big")])

    def events(self, days: float | None = None) -> pl.DataFrame:
        """Return the log of these days under the shop's lists.

        Columns: event_id, user_id, item_id, timestamp, event_type, value, group_id.
        """
        rows: list[JsonTree] = []
        for number, (now, user_id) in enumerate(self.visits(0, self.days if days is None else days)):
            shown = f"v{number:06d}"
            rows += self.respond(user_id, self.shop_list(user_id, now), now, shown)
            rows += self.search(user_id, now + 300 * SECOND, f"s{number:06d}")
        names = ("event_id", "user_id", "item_id", "timestamp", "event_type", "value", "group_id")
        schema = {name: pl.String if name == "timestamp" else records.EVENT_SCHEMA[name] for name in names}
        frame = pl.DataFrame([{name: row.get(name) for name in names} for row in rows], schema=schema)
        return frame.sort("timestamp", maintain_order=True)

    def items(self, now: int | None = None) -> pl.DataFrame:
        """Return the catalog: item_id, name, category, price, duration (seconds).

        Default: the last day.
        """
        frame = pl.DataFrame(
            {
                records.ITEM_ID: self.item_ids,
                "name": [f"{KINDS[ix % len(KINDS)]} {CATEGORIES[c]} {ix + 1}" for ix, c in enumerate(self._category)],
                "category": [CATEGORIES[c] for c in self._category],
                "price": self._price,
                "duration": self._duration,
            }
        )
        return frame.filter(pl.Series(self.on_sale(START + self.days * DAY if now is None else now)))

    def users(self, now: int | None = None) -> pl.DataFrame:
        """Return the users who have arrived (default: by the last day): user_id, age."""
        frame = pl.DataFrame({records.USER_ID: self.user_ids, "age": [AGES[age] for age in self._age]})
        return frame.filter(pl.Series(self._arrival <= (START + self.days * DAY if now is None else now)))

    def arrivals(self, first_day: float, last_day: float) -> tuple[list[JsonTree], list[JsonTree]]:
        """Return new items and users of these days as rows for ``POST``."""
        low, high = START + int(first_day * DAY), START + int(last_day * DAY)
        bodies = []
        for key, ids, frame, stamps in (
            (records.ITEM_ID, self.item_ids, self.items, self._launch),
            (records.USER_ID, self.user_ids, self.users, self._arrival),
        ):
            new = {ids[ix] for ix in np.flatnonzero((stamps > low) & (stamps <= high))}
            rows = frame().filter(pl.col(key).is_in(new)).iter_rows(named=True)
            bodies.append([{key: row.pop(key), "attributes": row} for row in rows])
        return bodies[0], bodies[1]

    def write(self, folder: Path | str, days: float | None = None) -> Path:
        """Write the first days as a project and return the folder.

        Files: events.csv, items.csv, users.csv, recloop.toml.
        """
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        now = START + int((self.days if days is None else days) * DAY)
        self.events(days).write_csv(root / "events.csv")
        self.items(now).write_csv(root / "items.csv")
        self.users(now).write_csv(root / "users.csv")
        (root / "recloop.toml").write_text(PROJECT, "utf-8")
        return root


def _arrivals(draw: np.random.Generator, size: int, late: float, days: int) -> np.ndarray:
    """Draw arrival stamps (size,) int64; a share ``late`` is after a third of days."""
    stamps = np.full(size, START, dtype=np.int64)
    chosen = draw.choice(size, int(late * size), replace=False)
    stamps[chosen] = START + (draw.uniform(1 / 3, 1.0, len(chosen)) * days * DAY).astype(np.int64)
    return stamps


def _looked(slots: int) -> np.ndarray:
    """Return the probability (slots,) that each slot is examined."""
    chance: np.ndarray = (np.arange(slots) + 1.0) ** -EXAMINED
    return chance


def _sigmoid(x: np.ndarray) -> np.ndarray:
    value: np.ndarray = 1 / (1 + np.exp(-x))
    return value
