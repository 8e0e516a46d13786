"""Print CPU microseconds per row of each step of posted events, without network.

    .venv/bin/python benchmarks/profile_events.py PROJECT                             # 8 senders, bodies of 100 rows
    .venv/bin/python benchmarks/profile_events.py PROJECT --rows-per-body 1 --senders 32

Service, event loop and writer's thread run in this process as in `recloop serve`; senders post bodies to the handler of the
route. Each step is timed alone, by the CPU time of its thread, without the steps inside it. ``loop`` and ``writer`` are the
whole of each thread. The project gets the rows: use a copy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import uvloop

from ingest import as_json, new_events
from recloop.ingest import parse, writer
from recloop.project import open_project
from recloop.serve import event_routes
from recloop.serve.event_routes import WriteRoutes
from recloop.serve.service import Service

ROUNDS: Final = 3


class Steps:
    """Exclusive CPU seconds of each step, by thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.n_commits = 0
        self._inner: dict[int, list[float]] = defaultdict(lambda: [0.0])

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a block."""
        inner = self._inner[threading.get_ident()]
        inner.append(0.0)
        begin = time.thread_time()
        try:
            yield
        finally:
            whole = time.thread_time() - begin
            self.seconds[name] += whole - inner.pop()
            inner[-1] += whole

    def wrap(self, owner: Any, attribute: str, name: str) -> None:
        """Time an attribute of a module or object; a missing one is left out."""
        function: Callable[..., Any] | None = getattr(owner, attribute, None)
        if function is None:
            return

        def timed(*words: Any, **named: Any) -> Any:
            with self.step(name):
                return function(*words, **named)

        setattr(owner, attribute, timed)


def install(steps: Steps, service: Service) -> None:
    """Time the steps of this service."""
    steps.wrap(parse, "parse_events", "loop: decode and check")
    steps.wrap(event_routes, "event_results", "loop: response")
    steps.wrap(event_routes, "events_reply", "loop: response")
    service.writer._after_commit = service._after_commit
    steps.wrap(service.writer, "_after_commit", "loop: apply to states")
    steps.wrap(service.writer, "_append", "writer: rest of the commit")
    steps.wrap(writer, "event_ids", "writer: event_ids")
    steps.wrap(writer.EventColumns, "of_rows", "writer: columns")
    rules = service.writer._rules
    steps.wrap(service.log, "find_duplicates", "writer: repeats")
    steps.wrap(service.archive, "known", "writer: archived repeats")
    steps.wrap(service.log, "count_recent", "writer: earlier rows of the burst rule")
    steps.wrap(service.log, "recent", "writer: earlier rows of the burst rule")
    steps.wrap(rules, "_windows", "writer: windows of the burst rule")
    steps.wrap(rules, "judge", "writer: other rules")
    steps.wrap(service.log, "insert_events", "writer: insert")
    steps.wrap(service.writer, "_label", "writer: labels")
    commit = service.log.commit

    @contextmanager
    def timed_commit() -> Iterator[Any]:
        context = commit()
        connection = context.__enter__()
        try:
            yield connection
        except BaseException:
            if not context.__exit__(*sys.exc_info()):
                raise
        else:
            steps.n_commits += 1
            with steps.step("writer: begin and commit"):
                context.__exit__(None, None, None)

    service.log.commit = timed_commit  # type: ignore[method-assign]


async def send(routes: WriteRoutes, bodies: list[bytes]) -> None:
    """Post the waiting bodies one after the other."""
    while bodies:
        reply = await routes.events_reply(bodies.pop(), "application/json", None)
        if reply.status != 200:
            raise SystemExit(reply.body.decode())


async def post(routes: WriteRoutes, bodies: list[bytes], senders: int) -> tuple[float, float]:
    """Wall seconds, and CPU seconds of the loop's thread."""
    began, cpu = time.perf_counter(), time.thread_time()
    await asyncio.gather(*(send(routes, bodies) for _ in range(senders)))
    return time.perf_counter() - began, time.thread_time() - cpu


def bodies_of(rows: int, rows_per_body: int) -> list[bytes]:
    """Bodies as a shop posts them."""
    bodies = []
    for _ in range(0, rows, rows_per_body):
        events = [as_json(event) for event in new_events(rows_per_body)]
        bodies.append(json.dumps(events if rows_per_body > 1 else events[0]).encode())
    return bodies


def measure(root: Path, rows: int, rows_per_body: int, senders: int) -> dict[str, float]:
    """Microseconds per row of each step: the round with the least CPU time."""
    service = Service(open_project(root))
    steps = Steps()
    install(steps, service)
    routes = WriteRoutes(service)
    best: dict[str, float] = {}
    try:
        for _ in range(ROUNDS):
            bodies = bodies_of(rows, rows_per_body)
            steps.seconds.clear()
            steps.n_commits = 0
            cpu = time.process_time()
            wall, loop = uvloop.run(post(routes, bodies, senders))
            cpu = time.process_time() - cpu
            tree = {name: 1e6 * seconds / rows for name, seconds in sorted(steps.seconds.items())}
            tree |= {"loop": 1e6 * loop / rows, "process": 1e6 * cpu / rows, "wall": 1e6 * wall / rows}
            tree["rows per commit"] = rows / steps.n_commits
            if not best or tree["process"] < best["process"]:
                best = tree
    finally:
        service.close()
    return best


def main() -> None:
    """Post the rows and print the table."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("project", type=Path)
    words.add_argument("--rows", type=int, default=10_000)
    words.add_argument("--rows-per-body", type=int, default=100)
    words.add_argument("--senders", type=int, default=8)
    asked = words.parse_args()
    table = measure(asked.project, asked.rows, asked.rows_per_body, asked.senders)
    sys.stdout.write("| step | us per row |\n| --- | ---: |\n")
    sys.stdout.write("".join(f"| {name} | {value:.1f} |\n" for name, value in table.items()))


if __name__ == "__main__":
    main()
