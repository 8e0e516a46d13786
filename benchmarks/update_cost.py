"""Compare the CPU time of updates with 1 % new rows with that of a first run.

    .venv/bin/python benchmarks/update_cost.py                          # 1,000,000 generated rows
    .venv/bin/python benchmarks/update_cost.py --rows 300000 --profile /tmp/update.prof
    .venv/bin/python benchmarks/update_cost.py --data complete-journey  # the data set of the demo

The newest ``--share`` of a log for each of ``--updates`` is held back. A project without a network runs its first run over
the other rows. Each part is then posted, and an update reads it. The first update also learns the test rows of the first
run, a tenth of the log; later ones learn their part alone. ``share`` is the CPU time of the last update divided by that of
the first run, both in this process; seconds of the wall clock are there for comparison. The gates accept everything,
so that they look at a sample of the moments only.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from provenance import git

from recloop import loop
from recloop.demo.grocery_days import as_rows
from recloop.demo.grocery_project import write_project
from recloop.pipeline import publish, training_steps, update_steps
from recloop.project import Project, open_project
from recloop.records import DAY, Event
from recloop.storage.event_log import EventLog

RESULTS: Final = Path(__file__).resolve().parent / "results"
SETTINGS: Final = (
    'model.name="covisitation"', "release.gates.max_ndcg_loss=99", "release.gates.max_slice_loss=99",
    "release.gates.max_latency_ratio=1e9", "release.gates.max_cold_coverage_loss=1", "update.input_check=false",
)  # fmt: skip
TOML: Final = """\
[data]
events = "events.parquet"
[clean]
burst = "off"
[train]
time_budget = "2m"
"""
DEFAULT_ROWS: Final = 1_000_000
ROWS_PER_USER: Final = 50
SESSION_ROWS: Final = 5
DAYS: Final = 365
STEPS: Final = (
    (loop, "collect"), (loop, "train"), (training_steps, "make_live"), (update_steps, "collect"), (update_steps, "check"),
    (update_steps, "train_candidate"), (update_steps, "run_gates"), (update_steps, "train_final"),
    (publish, "publish_update"), (loop, "apply_retention"),
)  # fmt: skip


@dataclass
class Stopwatch:
    """CPU seconds of the steps, in order."""

    steps: dict[str, float] = field(default_factory=dict)

    def watch(self, module: Any, name: str) -> None:
        """Replace a step by one that adds its CPU seconds."""
        step: Callable[..., Any] = getattr(module, name)

        def timed(*arguments: Any, **options: Any) -> Any:
            begin = time.process_time()
            try:
                return step(*arguments, **options)
            finally:
                self.steps[name] = round(self.steps.get(name, 0.0) + time.process_time() - begin, 3)

        setattr(module, name, timed)


def generated(rows: int, seed: int = 0) -> pl.DataFrame:
    """Purchases of a shop: sessions of five rows; half of the items are repeats of the user's own kind."""
    random = np.random.default_rng(seed)
    sessions, users = rows // SESSION_ROWS, max(1, rows // ROWS_PER_USER)
    items = max(100, rows // 50)
    user = np.minimum(users * random.random(sessions) ** 1.5, users - 1).astype(np.int64)
    start = np.sort(1_700_000_000_000_000 + (random.random(sessions) * DAYS * DAY).astype(np.int64))
    of_session = np.repeat(np.arange(sessions), SESSION_ROWS)
    popular = (items * random.random(len(of_session)) ** 3).astype(np.int64)
    own = (user[of_session] * 7_919 + random.integers(0, 20, len(of_session))) % items
    item = np.where(random.random(len(of_session)) < 0.5, own, popular)
    stamp = start[of_session] + np.tile(np.arange(SESSION_ROWS) * 2_000_000, sessions)
    frame = pl.DataFrame({"user_id": user[of_session], "item_id": item, "timestamp": stamp})
    frame = frame.with_columns(
        pl.format("u{}", "user_id").alias("user_id"),
        pl.format("i{}", "item_id").alias("item_id"),
        pl.lit("purchase").alias("event_type"),
    )
    return frame.sort("timestamp", maintain_order=True)


def shop(folder: Path, rows: int, share: float) -> pl.DataFrame:
    """Write a project over the older rows of a generated log; return the newer ones."""
    log = generated(rows)
    kept = round(len(log) * (1 - share))
    folder.mkdir(parents=True)
    log[:kept].write_parquet(folder / "events.parquet")
    (folder / "recloop.toml").write_text(TOML)
    return log[kept:]


def complete_journey(folder: Path, _rows: int, share: float) -> pl.DataFrame:
    """Write the project of the demo over the older days; return rows of the newer ones."""
    write_project(folder, max(1, round(365 * share)))
    return as_rows(pl.read_parquet(folder / "future.parquet"))


def post(log: EventLog, rows: pl.DataFrame, size: int = 5_000) -> None:
    """Write rows to log.db as the service does."""
    names = [name for name in Event.__struct_fields__ if name in rows.columns]
    for part in rows.select(names).iter_slices(size):
        log.append_events([Event(**{"received_at": row["timestamp"], **row}) for row in part.iter_rows(named=True)])


def cost(run: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """Run, and count its CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    return result, {
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "seconds": round(time.perf_counter() - wall, 2),
    }


def measured(project: Project, new_rows: pl.DataFrame, n_updates: int, profile: Path | None) -> dict[str, Any]:
    """Run the first run and the updates; return their costs."""
    originals = [(module, name, getattr(module, name)) for module, name in STEPS]

    def watched(run: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
        watch = Stopwatch()
        for module, name, step in originals:
            setattr(module, name, step)
            watch.watch(module, name)
        result, seconds = cost(run)
        return result, {**seconds, "steps": watch.steps}

    _, first = watched(lambda: loop.first_run(project))
    updates = []
    size = -(-len(new_rows) // n_updates)
    for part in new_rows.iter_slices(size):
        with project.open_log(write=True) as log:
            post(log, part)
        profiler = cProfile.Profile() if profile is not None and len(updates) == n_updates - 1 else None
        if profiler is not None:
            profiler.enable()
        result, update = watched(lambda: loop.update(project))
        if profiler is not None and profile is not None:
            profiler.disable()
            profiler.dump_stats(profile)
        share = round(update["cpu_seconds"] / first["cpu_seconds"], 4)
        updates.append({"share": share, "verdict": result.verdict, "new_rows": result.read, **update})
    for module, name, step in originals:
        setattr(module, name, step)
    last = updates[-1]
    return {
        **{name: last[name] for name in ("share", "verdict", "new_rows")},
        "first_run": first,
        "update": {name: last[name] for name in ("cpu_seconds", "seconds", "steps")},
        "updates": updates,
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measure one data set and print or write the result."""
    wanted = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    wanted.add_argument("--data", choices=("generated", "complete-journey"), default="generated")
    wanted.add_argument("--rows", type=int, default=DEFAULT_ROWS)
    wanted.add_argument("--share", type=float, default=0.01)
    wanted.add_argument("--updates", type=int, default=2)
    wanted.add_argument("--folder", type=Path)
    wanted.add_argument("--profile", type=Path)
    wanted.add_argument("--save", action="store_true", help="write benchmarks/results/update-cost-DATA[-ROWS].json")
    asked = wanted.parse_args()
    folder = asked.folder or Path(tempfile.mkdtemp(prefix="update-cost-")) / "shop"
    make = shop if asked.data == "generated" else complete_journey
    new_rows = make(folder, asked.rows, asked.share * asked.updates)
    tree = measured(open_project(folder, SETTINGS), new_rows, asked.updates, asked.profile)
    if asked.folder is None:
        shutil.rmtree(folder.parent)
    words = " ".join(["python", "benchmarks/update_cost.py", *sys.argv[1:]])
    tree = {"command": words, "commit": git("rev-parse", "HEAD"), "data": asked.data, **tree}
    if asked.save:
        size = "" if asked.data != "generated" or asked.rows == DEFAULT_ROWS else f"-{asked.rows}"
        (RESULTS / f"update-cost-{asked.data}{size}.json").write_text(json.dumps(tree, indent=1) + "\n")
    sys.stdout.write(json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
