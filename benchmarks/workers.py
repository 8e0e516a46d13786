"""Measure the lists per second of `recloop serve --workers` 1 and 2 on all cores.

    python benchmarks/workers.py                              # complete-journey, 3 rounds
    python benchmarks/workers.py --size 3700 --rounds 2 --seconds 3

Servers and load share the cores, and nothing is pinned: on two cores the load generator takes part of what a second worker
could use. So the table also shows the CPU time per list of all server processes, which the sharing changes less. Projects
and requests are those of `serve.py`; rounds alternate the sides.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import load
import processes
import servers
from provenance import provenance
from quality import PROJECTS, RESULTS

import serve

WORKERS: Final = (1, 2)


def main() -> None:
    """Measure, write the result file and print the table."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--size", default="complete-journey", help="items, or complete-journey")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--seconds", type=float, default=10.0, help="length of one load")
    words.add_argument("--results", type=Path, default=RESULTS)
    words.add_argument("--projects", type=Path, default=PROJECTS)
    given = words.parse_args()
    asked = serve.Asked((given.size,), None, given.rounds, given.seconds, False, given.results, given.projects)
    result = {"size": given.size, **provenance(), "seed": serve.SEED, **rates(asked, given.size)}
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f"workers-{given.size}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    sys.stdout.write(table(result))


def rates(asked: serve.Asked, size: str) -> dict[str, Any]:
    """Measure each number of workers."""
    project = serve.build(asked, size, None)
    with_filter, values = serve.filters(project, size)
    users = serve.users_of(project)
    per_second: dict[str, list[float]] = {str(workers): [] for workers in WORKERS}
    cpu_ms: dict[str, list[float]] = {str(workers): [] for workers in WORKERS}
    path = lambda user, value: f"/v1/recommend/{quote(user)}?n=10&filter={quote(with_filter(value))}"  # noqa: E731
    with ExitStack() as stack:
        sides = [(str(workers), *stack.enter_context(running(project, workers))) for workers in WORKERS]
        for number in range(-1, asked.rounds):  # the first round warms up
            for name, port, pid in sides:
                side = servers.Side(name, port, pid, path)
                stream = load.Stream(serve.lists(side, users, values, number))
                used = processes.tree_cpu_seconds(pid)
                load.run(port, [stream], asked.seconds)
                if stream.failed:
                    raise SystemExit(f"{len(stream.failed)} failed: {stream.failed[0]}")
                if number >= 0:
                    per_second[name].append(round(stream.per_second, 1))
                    cpu_ms[name].append(
                        round(1e3 * (processes.tree_cpu_seconds(pid) - used) / len(stream.latencies), 3)
                    )
    ratio = statistics.median(per_second["2"]) / statistics.median(per_second["1"])
    return {"cores": len(os.sched_getaffinity(0)), "rates": per_second, "cpu_ms": cpu_ms, "ratio": round(ratio, 3)}


@contextmanager
def running(project: Path, workers: int) -> Iterator[tuple[int, int]]:
    """Serve a copy of a project with some workers; yield port and pid."""
    port = servers.free_port()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "project"  # one project has one writer
        shutil.copytree(project, copy)
        command, environment = servers.recloop_command(None, "serve", "--port", str(port), "--workers", str(workers))
        with servers.server(command, environment, copy, port, "/v1/health/ready", is_pinned=False) as process:
            yield port, process.pid


def table(result: dict[str, Any]) -> str:
    """Table of a result."""
    lines = ["| workers | lists/s | CPU ms per list |", "| --- | ---: | ---: |"]
    for name, values in result["rates"].items():
        cpu = statistics.median(result["cpu_ms"][name])
        lines.append(f"| {name} | {statistics.median(values):,.0f} | {cpu:.3f} |")
    return "\n".join([*lines, f"2 workers / 1 worker: {result['ratio']:.2f}"]) + "\n"


if __name__ == "__main__":
    main()
