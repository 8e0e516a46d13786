"""[retention]: removed and kept files, and the folder size over hourly updates."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest
from arriving import post
from servers import inside

from recloop import loop
from recloop.cli import run
from recloop.monitoring import verify
from recloop.monitoring.experiment_plan import EVIDENCE, Plan
from recloop.pipeline import retention
from recloop.project import Project, open_project
from recloop.recommend import loading
from recloop.records import DAY, SECOND
from recloop.release import transitions
from recloop.serve.app import create
from recloop.serve.service import Service
from recloop.storage import open_decisions, releases
from recloop.storage import trim as trimming
from recloop.storage.decisions import remove_before
from recloop.testing.store import some_decision, some_event

HOUR = 3_600 * SECOND
SETS = (
    "release.gates.max_ndcg_loss=9",
    "release.gates.min_users=1",
    "release.gates.min_queries=1",
    "release.refresh=manual",
    "release.gates.max_latency_ratio=99",
    "release.gates.min_users=1",
    "release.gates.min_queries=1",
    "release.refresh=manual",
    "update.input_check=false",
    "retention.bundles=2",
    "retention.runs=3",
)
URLS = ("sqlite:///store/log.db", "sqlite:///store/decisions.db")


def hourly_rows(project: Project, hour: int, count: int = 30) -> pl.DataFrame:
    """Purchases of unknown items in one hour, so that no gate waits."""
    start = 1_751_800_000 * SECOND + hour * HOUR
    return pl.DataFrame(
        {
            "user_id": [f"u{1 + (hour + n) % 50:02}" for n in range(count)],
            "item_id": [f"new-{hour}-{n}" for n in range(count)],
            "timestamp": [start + n * 20 * SECOND for n in range(count)],
            "event_type": ["purchase"] * count,
            "event_id": [f"h{hour}-{n}" for n in range(count)],
        }
    ).with_columns(pl.lit(None, pl.String).alias("group_id"), pl.lit(None, pl.Float64).alias("quantity"))


def answer_some(project: Project, hour: int, count: int = 40) -> None:
    """Store decisions of one hour by the live bundle."""
    store = project.open_decisions(write=True)
    at, live = 1_751_800_000 * SECOND + hour * HOUR, project.live_bundle_id() or ""
    for n in range(count):
        store.put(some_decision(f"h{hour}-{n}", served_at=at + n, bundle=live))
    store.close()


def ask_some(project: Project, hour: int, count: int = 10) -> None:
    """Request lists for one hour from the live bundle."""
    at = 1_751_800_000 * SECOND + hour * HOUR + HOUR // 2

    async def work(client: Any, _: Service) -> None:
        for n in range(count):
            assert (await client.get(f"/v1/recommend/u{1 + n:02}")).status_code == 200

    inside(create(project, clock=lambda: at), work)


def files(project: Project) -> list[str]:
    """All files of the folder except locks and SQLite side files."""
    return sorted(str(f) for f in project.root.rglob("*") if not f.name.endswith((".lock", "-shm", "-wal")))


def counted(file: Path, table: str) -> int:
    connection = sqlite3.connect(file)
    (found,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    return int(found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("hours", [6, 100])
def test_retention_during_hourly_updates_bounds_the_folder(project: Project, hours: int) -> None:
    project = open_project(
        project.root, [*SETS, 'model.name="covisitation"', 'retention.log="3h"', 'retention.decisions="3h"']
    )
    sizes: list[dict[str, int]] = []
    for hour in range(hours):
        ask_some(project, hour)
        post(project, hourly_rows(project, hour))
        made = loop.update(project)
        assert made.verdict == "registered", made.gates
        transitions.promote(project, made.bundle or "", "live", "hourly")
        sizes.append(
            {
                "bundles": len(list(project.bundles.iterdir())),
                "runs": len(list(project.runs.iterdir())),
                "decisions": counted(project.store / "decisions.db", "decisions"),
                "events": counted(project.store / "log.db", "events"),
                "bytes": sum(
                    f.stat().st_size for kind in ("bundles", "runs", "store") for f in (project.root / kind).rglob("*")
                ),
            }
        )
    assert max(one["bundles"] for one in sizes) <= 4  # live, two earlier ones, and the child of this update
    assert max(one["runs"] for one in sizes) <= 3
    assert max(one["decisions"] for one in sizes) <= 5 * 10
    assert max(one["events"] for one in sizes) <= 5 * 30
    middle = max(one["bytes"] for one in sizes[hours // 3 : 2 * hours // 3])
    assert max(one["bytes"] for one in sizes[2 * hours // 3 :]) < 1.5 * middle
    states = {row["bundle"]: row for row in loading.status(project)["bundles"]}
    assert sum(row["removed"] for row in states.values()) == len(states) - sizes[-1]["bundles"]
    transitions.rollback(project, "back")
    log = project.open_log()
    again = hourly_rows(project, 0)
    known = project.open_archive().known(again["event_id"].to_list())
    assert len(known) == len(again), "trimmed rows are still duplicates"
    assert log.last_seq() == project.open_archive().watermark
    log.close()
    found = verify.verify(project)
    assert (found["unexplained"], found["removed"] > 0, found["equal"] > 0) == (0, True, True)


def test_gc_removes_what_its_dry_run_reported(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project = open_project(project.root, SETS)
    for hour in range(4):
        (project.runs / f"2020010{hour}T000000000000Z").mkdir(parents=True)
        (project.runs / f"2020010{hour}T000000000000Z" / "log.jsonl").write_text("x" * 1_000)
    answer_some(project, 0, 3_000)
    answer_some(project, 24 * 31, 10)
    before = files(project)
    sets = [word for one in SETS for word in ("--set", one)]
    assert run(["-C", str(project.root), *sets, "gc", "--dry-run", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert files(project) == before
    assert (said["dry_run"], said["freed"]["decisions"]["count"], said["freed"]["runs"]["count"]) == (True, 3_000, 2)
    assert run(["-C", str(project.root), *sets, "gc", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert (done["dry_run"], done["freed"]["decisions"]["count"]) == (False, 3_000)
    assert done["runs"] == said["runs"] == ["20200100T000000000000Z", "20200101T000000000000Z"]
    assert done["bytes"] == sum(one["bytes"] for one in done["freed"].values())
    assert done["freed"]["decisions"]["bytes"] > 3_000 * 100, "the space is freed"
    assert run(["-C", str(project.root), *sets, "gc"]) == 0
    assert "decisions: 0 (0.0 MB)" in capsys.readouterr().out


def test_decision_totals_after_removal_are_unchanged(tmp_path: Path) -> None:
    store = open_decisions(URLS[1], tmp_path, write=True)
    for n in range(2_500):
        store.put(some_decision(f"r{n}", served_at=n, placement="home" if n % 2 else "cart"))
    store.flush()
    totals = store.totals()
    assert remove_before(store.file, 2_400) == 2_400  # while this process writes
    store.put(some_decision("late", served_at=3_000))
    store.flush()
    assert (len(store.rows()), store.rows()[0].served_at) == (101, 2_400)
    assert store.totals() == {**totals, ("live", "home"): totals["live", "home"] + 1}
    assert remove_before(store.file, 2_400) == 0
    store.close()


def test_gc_during_a_shadow_keeps_decisions_since_its_start(project: Project) -> None:
    control = project.open_control()
    live = releases.read_state(control).lives[-1]
    sha256 = releases.read_state(control).hashes[live]
    who: dict[str, Any] = {"by": "test", "reason": "tried"}
    releases.register(control, "tried", sha256, at=5 * DAY, **who)
    releases.checked(control, "tried", at=5 * DAY, **who)
    releases.promote(control, "tried", to="shadow", at=5 * DAY, **who)
    store = project.open_decisions(write=True)
    for day in (1, 4, 6, 100):
        store.put(some_decision(f"day{day}", served_at=day * DAY))
    store.close()
    assert retention.collect(project).freed["decisions"].count == 2
    store = project.open_decisions()
    assert [row.request_id for row in store.rows()] == ["day6", "day100"]
    store.close()


def test_gc_during_an_experiment_keeps_two_weeks_of_decisions_before_it(project: Project) -> None:
    control = project.open_control()
    live = releases.read_state(control).lives[-1]
    sha256 = releases.read_state(control).hashes[live]
    who: dict[str, Any] = {"by": "test", "reason": "tried", "at": 40 * DAY}
    plan = Plan.from_config(project.config.release, "tried", 40 * DAY).to_evidence()
    releases.register(control, "tried", sha256, **who)
    releases.checked(control, "tried", **who)
    releases.promote(control, "tried", to="experiment", evidence={EVIDENCE: plan}, **who)
    store = project.open_decisions(write=True)
    for day in (10, 26, 41, 100):
        store.put(some_decision(f"day{day}", served_at=day * DAY))
    store.close()
    assert retention.collect(project).freed["decisions"].count == 1
    store = project.open_decisions()
    assert [row.request_id for row in store.rows()] == ["day26", "day41", "day100"]
    store.close()


def test_trim_keeps_rows_that_differ_from_the_archive(project: Project) -> None:
    post(project, hourly_rows(project, 0, 40))
    made = loop.update(open_project(project.root, SETS))
    assert made.verdict == "registered"
    log = project.open_log(write=True)
    archive = project.open_archive()
    with log.commit() as writer:  # one changed row, and one that the archive lacks
        writer.execute("UPDATE events SET item_id = 'other' WHERE seq = ?", (made.from_seq,))
        writer.execute("UPDATE events SET seq = 1 WHERE seq = ?", (made.from_seq + 1,))
    late = msgspec.structs.replace(some_event("i01"), received_at=1_751_800_000 * SECOND + 90 * DAY)
    log.append_events([late])
    assert trimming.trim(log, archive, 8 * 86_400, dry_run=True) == (38, 2)
    assert trimming.trim(log, archive, 8 * 86_400) == (38, 2)
    assert log.events()["seq"].to_list() == [1, made.from_seq, made.to_seq + 1]
    log.close()


def test_trim_during_serving_is_done_by_the_server_and_detects_duplicates(project: Project) -> None:
    sets = (*SETS, 'retention.log="1h"', 'model.name="covisitation"')
    project = open_project(project.root, [*sets, "serve.allow_time_header=true"])
    app = create(project)
    rows = [
        {name: value for name, value in row.items() if value is not None and name != "timestamp"}
        for row in hourly_rows(project, 0, 20).iter_rows(named=True)
    ]

    async def work(client: Any, service: Service) -> None:
        early, later = ({"X-Recloop-Now": f"2025-07-0{day}T00:00:00Z"} for day in (8, 9))
        assert (await client.post("/v1/events", json=rows, headers=early)).json()["accepted"] == 20
        fresh = {"user_id": "u01", "item_id": "i02", "event_type": "purchase", "event_id": "fresh"}
        assert (await client.post("/v1/events", json=fresh, headers=later)).status_code == 200
        before = (await client.get("/v1/users/u05")).json()
        made = loop.update(project)
        assert made.verdict == "registered", made.failed
        assert counted(project.store / "log.db", "events") == 21, "only the service deletes rows of its log"
        await service.reload()
        assert counted(project.store / "log.db", "events") == 1
        assert (await client.get("/v1/users/u05")).json() == before
        answer = (await client.post("/v1/events", json=rows, headers=early)).json()
        assert (answer["duplicate"], answer["accepted"]) == (20, 0)

    inside(app, work)
    assert loading.has_log_rows(project)


def test_has_log_rows_of_a_trimmed_log_is_true(project: Project) -> None:
    post(project, hourly_rows(project, 0, 40))
    done = loop.update(open_project(project.root, SETS))
    assert done.verdict == "registered", done.gates
    log = project.open_log(write=True)
    log.delete_events(log.events()["seq"].to_list())
    assert log.is_empty()
    log.start_at(project.open_archive().watermark)
    assert log.last_seq() == project.open_archive().watermark
    log.close()
    assert loading.has_log_rows(project)
