"""Updates at an interval: when the loop continues, when it ends and why."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from servers import Server

from recloop import loop
from recloop.errors import Locked
from recloop.pipeline import schedule
from recloop.project import Project, open_project
from recloop.records import SECOND
from recloop.simulation.shop import SimulatedShop
from recloop.storage import locks

HOUR = 3600.0
UPDATES = 28


class Hours:
    """A clock that returns at once from waits; after ``stop`` waits the loop ends."""

    def __init__(self, stop: int = 10**9) -> None:
        self.seconds, self.waits, self.stop = 0.0, [0.0][:0], stop

    def now(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.seconds += seconds
        return len(self.waits) < self.stop


def test_repeat_continues_after_success_or_lock_and_ends_on_a_refusal() -> None:
    codes, said = iter([0, 3, 0, 1]), list[str]()
    clock = Hours()
    ended = schedule.repeat(lambda: next(codes), HOUR, clock, said.append, lambda code: f"reason of {code}")
    assert ended == (1, "reason of 1", 4)
    assert said == ["skipped: a lock is held (see the message above)"]
    assert clock.waits == [HOUR] * 3


@pytest.mark.parametrize("code", [2, 70, -9])
def test_repeat_after_another_failure_ends_with_its_code(code: int) -> None:
    assert schedule.repeat(lambda: code, HOUR, Hours(), print, str) == (code, str(code), 1)


def test_repeat_waits_from_start_to_start_without_overlap() -> None:
    clock = Hours(stop=3)
    durations = iter([600.0, 5000.0, 0.0])

    def update() -> int:
        clock.seconds += next(durations)
        return 0

    ended = schedule.repeat(update, HOUR, clock, print, str)
    assert ended == (0, "stop requested", 3)
    assert clock.waits == [3000.0, 0.0, HOUR]


def test_run_during_another_loop_raises_locked(project: Project) -> None:
    with locks.schedule_lock(project.root), pytest.raises(Locked, match="every"):
        schedule.run(project, ["true"], HOUR, print)


def test_run_after_sigterm_ends_the_child_and_the_loop(project: Project) -> None:
    program = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(300)"
    ended = schedule.run(project, [sys.executable, "-c", program], HOUR, print)
    assert ended == (0, "stopped by SIGTERM", 1)


@pytest.mark.slow
def test_update_every_hour_after_sigterm_exits_0(project: Project) -> None:
    words = ["-C", str(project.root), "update", "--every", "1h"]
    loop_process = subprocess.Popen([sys.executable, "-m", "recloop", *words], stdout=subprocess.PIPE, text=True)
    try:
        assert loop_process.stdout is not None
        assert loop_process.stdout.readline().startswith("nothing new")
    finally:
        loop_process.send_signal(signal.SIGTERM)
        assert loop_process.wait(60) == 0
        loop_process.stdout.close()  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_update_loop_of_a_week_promotes_refreshes_and_stops_on_shuffled_items(
    tmp_path: Path, serving: Callable[..., Server]
) -> None:
    """Run 28 updates, then shuffle the items: the loop ends with a reason."""
    world = SimulatedShop(seed=0)
    folder = world.write(tmp_path / "shop")
    whole = pl.read_csv(folder / "events.csv", schema_overrides={"event_id": pl.String})
    kept = int(0.6 * len(whole))
    whole[:kept].write_csv(folder / "events.csv")
    sets = ['model.name="covisitation"']
    project = open_project(folder, sets)
    first = loop.first_run(project).bundle.id
    server = serving(folder, "--set", sets[0], "--set", "serve.allow_time_header=true")
    rest = world.events()[kept:]
    cuts = np.linspace(0, len(rest), UPDATES + 1).astype(int)
    hour, verdicts = iter(range(10_000)), list[str]()
    shuffled = rest.with_columns(
        pl.Series("item_id", np.random.default_rng(0).permutation(rest["item_id"].to_numpy())),
        pl.format("again-{}", "event_id").alias("event_id"),
        pl.col("timestamp") + (rest["timestamp"].max() - rest["timestamp"].min()),  # type: ignore[operator]
    )

    def update() -> int:
        n = next(hour)
        rows = rest[cuts[n] : cuts[n + 1]] if n < UPDATES else shuffled[(n - UPDATES) * 400 : (n - UPDATES + 1) * 400]
        for start in range(0, len(rows), 400):
            part = rows[start : start + 400]
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(part["timestamp"].max()) / SECOND + 1))  # type: ignore[arg-type]
            body = [
                {name: value for name, value in row.items() if value is not None} | {"timestamp": row["timestamp"] / SECOND}
                for row in part.iter_rows(named=True)
            ]  # fmt: skip
            assert server.client.post("/v1/events", json=body, headers={"X-Recloop-Now": now}).status_code in {200, 207}
        done = loop.update(project)
        verdicts.append(done.verdict)
        return 1 if done.failed else 0

    ended = schedule.repeat(update, 6 * HOUR, Hours(stop=UPDATES), print, str)
    assert (ended.code, ended.updates) == (0, UPDATES), schedule.last_reason(project)
    rows = [row for row in project.open_control().releases() if row.to == "live"]
    assert len(rows) > 1, "refreshes became live"
    assert {row.by for row in rows[1:]} == {"recloop update"}
    end = time.monotonic() + 60
    while (live := server.client.get("/v1/status").json()["live"]) != project.live_bundle_id():
        assert time.monotonic() < end, live
        time.sleep(0.2)
    assert live != first
    poisoned = schedule.repeat(update, 6 * HOUR, Hours(stop=10), print, str)
    assert poisoned.code == 1, verdicts[UPDATES:]
    assert schedule.last_reason(project).partition(":")[0] in {"blocked", "refused"}
