"""Replay held-out days over HTTP: request a list, then post the basket.

The import ends at the start of the future. Each later basket is preceded by a request, and its rows carry the
``request_id`` of that list. ``now`` is the replay's clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import polars as pl

from recloop.files import JsonTree
from recloop.ingest.client import Client, iso
from recloop.records import DAY, GROUP_ID, ITEM_ID, QUANTITY, TIMESTAMP, USER_ID, VALUE

BEFORE = 1_000_000
"""Microseconds between a household's request and its basket."""


@dataclass
class Replayed:
    """Result of some days: requested, posted and skipped baskets, rows."""

    baskets: int = 0
    rows: int = 0
    hits: int = 0
    left_out: int = 0
    seconds: float = 0.0
    models: dict[str, int] = field(default_factory=dict)  # answers by bundle

    @property
    def hit_rate(self) -> float:
        """Return the share of baskets with an item of the list requested just before."""
        return self.hits / self.baskets if self.baskets else float("nan")


@dataclass(frozen=True)
class Basket:
    """One basket of the future with its rows to post."""

    user_id: str
    stamp: int
    group_id: str
    rows: list[JsonTree]


def baskets(future: pl.DataFrame, first: int, days: float) -> Iterator[Basket]:
    """Return the baskets of ``days`` from ``first`` (int64 microseconds) on, by time.

    Args:
        future: user_id, item_id, timestamp, group_id, quantity, value of the held-out rows.
    """
    inside = _within(future, first, days).sort(TIMESTAMP, GROUP_ID, maintain_order=True)
    for (group_id,), rows in inside.group_by(GROUP_ID, maintain_order=True):
        stamp = int(rows[TIMESTAMP][0])
        user_id = str(rows[USER_ID][0])
        posted = [
            {
                "user_id": user_id, "item_id": item, "event_type": "interaction", "timestamp": iso(stamp),
                "group_id": group_id, "quantity": quantity, "value": value, "event_id": f"{group_id}-{number}",
            }
            for number, (item, quantity, value) in enumerate(rows.select(ITEM_ID, QUANTITY, VALUE).iter_rows())
        ]  # fmt: skip
        yield Basket(user_id, stamp, str(group_id), posted)


def replay(
    client: Client,
    future: pl.DataFrame,
    first: int,
    days: float,
    seconds: float,
    bar: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Replay some days within ``seconds`` of wall time.

    Baskets beyond the limit are posted without a request, a thousand rows at a time, and counted. So every user's state
    is the same as if all had made requests.

    Args:
        bar: Callback with the numbers of finished and of all baskets.
    """
    done, begin = Replayed(), time.monotonic()
    waiting: list[JsonTree] = []
    total = int(_within(future, first, days)[GROUP_ID].n_unique())
    for number, basket in enumerate(baskets(future, first, days), start=1):
        if bar is not None:
            bar(number, total)
        if time.monotonic() - begin > seconds:
            done.left_out += 1
            waiting += basket.rows
            if len(waiting) > 900:
                done.rows += _post(client, waiting[:1000], basket.stamp)
                waiting = waiting[1000:]
            continue
        client.now = basket.stamp - BEFORE
        answer = client.recommend(basket.user_id)
        shown = {slot["item_id"] for slot in answer["items"]}
        done.models[answer["model_version"]] = done.models.get(answer["model_version"], 0) + 1
        done.hits += bool(shown & {row["item_id"] for row in basket.rows})
        rows = [{**row, "request_id": answer["request_id"]} for row in basket.rows]
        done.rows += sum(_post(client, rows[n : n + 1000], basket.stamp) for n in range(0, len(rows), 1000))
        done.baskets += 1
    for start in range(0, len(waiting), 1000):
        done.rows += _post(client, waiting[start : start + 1000], first + int(days * DAY))
    done.seconds = time.monotonic() - begin
    return done


def _within(future: pl.DataFrame, first: int, days: float) -> pl.DataFrame:
    return future.filter((pl.col(TIMESTAMP) >= first) & (pl.col(TIMESTAMP) < first + int(days * DAY)))


def _post(client: Client, rows: list[JsonTree], now: int) -> int:
    client.now = now
    return int(client.post("/v1/events", rows)["accepted"])
