"""Measure durable events per second over HTTP beside bare SQLite inserts.

    python benchmarks/ingest.py                        # the simulated shop, five rounds
    python benchmarks/ingest.py --project DIR --rounds 9
    python benchmarks/ingest.py --store postgresql://USER@HOST/EMPTY-DATABASE --result ingest-postgresql.json

Each round runs six jobs, one after the other, with new event_ids:

    executemany   one connection, one transaction of 100 rows per fsync, table and both indexes of log.db
    one_index     the same with the unique index of event_ids alone
    no_nulls      the same as executemany without the columns that are null in all rows, as recloop inserts them
    batches       8 senders post bodies of 100 rows to `recloop serve`
    fsync         one connection, one row per fsync
    singles       32 senders post one row each

A sender waits for its answer before it posts again, and an answer means that the rows are on disk. The server runs on the
first core, the senders and bare SQLite on the second one. The result has the median of each job, and the median over the
rounds of the ratios of batches to each of the first three (goal 0.6 of executemany) and of singles to fsync (goal 10).

With ``--store``, each round posts batches to two services in turn, one with log.db and one with the log at this address.
The result has the rows per second and the CPU milliseconds per 1,000 rows of the service, and of all processes named
``postgres``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import random
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import processes
import uvloop
from provenance import git
from quality import RESULTS

from recloop import loop
from recloop.config.store_address import without_password
from recloop.ingest.client import iso, serving
from recloop.project import open_project
from recloop.records import Event, now
from recloop.simulation.shop import SimulatedShop
from recloop.storage import open_log
from recloop.storage.event_rows import EVENT_COLUMNS, number_new, with_values
from recloop.storage.event_schema import PRAGMAS, SCRIPT
from recloop.storage.sqlite import SqliteConnection

BATCH_ROWS: Final = 100
BATCH_SENDERS: Final = 8
SINGLE_SENDERS: Final = 32
N_USERS: Final = 100_000
N_ITEMS: Final = 50_000
NUMBERS: Final = itertools.count()
COUNTS: Final = (
    '\n[model]\nname = "covisitation"\n[placement.home]\nweights = { history = 1, neighbours = 0.5, popular = 0.25 }\n'
)


def new_events(count: int) -> list[Event]:
    """Random events with new event_ids, one per user and moment."""
    stamp = now()
    return [
        Event(
            event_id=f"{random.getrandbits(96):024x}", user_id=f"user-{random.randrange(N_USERS)}",
            item_id=f"item-{random.randrange(N_ITEMS)}", event_type="view", timestamp=stamp, received_at=stamp,
            session_id=f"session-{next(NUMBERS)}",
        )
        for _ in range(count)
    ]  # fmt: skip


def as_json(event: Event) -> dict[str, str]:
    """Row as a shop posts it."""
    names = ("event_id", "user_id", "item_id", "event_type", "session_id")
    return {**{name: getattr(event, name) for name in names}, "timestamp": iso(event.timestamp)}


def insert(file: Path, rows: int, rows_per_commit: int, has_user_index: bool = True, has_nulls: bool = True) -> float:
    """Rows per second of bare inserts into a copy of the log's table with its indexes.

    Args:
        has_user_index: False: the unique index of event_ids alone.
        has_nulls: False: leave out the columns that are null in all rows.
    """
    connection = sqlite3.connect(file, isolation_level=None, factory=SqliteConnection)
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    if not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        for statement in SCRIPT.split(";"):
            if " events " in statement and (has_user_index or "(user_id" not in statement):
                connection.execute(statement)
    first = connection.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0]
    values = [(*row, None) for row in number_new(new_events(rows), {}, first).rows]
    names = EVENT_COLUMNS
    if not has_nulls:
        columns = with_values(dict(zip(EVENT_COLUMNS, zip(*values, strict=True), strict=True)))
        names, values = tuple(columns), list(zip(*columns.values(), strict=True))
    started = time.perf_counter()
    for start in range(0, rows, rows_per_commit):
        connection.execute("BEGIN IMMEDIATE")
        connection.insert("events", names, values[start : start + rows_per_commit])
        connection.execute("COMMIT")
    seconds = time.perf_counter() - started
    connection.close()
    return rows / seconds


def requests(rows: int, rows_per_body: int, host: str) -> Iterator[bytes]:
    """Yield complete HTTP requests."""
    for _ in range(0, rows, rows_per_body):
        events = [as_json(event) for event in new_events(rows_per_body)]
        body = json.dumps(events if rows_per_body > 1 else events[0]).encode()
        head = f"POST /v1/events HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        yield f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


async def send(host: str, port: int, waiting: list[bytes]) -> None:
    """Post the waiting requests over one connection until none is left."""
    reader, writer = await asyncio.open_connection(host, port)
    while waiting:
        writer.write(waiting.pop())
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(head.decode())
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
    writer.close()


def post(url: str, rows: int, rows_per_body: int, senders: int) -> float:
    """Rows per second of concurrent senders."""
    address = urllib.parse.urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    host, port = address.hostname, address.port
    waiting = list(requests(rows, rows_per_body, address.netloc))

    async def all_senders() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(send(host, port, waiting) for _ in range(senders)))
        return rows / (time.perf_counter() - started)

    return uvloop.run(all_senders())


def pinned() -> tuple[str, ...]:
    """Command prefix that keeps the server on the first core; the senders use the second one."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2 or not shutil.which("taskset"):
        return ()
    os.sched_setaffinity(0, {cores[1]})
    return ("taskset", "-c", str(cores[0]))


def simulated(folder: Path) -> Path:
    """Project of the simulated shop after its first run."""
    root = SimulatedShop(seed=0).write(folder / "shop")
    with (root / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write(COUNTS)
    loop.first_run(open_project(root))
    return root


def measure(root: Path, rounds: int, batch_rows: int, single_rows: int) -> dict[str, list[float]]:
    """Rows per second of each job in each round."""
    rates: dict[str, list[float]] = {}
    prefix = pinned()
    command = (*prefix, sys.executable, "-m", "recloop", "-C", str(root), "serve", "--port", "0")
    files = {name: root / "store" / f"{name}.db" for name in ("executemany", "one_index", "no_nulls")}
    with open_log("sqlite:///store/log.db", root) as log:
        already = log.last_seq()
    with serving(root, command) as client:
        jobs: dict[str, Callable[[], float]] = {
            "executemany": lambda: insert(files["executemany"], batch_rows, BATCH_ROWS),
            "one_index": lambda: insert(files["one_index"], batch_rows, BATCH_ROWS, has_user_index=False),
            "no_nulls": lambda: insert(files["no_nulls"], batch_rows, BATCH_ROWS, has_nulls=False),
            "batches": lambda: post(client.url, batch_rows, BATCH_ROWS, BATCH_SENDERS),
            "fsync": lambda: insert(files["executemany"], max(single_rows // 10, 10), 1),
            "singles": lambda: post(client.url, single_rows, 1, SINGLE_SENDERS),
        }
        for _ in range(rounds):
            for name, job in jobs.items():
                rates.setdefault(name, []).append(round(job()))
    with open_log("sqlite:///store/log.db", root) as log:
        stored = log.last_seq() - max(already, open_project(root).open_archive().watermark)
    assert stored == rounds * (batch_rows + single_rows), f"{stored} rows are stored"
    return rates


def compare(root: Path, address: str, rounds: int, batch_rows: int) -> dict[str, dict[str, list[float]]]:
    """Rows per second and CPU milliseconds per 1,000 rows of a service with log.db and with another log."""
    other = Path(shutil.copytree(root, root.with_name("other")))
    results: dict[str, dict[str, list[float]]] = {}
    prefix = pinned()
    base = (*prefix, sys.executable, "-m", "recloop", "-C")
    with ExitStack() as stack:
        clients = {}
        for name, folder, sets in (("log.db", root, ()), ("postgresql", other, ("--set", f"stores.log={address}"))):
            client = stack.enter_context(serving(folder, (*base, str(folder), *sets, "serve", "--port", "0")))
            clients[name] = (client.url, json.loads((folder / "store" / "writer.lock").read_text())["pid"])
        for number in range(rounds):
            for name in [*clients][:: 1 if number % 2 else -1]:
                url, process = clients[name]
                before = processes.cpu_seconds(process), server_cpu_seconds()
                rate = post(url, batch_rows, BATCH_ROWS, BATCH_SENDERS)
                after = processes.cpu_seconds(process), server_cpu_seconds()
                service, server = (1e6 * (end - begin) / batch_rows for begin, end in zip(before, after, strict=True))
                measured = {"rows_per_second": rate, "service_cpu_ms": service, "server_cpu_ms": server}
                for key, value in measured.items():
                    results.setdefault(name, {}).setdefault(key, []).append(round(value, 1))
    return results


def server_cpu_seconds() -> float:
    """CPU seconds of all processes named ``postgres`` on this machine."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text("utf-8").strip() == "postgres":
                total += processes.cpu_seconds(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def compare_stores(given: argparse.Namespace, folder: Path) -> None:
    """Run `compare`, print the medians and write the result file."""
    results = compare(given.project or simulated(folder), given.store, given.rounds, given.batch_rows)
    medians = {
        name: {key: statistics.median(values) for key, values in found.items()} for name, found in results.items()
    }
    command = ["python", "benchmarks/ingest.py", *sys.argv[1:]]
    result = {
        "command": " ".join(command).replace(given.store, without_password(given.store)),
        "commit": git("rev-parse", "--short", "HEAD"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}",
        "medians": medians,
        "rounds": results,
    }
    given.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(medians, indent=2) + "\n")


def ratio(rates: dict[str, list[float]], job: str, base: str) -> float:
    """Median over the rounds of the rate of a job by that of another."""
    return round(statistics.median(rate / other for rate, other in zip(rates[job], rates[base], strict=True)), 2)


def main() -> None:
    """Run the rounds, print the medians and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, help="a project with a live bundle; its log gets the rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-rows", type=int, default=20_000, help="rows per round in bodies of 100")
    parser.add_argument("--single-rows", type=int, default=4_000, help="rows per round in bodies of one")
    parser.add_argument("--result", type=Path, default=RESULTS / "ingest.json")
    parser.add_argument("--store", help="address of an empty database, whose log is compared with log.db")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=RESULTS.parent) as folder:
        if given.store:
            compare_stores(given, Path(folder))
            return
        root = given.project or simulated(Path(folder))
        rates = measure(root, given.rounds, given.batch_rows, given.single_rows)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    result = {
        "command": " ".join(["python", "benchmarks/ingest.py", *sys.argv[1:]]),
        "commit": git("rev-parse", "--short", "HEAD"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, load {os.getloadavg()[0]:.0f}",
        "rows_per_second": medians,
        "rounds": rates,
        "batches / executemany": ratio(rates, "batches", "executemany"),
        "batches / one_index": ratio(rates, "batches", "one_index"),
        "batches / no_nulls": ratio(rates, "batches", "no_nulls"),
        "singles / fsync": ratio(rates, "singles", "fsync"),
    }
    given.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps({name: result[name] for name in list(result)[3:]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
