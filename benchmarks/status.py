"""Measure the cost of decisions: writing, counting, and `/metrics` over a large decision log.

    .venv/bin/python benchmarks/status.py                        # 10,000, 100,000 and 1,000,000 decisions
    .venv/bin/python benchmarks/status.py --sizes 1000000        # the rows of other sizes are kept

The decisions are spread over a week: two variants, two placements, lists of ten items of 60,000 with a Zipf popularity.
Before each reading of the metrics some new answers are counted, as between two scrapes of a busy service.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from provenance import git
from quality import RESULTS

from recloop import loop
from recloop.monitoring import summary
from recloop.monitoring.exposition import exposition
from recloop.monitoring.summary import HealthCache
from recloop.project import open_project
from recloop.records import DAY, SOURCES, Decision
from recloop.simulation.shop import SimulatedShop
from recloop.storage import decision_counts

FILE: Final = RESULTS / "status.json"
NOW: Final = 1_752_000_000_000_000
ITEMS: Final = 60_000
USERS: Final = 100_000
BATCH: Final = 50_000
REPEATS: Final = 20
COUNTED_ROWS: Final = 50_000
"""Answers counted per transaction while the log is filled; a service counts at most 2,000."""
NEW_ANSWERS: Final = 50
"""Answers between two readings."""


def decisions(n: int, bundle: str, seed: int = 0) -> Iterator[list[Decision]]:
    """Yield batches of decisions over the week before `NOW`, by time."""
    draw = np.random.default_rng(seed)
    ids = [f"item-{number}" for number in range(ITEMS)]
    sources = [[SOURCES[number] for number in draw.integers(0, len(SOURCES), 10)] for _ in range(100)]
    for start in range(0, n, BATCH):
        size = min(BATCH, n - start)
        items = np.minimum(draw.zipf(1.3, (size, 10)) - 1 + draw.integers(0, 2_000, (size, 10)), ITEMS - 1)
        users = draw.integers(0, USERS, size)
        latency = draw.lognormal(6, 0.5, size)
        yield [
            Decision(
                request_id=f"r{start + row}", role="answer", user_id=f"u{users[row]}",
                served_at=NOW - 7 * DAY + (start + row) * 7 * DAY // n, as_of_seq=1, bundle=bundle, generation=1,
                variant=("live", "candidate")[row % 2], placement=("home", "cart")[row % 3 == 0], n=10, query={},
                items=[ids[item] for item in items[row]], scores=[0.5] * 10, sources=sources[row % 100],
                positives=int(users[row] % 20), inputs={"state": "0123abcd"}, latency_us=int(latency[row]),
            )
            for row in range(size)
        ]  # fmt: skip


def measure(n: int, folder: Path) -> dict[str, Any]:
    """Write ``n`` decisions and read the metrics."""
    project = open_project(SimulatedShop(seed=0, users=60, items=40).write(folder), ['model.name="popular"'])
    bundle = loop.first_run(project).bundle
    store = project.open_decisions(write=True)
    seconds = 0.0
    for batch in decisions(n, bundle.id):
        started = time.process_time()
        store.put_many(batch)
        store.flush(600)
        seconds += time.process_time() - started
    summary.CACHE_SECONDS = 0.0  # type: ignore[misc]
    cache = HealthCache(project, store)
    times, cpu_times = [], []
    for repeat in range(REPEATS):
        store.put_many(_new_answers(bundle.id, repeat))
        store.flush(600)
        started, cpu_started = time.perf_counter(), time.process_time()
        text = exposition(cache.get(bundle, NOW), {})
        times.append(1e3 * (time.perf_counter() - started))
        cpu_times.append(1e3 * (time.process_time() - cpu_started))
    store.close()
    counts = {"periods", "item_codes", "last_seen", "users_by_period", "events_by_period"}
    return {
        "decisions": n,
        "write_and_count_us": round(1e6 * seconds / n, 1),
        "first_metrics_ms": round(times[0], 1),
        "metrics_ms": round(float(np.median(times[1:])), 1),
        "metrics_min_ms": round(min(times), 1),
        "metrics_cpu_ms": round(float(np.median(cpu_times[1:])), 1),
        "metrics_bytes": len(text),
        "mb": round((project.root / "store" / "decisions.db").stat().st_size / 1e6, 1),
        "mb_of_counts": round(_size(project.root / "store" / "decisions.db", counts) / 1e6, 1),
    }


def _new_answers(bundle: str, repeat: int) -> list[Decision]:
    """Answers of the last second before `NOW`."""
    answers = next(decisions(NEW_ANSWERS, bundle, seed=1 + repeat))
    return [
        msgspec.structs.replace(answer, request_id=f"new{repeat}-{row}", served_at=NOW - row)
        for row, answer in enumerate(answers)
    ]


def _size(file: Path, tables: set[str]) -> int:
    import sqlite3

    connection = sqlite3.connect(file)
    try:
        rows = connection.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name")
        return sum(size for name, size in rows if name.removeprefix("sqlite_autoindex_").rstrip("_1") in tables)
    except sqlite3.OperationalError:  # built without dbstat
        return sum(len(row[0]) for row in connection.execute("SELECT content FROM periods"))
    finally:
        connection.close()


def main() -> None:
    """Print one line per size and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--results", type=Path, default=FILE)
    options = parser.parse_args()
    rows = json.loads(options.results.read_text())["rows"] if options.results.exists() else []
    rows = [row for row in rows if row["decisions"] not in options.sizes]
    decision_counts.MAX_COUNTED_ROWS = COUNTED_ROWS
    for n in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(n, Path(folder) / "shop"))
        sys.stdout.write(f"{rows[-1]}\n")
    tree = {
        "command": "python benchmarks/status.py",
        "commit": git("rev-parse", "HEAD"),
        "cores": os.cpu_count(),
        "rows": sorted(rows, key=lambda row: row["decisions"]),
    }
    options.results.write_text(json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
