"""Measure the whole answers per second of `recloop serve` above its peak.

    python benchmarks/overload.py                        # 100,000 items
    python benchmarks/overload.py --size 3700 --seconds 3

The peak is the rate of 16 connections that send as fast as answers arrive. Then requests are sent at multiples of it over
`CONNECTIONS` connections, and a request that finds none free is dropped, as by a client that gives up. An answer counts if
it is a list without a missing part inside `DEADLINE_SECONDS`; a refusal (429, 503) does not. Projects are those of `serve.py`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

import load
import matplotlib.pyplot as plt
import servers
from provenance import provenance
from quality import PROJECTS, RESULTS

import serve

MULTIPLES: Final = (0.5, 1.0, 2.0, 5.0, 10.0)
CONNECTIONS: Final = 1_000
DEADLINE_SECONDS: Final = 1.0
PICTURE: Final = Path(__file__).resolve().parents[1] / "docs" / "img" / "overload.png"


def main() -> None:
    """Measure, write the result file and the picture, and print the table."""
    words = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    words.add_argument("--size", default="100000", help="items, or complete-journey")
    words.add_argument("--rounds", type=int, default=3)
    words.add_argument("--seconds", type=float, default=5.0, help="length of one load")
    words.add_argument("--results", type=Path, default=RESULTS)
    words.add_argument("--projects", type=Path, default=PROJECTS)
    given = words.parse_args()
    asked = serve.Asked((given.size,), None, given.rounds, given.seconds, False, given.results, given.projects)
    result = {"size": given.size, **provenance(), "seed": serve.SEED, **measure(asked, given.size)}
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / f"overload-{given.size}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if given.results == RESULTS:
        draw()
    sys.stdout.write(table(result))


def measure(asked: serve.Asked, size: str) -> dict[str, Any]:
    """Measure the peak, then each multiple of it."""
    project = serve.build(asked, size, None)
    with_filter, values = serve.filters(project, size)
    users = serve.users_of(project)
    with servers.recloop_server(project, "kept", None, with_filter) as side:
        peaks = []
        for number in range(-1, asked.rounds):  # the first round warms up
            stream = load.Stream(serve.lists(side, users, values, number))
            serve.send(side.port, [stream], asked.seconds)
            peaks.append(len(stream.whole) / stream.seconds)
        peak = statistics.median(peaks[1:])
        loads = []
        for multiple in MULTIPLES:
            requests = serve.lists(side, users, values, 0)
            stream = load.Stream(requests, CONNECTIONS, rate=multiple * peak, drops=True)
            load.run(side.port, [stream], asked.seconds)
            whole = [seconds for seconds in stream.whole if seconds <= DEADLINE_SECONDS]
            loads.append(
                {
                    "multiple": multiple,
                    "goodput": round(len(whole) / stream.seconds, 1),
                    "share_of_peak": round(len(whole) / stream.seconds / peak, 3),
                    "refused": len(stream.failed),
                    "degraded_or_late": len(stream.latencies) - len(stream.failed) - len(whole),
                    "p50_ms": round(stream.milliseconds(50), 1),
                    "p99_ms": round(stream.milliseconds(99), 1),
                }
            )
    return {"peak": round(peak, 1), "deadline_seconds": DEADLINE_SECONDS, "connections": CONNECTIONS, "loads": loads}


def draw() -> None:
    """Draw the share of the peak by the offered load, a line for each result file."""
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for file in sorted(RESULTS.glob("overload-*.json")):
        result = json.loads(file.read_text("utf-8"))
        size = f"{int(result['size']):,} items" if result["size"].isdigit() else result["size"]
        shares = [100 * one["share_of_peak"] for one in result["loads"]]
        axes.plot([one["multiple"] for one in result["loads"]], shares, marker="o", label=size)
    axes.axhline(80, linestyle="--", color="grey")
    axes.set(
        xscale="log", xlabel="requests a second, as a multiple of the peak", ylabel="whole lists, % of the peak", ylim=0
    )
    axes.set_xticks(MULTIPLES, [f"{multiple:g}" for multiple in MULTIPLES])
    axes.minorticks_off()
    axes.legend()
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def table(result: dict[str, Any]) -> str:
    """Format the loads."""
    lines = [f"peak {result['peak']:.0f} whole lists a second"]
    lines += [" ".join(f"{key}={value}" for key, value in one.items()) for one in result["loads"]]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
