"""Measure the delays of the machine itself: constant work at Poisson times, without a service.

    .venv/bin/python benchmarks/machine.py --rate 600 --milliseconds 0.4

A virtual machine that loses its core for some milliseconds delays every process alike. `serve.py` runs this beside its
latencies, at the rate and the CPU time of a list, so that a delay of the service can be told from one of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from typing import Final

import numpy as np

STEPS: Final = 1_000
"""Additions of one unit of work."""


def main() -> None:
    """Print the latencies in milliseconds as one JSON object."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--rate", type=float, required=True, help="pieces of work per second")
    words.add_argument("--milliseconds", type=float, required=True, help="CPU time of a piece")
    words.add_argument("--seconds", type=float, default=6.0)
    asked = words.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    latencies = run(asked.rate, units_of(asked.milliseconds), asked.seconds)
    p50, p99 = (float(np.percentile(latencies, percentile)) * 1e3 for percentile in (50, 99))
    shown = {"rate": asked.rate, "p50": round(p50, 3), "p99": round(p99, 3), "p99_to_p50": round(p99 / p50, 2)}
    sys.stdout.write(json.dumps(shown) + "\n")


def measure(rate: float, milliseconds: float, seconds: float) -> dict[str, float]:
    """Measure in a process of its own, on the core of the servers."""
    words = ["--rate", str(rate), "--milliseconds", str(milliseconds), "--seconds", str(seconds)]
    answer = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
    measured: dict[str, float] = json.loads(answer.stdout)
    return measured


def units_of(milliseconds: float) -> int:
    """Return the units of work that take this CPU time."""
    fastest = min(_seconds_of(10) for _ in range(100)) / 10
    return max(1, round(milliseconds / 1e3 / fastest))


def run(rate: float, units: int, seconds: float) -> list[float]:
    """Return the latency of each piece of work, from its planned time."""
    draw = random.Random(0)
    latencies = []
    planned = time.perf_counter()
    end = planned + seconds
    while planned < end:
        planned += draw.expovariate(rate)
        time.sleep(max(0.0, planned - time.perf_counter()))
        _seconds_of(units)
        latencies.append(time.perf_counter() - planned)
    return latencies


def _seconds_of(units: int) -> float:
    """Do some units of work and return their time."""
    begin = time.perf_counter()
    total = 0
    for _ in range(units):
        for number in range(STEPS):
            total += number
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
