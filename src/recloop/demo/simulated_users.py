"""Simulated users as clients of the service: arrive, request, respond."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from recloop.files import JsonTree
from recloop.ingest.client import Client
from recloop.records import DAY, SECOND, hash_unit_interval
from recloop.simulation.browsing import BrowsingSimulator
from recloop.simulation.shop import START

LANES: Final = 3
"""Concurrent lanes; a user stays in one lane, so requests follow the user's earlier responses."""
STEP: Final = 0.25
"""Days between posts of newly arrived users and items."""
LATER: Final = 300 * SECOND
"""Delay after a list until the user searches for items outside it."""


@dataclass
class SimulationTotals:
    """Result of some days: visits, rows by event type, arrivals, true list quality.

    Attributes:
        after_dislike: Lists for users with dislikes; ``shown_again``: disliked items in them.
        newcomers: Slots by source of the first lists of newly arrived users.
        clicks, hits: Sums over visits of each list's expected outcome (`BrowsingSimulator.expected`).
    """

    visits: int = 0
    rows: Counter[str] = field(default_factory=Counter)
    new_items: int = 0
    new_users: int = 0
    after_dislike: int = 0
    shown_again: int = 0
    newcomers: Counter[str] = field(default_factory=Counter)
    clicks: float = 0.0
    hits: float = 0.0
    seconds: float = 0.0

    def add(self, other: SimulationTotals) -> None:
        """Add the result of other days or of another lane."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


class SimulatedUsers:
    """All users of a world as clients of a running service.

    Args:
        url: URL of the service, which reads the time from its requests.
    """

    def __init__(self, world: BrowsingSimulator, url: str) -> None:
        self._world = world
        self._clients = [Client(url) for _ in range(LANES)]
        self._shown: dict[str, set[str]] = {}
        self._disliked: dict[str, set[str]] = {}
        self._new: set[str] = set()

    def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            client.close()

    def live(self, first: float, last: float) -> SimulationTotals:
        """Simulate the days from ``first`` to ``last``, counted from the world's start."""
        done, begin = SimulationTotals(), time.monotonic()
        visits = list(self._world.visits(first, last))
        borders = np.arange(first, last, STEP).tolist()
        with ThreadPoolExecutor(LANES) as pool:
            for low, high in zip(borders, [*borders[1:], last], strict=True):
                lanes: list[list[tuple[int, str]]] = [[] for _ in range(LANES)]
                while visits and visits[0][0] < START + high * DAY:
                    now, user_id = visits.pop(0)
                    lanes[int(hash_unit_interval("lane", user_id) * LANES)].append((now, user_id))
                for part in pool.map(self._browse, self._clients, lanes):
                    done.add(part)
                self._arrive(low, high, done)
        done.seconds = time.monotonic() - begin
        return done

    def _arrive(self, low: float, high: float, done: SimulationTotals) -> None:
        """Post the users and items that have arrived."""
        items, users = self._world.arrivals(low, high)
        client = self._clients[0]
        client.now = START + int(high * DAY)
        for path, bodies in (("/v1/items", items), ("/v1/users", users)):
            if bodies:
                client.post(path, bodies)
        self._new.update(body["user_id"] for body in users)
        done.new_items += len(items)
        done.new_users += len(users)

    def _browse(self, client: Client, visits: Sequence[tuple[int, str]]) -> SimulationTotals:
        """Run the visits of one lane in sequence."""
        done = SimulationTotals(visits=len(visits))
        for now, user_id in visits:
            client.now = now
            answer = client.recommend(user_id)
            items = [slot["item_id"] for slot in answer["items"]]
            self._look(user_id, answer["items"], done)
            for name, value in self._world.expected(user_id, items, now).items():
                if name != "purchase":
                    setattr(done, f"{name}s", getattr(done, f"{name}s") + value)
            rows = self._world.respond(user_id, items, now, answer["request_id"])
            disliked = self._disliked.setdefault(user_id, set())
            disliked.update(row["item_id"] for row in rows if row["event_type"] == "dislike")
            seen = self._shown.setdefault(user_id, set())
            seen.update(items)
            rows += self._search(user_id, now + LATER, f"s-{user_id}-{now}", seen)
            client.now = now + 2 * LATER
            client.post("/v1/events", rows)
            done.rows.update(row["event_type"] for row in rows)
        return done

    def _look(self, user_id: str, slots: Sequence[JsonTree], done: SimulationTotals) -> None:
        """Count disliked items in the list and the sources of a newcomer's first list."""
        disliked = self._disliked.get(user_id)
        if disliked:
            done.after_dislike += 1
            done.shown_again += sum(slot["item_id"] in disliked for slot in slots)
        if user_id in self._new and user_id not in self._shown:
            done.newcomers.update(slot["source"] for slot in slots)

    def _search(self, user_id: str, now: int, name: str, seen: set[str]) -> list[JsonTree]:
        """Post items that a user finds without a list; no list is credited for them."""
        rows = self._world.search(user_id, now, name, seen)
        return [{key: value for key, value in row.items() if key != "request_id"} for row in rows]
