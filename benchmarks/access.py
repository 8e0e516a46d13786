"""Measure what keys and limits cost: lists and posted events per second with them, and without.

    python benchmarks/access.py
    python benchmarks/access.py --size complete-journey --rounds 5

Two services answer copies of one project. `open` has no key and no rate. `guarded` checks an API key on each request, counts
it against the rate of the key, and against that of its client, which it reads behind a trusted proxy. The limits of bodies,
heads and queues are on in both: they cannot be switched off. The audit log has a row for each change, none for a list or an event.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import load
import servers
from provenance import provenance
from quality import PROJECTS, RESULTS

import serve
from recloop.project import open_project
from recloop.storage import api_keys

RATE: Final = 1_000_000.0
"""Requests per second that are never reached, so that each is counted and none refused."""
BATCH_ROWS: Final = 100
SENDERS: Final = 8
SIDES: Final = ("open", "guarded")
NUMBERS: Final = itertools.count()


@dataclass
class Service:
    """A running service, and the headers that its requests need."""

    side: servers.Side
    headers: str


def main() -> None:
    """Measure, write the result file and print the ratios."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--size", default="3700", help="items, or complete-journey")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--seconds", type=float, default=5.0, help="length of one load")
    words.add_argument("--results", type=Path, default=RESULTS)
    words.add_argument("--projects", type=Path, default=PROJECTS)
    given = words.parse_args()
    asked = serve.Asked((given.size,), None, given.rounds, given.seconds, False, given.results, given.projects)
    result = {"size": given.size, **provenance(), "seed": serve.SEED, **measure(asked, given.size)}
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "access.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    for name, found in result["rates"].items():
        sys.stdout.write(f"{name}: {found}\n")


def measure(asked: serve.Asked, size: str) -> dict[str, Any]:
    """Measure both sides in turn, once more than the rounds: the first one warms up."""
    project = serve.build(asked, size, None)
    with_filter, values = serve.filters(project, size)
    users = serve.users_of(project)
    items = open_project(project).load_bundle().items.ids.ids[1:]
    rates: dict[str, dict[str, list[float]]] = {name: {side: [] for side in SIDES} for name in ("lists", "events")}
    with ExitStack() as stack:
        folders = {side: Path(stack.enter_context(tempfile.TemporaryDirectory())) / "shop" for side in SIDES}
        services = {}
        for side, folder in folders.items():
            shutil.copytree(project, folder)
            headers = guard(folder) if side == "guarded" else ""
            services[side] = Service(
                stack.enter_context(servers.recloop_server(folder, "kept", None, with_filter)), headers
            )
        for number in range(-1, asked.rounds):
            for name, side in itertools.product(rates, SIDES):
                service = services[side]
                requests = (
                    serve.lists(service.side, users, values, number) if name == "lists" else batches(users, items)
                )
                stream = load.Stream(map(adding(service.headers), requests))
                stream.connections = SENDERS if name == "events" else load.CONNECTIONS
                serve.send(service.side.port, [stream], asked.seconds)
                rows = BATCH_ROWS if name == "events" else 1
                rates[name][side] += [stream.per_second * rows] if number >= 0 else []
    return {"rates": {name: compared(found) for name, found in rates.items()}}


def guard(folder: Path) -> str:
    """Give a project a key and rates; return the headers of its requests."""
    file = folder / "recloop.toml"
    text = file.read_text("utf-8")
    table = "" if re.findall(r"(?m)^\[.*\]$", text)[-1:] == ["[serve]"] else "[serve]\n"
    settings = f'{table}trusted_proxies = ["127.0.0.1"]\n[serve.limits]\nclient_rate = {RATE}\n'
    file.write_text(f"{text}\n{settings}", "utf-8")
    _, secret = api_keys.add(folder, open_project(folder).open_control(), "bench", ["read", "ingest"], rate=RATE)
    return f"Authorization: Bearer {secret}\r\nX-Forwarded-For: 198.51.100.7\r\n"


def adding(headers: str) -> Callable[[bytes], bytes]:
    """Return a function that adds headers to a request."""
    return lambda request: request.replace(b"\r\n", b"\r\n" + headers.encode(), 1)


def batches(users: list[str], items: Any) -> Iterator[bytes]:
    """Posts of new events."""
    while True:
        numbers = [next(NUMBERS) for _ in range(BATCH_ROWS)]
        rows = [
            {
                "user_id": users[n % len(users)],
                "item_id": items[n % len(items)],
                "event_id": f"e{n}",
                "event_type": "view",
            }
            for n in numbers
        ]
        yield load.post("/v1/events", json.dumps(rows).encode())


def compared(found: dict[str, list[float]]) -> dict[str, Any]:
    """Medians of both sides, and the ratio of each round."""
    ratios = [guarded / free for free, guarded in zip(*(found[side] for side in SIDES), strict=True)]
    medians = {side: round(statistics.median(found[side]), 1) for side in SIDES}
    return {**medians, "ratio": round(statistics.median(ratios), 3), "ratios": [round(one, 3) for one in ratios]}


if __name__ == "__main__":
    main()
