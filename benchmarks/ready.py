"""Measure the time from the start of `recloop serve` until it answers, for a small and a large log.

    .venv/bin/python benchmarks/ready.py                                      # 10 k and 10 M rows, 10 rows per user
    .venv/bin/python benchmarks/ready.py --rows 10000 1000000 --rounds 5 --work DIR

Each log is generated with a seed, and its archive, split and states are those of a first run (`recloop.loop.collect`). A
training of 10 M rows would add nothing to a start, so both projects serve one bundle, trained on `BUNDLE_ROWS` rows of the
same shop. Then the service is started and stopped in turns. A time is that from the start of the process to the first 200
of ``/v1/health/ready``, and to the ready line. Files are in the page cache after the first round, which does not count.
CPU seconds are those of the process and its children at that moment; they hold on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl
from provenance import provenance
from quality import RESULTS

from recloop import bundle as bundles
from recloop import loop
from recloop.project import open_project
from recloop.records import now
from recloop.storage import releases

SIZES: Final = (10_000, 10_000_000)
ROWS_PER_USER: Final = 10
ITEMS: Final = 20_000
BUNDLE_ROWS: Final = 100_000
START: Final = 1_672_531_200_000_000  # 2023-01-01
SPAN: Final = 365 * 86_400 * 1_000_000
POLL_SECONDS: Final = 0.005
SETTINGS: Final = """[data]
events = "events.parquet"
[model]
name = "covisitation"
[placement.home]
weights = { history = 1, neighbours = 0.5, popular = 0.25 }
[split]
quantile = QUANTILE
"""
MAX_TEST_ROWS: Final = 20_000


def write_project(root: Path, n_rows: int) -> None:
    """Project with a log of ``n_rows`` rows; at most 20,000 of them are test rows."""
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user_id": rng.integers(0, n_rows // ROWS_PER_USER, n_rows),
            "item_id": (rng.random(n_rows) ** 2.5 * ITEMS).astype(np.int64),
            "timestamp": START + np.sort(rng.random(n_rows) * SPAN).astype(np.int64),
            "event_type": rng.choice(["view", "purchase"], n_rows, p=[0.8, 0.2]),
        }
    ).with_columns(pl.format("u{}", "user_id").alias("user_id"), pl.format("i{}", "item_id").alias("item_id"))
    root.mkdir(parents=True)
    frame.write_parquet(root / "events.parquet")
    quantile = max(0.9, 1 - MAX_TEST_ROWS / n_rows)
    (root / "recloop.toml").write_text(SETTINGS.replace("QUANTILE", f"{quantile:.4f}"), encoding="utf-8")


def trained(root: Path) -> Path:
    """Train the bundle of all projects, unless it exists; return its folder."""
    if not root.exists():
        write_project(root, BUNDLE_ROWS)
        loop.first_run(open_project(root))
    return next((root / "bundles").iterdir())


def prepared(root: Path, n_rows: int, bundle: Path) -> float:
    """Write the project, its data and states, unless it exists, with a live bundle; return the seconds."""
    started = time.perf_counter()
    if not root.exists():
        write_project(root, n_rows)
        project = open_project(root)
        loop.collect(project)
        shutil.copytree(bundle, project.bundles / bundle.name)
        control, sha256 = project.open_control(), bundles.manifest_hash(bundle)
        releases.register(control, bundle.name, sha256, by="benchmark", reason="trained on fewer rows", at=now())
        releases.promote(control, bundle.name, to="live", by="benchmark", reason="first bundle", at=now())
    return time.perf_counter() - started


class Start(NamedTuple):
    """Seconds from the start of a process to its ready line and to its first 200, and the CPU seconds until then."""

    line: float
    ready: float
    cpu: float


def start_once(root: Path) -> Start:
    """Start the service, wait until it is ready, and stop it."""
    words = (sys.executable, "-m", "recloop", "-C", str(root), "serve", "--port", "0")
    started = time.perf_counter()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[1]
            line = time.perf_counter() - started
            while not is_ready(url):
                time.sleep(POLL_SECONDS)
            return Start(line, time.perf_counter() - started, cpu_seconds(process.pid))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a running process and of its children, from ``/proc``."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            values = file.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):  # the process has ended
            continue
        if pid in (int(file.parent.name), int(values[1])):
            ticks += sum(map(int, values[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def is_ready(url: str) -> bool:
    """True if the service answers 200."""
    try:
        with urllib.request.urlopen(f"{url}/v1/health/ready", timeout=10) as response:  # noqa: S310 - an own address
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def main() -> None:
    """Prepare the projects, measure in turns and write the result file."""
    wanted = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    wanted.add_argument("--rows", type=int, nargs="+", default=SIZES)
    wanted.add_argument("--rounds", type=int, default=5)
    wanted.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "recloop-ready")
    wanted.add_argument("--prepare", action="store_true", help="only write the projects")
    wanted.add_argument("--result", type=Path, default=RESULTS / "ready.json")
    asked = wanted.parse_args()
    roots = {n_rows: asked.work / f"log-{n_rows}" for n_rows in asked.rows}
    bundle = trained(asked.work / "bundle")
    collected = {n_rows: round(prepared(root, n_rows, bundle), 1) for n_rows, root in roots.items()}
    sys.stdout.write(f"seconds to write logs, data and states: {collected}\n")
    if asked.prepare:
        return
    times: dict[int, list[Start]] = {n_rows: [] for n_rows in roots}
    for number in range(asked.rounds + 1):
        for n_rows, root in roots.items():
            measured = start_once(root)
            if number:
                times[n_rows].append(measured)
    sizes = {
        str(n_rows): {
            "ready_seconds": round(statistics.median(start.ready for start in measured), 3),
            "line_seconds": round(statistics.median(start.line for start in measured), 3),
            "cpu_seconds": round(statistics.median(start.cpu for start in measured), 2),
            "rounds": [round(start.ready, 3) for start in measured],
        }
        for n_rows, measured in times.items()
    }
    small, large = (sizes[str(n_rows)] for n_rows in (min(times), max(times)))
    tree = {
        **provenance(),
        "rows_per_user": ROWS_PER_USER,
        "bundle": {"rows": BUNDLE_ROWS, "items": ITEMS},
        "sizes": sizes,
        "large / small": round(large["ready_seconds"] / small["ready_seconds"], 2),  # type: ignore[operator]
        "large / small, CPU": round(large["cpu_seconds"] / small["cpu_seconds"], 2),  # type: ignore[operator]
    }
    asked.result.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
