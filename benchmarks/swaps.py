"""Measure failed requests and answers of mixed version while the live bundle changes.

    .venv/bin/python benchmarks/swaps.py                         # the seeded world, in a temporary folder
    .venv/bin/python benchmarks/swaps.py --project DIR           # a copy of a finished project, such as the demo's

The live bundle changes 20 times while 8 clients send requests. Every other swap is requested over HTTP (active when it is
answered), the others by commands (active within a second). An answer is of mixed version if the client's answer differs
from the stored decision. It is also mixed if the decision differs from the answer of its bundle at its ``as_of``
(`recloop verify` over all of them).
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import polars as pl
from provenance import revision
from quality import RESULTS, recloop

from recloop import bundle as bundles
from recloop.ingest.client import serving
from recloop.project import open_project
from recloop.recommend.catalog import Catalog
from recloop.recommend.golden import make_golden
from recloop.recommend.recommender import Recommender
from recloop.records import now
from recloop.simulation.shop import SimulatedShop
from recloop.storage import releases

FILE: Final = RESULTS / "swaps.json"
PAUSE: Final = 1.5
"""Seconds between two swaps, longer than the poll interval of the server."""


@dataclass
class Asking:
    """Observations of the clients, which append to lists, so no lock is needed."""

    users: list[str]
    items: list[str]
    stop: threading.Event = field(default_factory=threading.Event)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    times: list[tuple[float, float]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    posted: list[int] = field(default_factory=list)

    def ask(self, url: str, number: int, pause: float) -> None:
        """Request lists and sometimes post a purchase on one connection, until stopped."""
        draw, count = random.Random(number), 0
        with httpx.Client(base_url=url, timeout=30) as client:
            while not self.stop.is_set():
                count += 1
                name, user = f"{number}-{count}", draw.choice(self.users)
                begin = time.perf_counter()
                try:
                    if draw.random() < 0.1:
                        row = {"user_id": user, "item_id": draw.choice(self.items), "event_type": "purchase"}
                        answer = client.post("/v1/events", json={**row, "event_id": name})
                        self.posted.append(answer.status_code)
                    else:
                        answer = client.get(f"/v1/recommend/{user}", headers={"X-Request-Id": name})
                        self.answers[name] = answer.json()
                    if answer.status_code != 200:
                        self.failed.append(f"{answer.status_code} {answer.text[:200]}")
                except (httpx.HTTPError, ValueError) as error:
                    self.failed.append(repr(error))
                self.times.append((begin, time.perf_counter() - begin))
                self.stop.wait(pause)


def main() -> None:
    """Run, print the result and write it to the results folder."""
    wanted = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    wanted.add_argument("--project", type=Path, help="a finished project; it is copied")
    wanted.add_argument("--swaps", type=int, default=20)
    wanted.add_argument("--clients", type=int, default=8)
    wanted.add_argument("--pause", type=float, default=0.0, help="seconds between two requests of a client")
    wanted.add_argument("--out", type=Path, default=FILE)
    asked = wanted.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "shop"
        if asked.project is None:
            SimulatedShop(seed=0).write(folder)
            with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
                file.write('[model]\nname = "covisitation"\n')
            recloop(folder, "update", "--json")
        else:
            shutil.copytree(asked.project, folder)
        result = swap(folder, asked.swaps, asked.clients, asked.pause)
    result["data"] = "world" if asked.project is None else asked.project.name
    words = ["--project DIR"] if asked.project else []
    words += [f"--swaps {asked.swaps}", f"--clients {asked.clients}", f"--pause {asked.pause:g}"]
    result["command"] = " ".join(["python benchmarks/swaps.py", *words])
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n", "utf-8")
    sys.stdout.write(json.dumps(result, indent=1, sort_keys=True) + "\n")


def swap(folder: Path, swaps: int, clients: int, pause: float) -> dict[str, Any]:
    """Swap two live bundles while clients send requests."""
    first = json.loads(recloop(folder, "status", "--json"))["live"]
    second = another(folder)
    split = pl.read_parquet(folder / "data" / "split" / "train.parquet", columns=["user_id", "item_id"])
    people = Asking(
        split["user_id"].unique().sort()[:500].to_list(),
        split["item_id"].value_counts(sort=True)["item_id"][:200].to_list(),
    )
    seconds: dict[str, list[float]] = {"http": [], "verb": []}
    spans: list[tuple[float, float]] = []
    with serving(folder) as client:
        threads = [
            threading.Thread(target=people.ask, args=(client.url, number, pause), daemon=True)
            for number in range(clients)
        ]
        for thread in threads:
            thread.start()
        for number in range(swaps):
            time.sleep(PAUSE)
            bundle, way = (first, second)[(number + 1) % 2], ("http", "verb")[number // 2 % 2]
            begin = time.perf_counter()
            if way == "http":
                body = {"bundle": bundle, "to": "live", "reason": f"swap {number + 1}"}
                client.post("/v1/admin/promote", body)
            else:
                recloop(folder, "promote", bundle, "--to", "live", "--reason", f"swap {number + 1}")
            moved = time.perf_counter()
            while client.recommend(people.users[0])["model_version"] != bundle:
                time.sleep(0.02)
            seconds[way].append(time.perf_counter() - (begin if way == "http" else moved))
            spans.append((begin, time.perf_counter()))
        time.sleep(PAUSE)
        people.stop.set()
        for thread in threads:
            thread.join(60)
    return judged(folder, people, spans, seconds, swaps, clients)


def another(folder: Path) -> str:
    """Register a child of live with the same arrays that shows popular items."""
    project = open_project(folder)
    live = project.load_bundle()
    home = replace(live.policy.placements["home"], weights={"popular": 1.0})
    made = replace(live, policy=live.policy.with_placement("home", home))
    own = Recommender(made, Catalog.from_table(made.items.ids.ids, made.items.attributes))
    states = [case.state.to_batch("golden") for case in live.golden]
    golden = [case for state in states for case in make_golden(own, state, made.cut, "home", 10)]
    made = bundles.write(replace(made, golden=golden), project.bundles, datetime.now(UTC))
    sha256 = bundles.manifest_hash(project.bundles / made.id)
    control = project.open_control()
    releases.register(
        control, made.id, sha256, by="benchmarks/swaps.py", reason="another list", at=now(),
        evidence={"gates": []},
    )  # fmt: skip
    return made.id


def judged(
    folder: Path,
    people: Asking,
    spans: list[tuple[float, float]],
    seconds: dict[str, list[float]],
    swaps: int,
    clients: int,
) -> dict[str, Any]:
    """Classify every request."""
    project = open_project(folder)
    store = project.open_decisions()
    written = {row.client_request_id: row for row in store.rows()}
    lost = store.lost
    store.close()
    mixed = 0
    for name, answer in people.answers.items():
        row = written[name]
        got = answer["model_version"], [one["item_id"] for one in answer["items"]]
        mixed += got != (row.bundle, row.items)
    verify = subprocess.run(
        [sys.executable, "-m", "recloop", "-C", str(folder), "verify", "--last", str(len(written)), "--json"],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    found = json.loads(verify.stdout)
    times = np.array([one for _, one in people.times]) * 1000
    during = np.array([any(low <= at <= high for low, high in spans) for at, _ in people.times])
    versions = [answer["model_version"] for answer in people.answers.values()]
    return {
        "commit": revision(),
        "fingerprint": json.loads((folder / "data" / "manifest.json").read_text("utf-8"))["fingerprint"],
        "seeds": list(range(clients)),
        "clients": clients,
        "swaps": swaps,
        "requests": len(people.times),
        "posts": len(people.posted),
        "failed": len(people.failed),
        "failures": people.failed[:5],
        "mixed": mixed + found["unexplained"],
        "answers_by_bundle": {name: versions.count(name) for name in sorted(set(versions))},
        "verify": {key: found[key] for key in ("checked", "equal", "late", "unexplained", "max_score_diff")},
        "decisions_lost": lost,
        "milliseconds": {
            "all": percentiles(times),
            "while a swap is under way": percentiles(times[during]),
        },
        "seconds_to_swap": {way: percentiles(np.array(taken)) for way, taken in seconds.items() if taken},
    }


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    if not len(values):
        return {}
    return {name: round(float(np.quantile(values, q)), 2) for name, q in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}


if __name__ == "__main__":
    main()
