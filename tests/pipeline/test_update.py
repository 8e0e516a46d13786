"""Updates: learned rows, changed files, refusals, and the result after a kill."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from arriving import STEPS, die_after, post

from recloop import bundle as bundles
from recloop import loop
from recloop.bundle import Bundle
from recloop.data.prepare import load
from recloop.errors import Refused
from recloop.features import state_store
from recloop.features.labels import EventLabeler
from recloop.monitoring import last_update, verify
from recloop.pipeline import update_run, update_steps
from recloop.pipeline.evidence import window_scores
from recloop.pipeline.quarantine import quarantine
from recloop.pipeline.update_run import UpdateResult
from recloop.progress import NullProgress
from recloop.project import Project, open_project
from recloop.recommend import loading
from recloop.recommend.golden import check_golden
from recloop.records import DAY, Item, User, now
from recloop.release import gate as gate_rules
from recloop.release import transitions
from recloop.release.gate import non_inferiority
from recloop.simulation.shop import SimulatedShop
from recloop.storage import locks, releases
from recloop.testing.states import digests, digests_of_frame

REFRESH = ('model.name="covisitation"',)
COUNTS = (*REFRESH, 'release.refresh="manual"')
PATIENT = "release.gates.max_latency_ratio=100"  # latency on a busy machine is not tested
SETS = [word for one in COUNTS for word in ("--set", one)]
KEPT = 0.85

Later = Callable[..., Project]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame]:
    """A project after its first run over most of the log, and the remaining rows."""
    world = SimulatedShop(seed=0)
    folder = world.write(tmp_path_factory.mktemp("update") / "shop")
    whole = pl.read_csv(folder / "events.csv", schema_overrides={"event_id": pl.String})
    kept = int(KEPT * len(whole))
    whole[:kept].write_csv(folder / "events.csv")
    loop.first_run(open_project(folder, COUNTS))
    return folder, world.events()[kept:]


@pytest.fixture
def later(first: tuple[Path, pl.DataFrame], tmp_path: Path) -> Later:
    """Copy the project and post rows (default: the rest): ``later(rows, ...)``."""

    def make(rows: pl.DataFrame | None = None, *sets: str) -> Project:
        folder = shutil.copytree(first[0], tmp_path / f"shop{len(list(tmp_path.iterdir()))}")
        project = open_project(folder, [*COUNTS, *sets])
        post(project, first[1] if rows is None else rows)
        return project

    return make


def moved(project: Project) -> dict[str, tuple[int, bytes]]:
    """Contents of data, bundles and snapshots by file."""
    files = [*project.data.rglob("*"), *project.bundles.rglob("*"), *project.store.glob("states-*/*")]
    return {str(f.relative_to(project.root)): (f.stat().st_size, f.read_bytes()) for f in files if f.is_file()}


@dataclass
class FinishedUpdate:
    """An update of all remaining rows, one new item and one new user."""

    project: Project
    live: Bundle
    child: Bundle
    outcome: UpdateResult
    rows: int
    """Events posted before the update."""
    rows_before: int
    """Events of the archive before the update."""
    watermark_before: int


@pytest.fixture(scope="module")
def finished(first: tuple[Path, pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> FinishedUpdate:
    folder = shutil.copytree(first[0], tmp_path_factory.mktemp("finished") / "shop")
    project = open_project(folder, COUNTS)
    post(project, first[1])
    with project.open_log(write=True) as log:
        log.append_items([Item(item_id="tea-9", attributes={"name": "new", "category": "tea"}, received_at=1)])
        log.append_users([User(user_id="u-new", attributes={"age": "18-29"}, received_at=1)])
    before = project.open_archive()
    rows_before, watermark_before = len(before.events()), before.watermark
    live = project.load_bundle()
    outcome = loop.update(project)
    assert outcome.verdict == "registered", outcome.reason
    child = project.load_bundle(outcome.bundle or "")
    return FinishedUpdate(project, live, child, outcome, len(first[1]), rows_before, watermark_before)


def test_update_with_new_rows_registers_a_child_and_keeps_live(finished: FinishedUpdate) -> None:
    status = loading.status(finished.project)
    assert status["live"] == finished.live.id
    assert status["watermark"] == status["last_seq"] == finished.outcome.to_seq
    assert finished.child.manifest.parent == finished.live.id
    assert finished.child.policy.placements == finished.live.policy.placements
    check_golden(finished.child)


def test_update_with_new_rows_reports_what_it_read(finished: FinishedUpdate) -> None:
    outcome = finished.outcome
    assert outcome.from_seq == finished.watermark_before + 1
    assert outcome.read == finished.rows
    assert outcome.kept == finished.rows
    assert outcome.new_items > 0


def test_update_with_new_rows_extends_the_items(finished: FinishedUpdate) -> None:
    live, child = finished.live.items, finished.child.items
    assert child.ids.ids[: len(live)] == live.ids.ids, "a raw id keeps its index"
    assert len(child) > len(live)
    assert child.count.sum() > live.count.sum()


def test_update_with_new_rows_evaluates_the_child_on_them(finished: FinishedUpdate) -> None:
    live, child = finished.live.metrics, finished.child.metrics
    assert set(child) == set(live)
    assert [row["model"] for row in child["rows"]] == [row["model"] for row in live["rows"]]
    protocol = child["protocol"]
    assert set(protocol) - set(live["protocol"]) == {"set", "window"}
    assert protocol["name"] == "temporal"
    assert protocol["set"] == "new_rows"
    assert protocol["window"]["to_seq"] == finished.outcome.to_seq
    assert 0 < child["rows"][-1]["NDCG@10"]["value"] < 1


def test_update_with_new_rows_archives_them(finished: FinishedUpdate) -> None:
    archive, data = finished.project.open_archive(), load(finished.project)
    assert archive.watermark == finished.outcome.to_seq
    assert len(archive.events()) == finished.rows_before + finished.outcome.kept
    assert data.items is not None
    assert "tea-9" in set(data.items["item_id"])
    assert len(data.events) == len(archive.events())
    assert not list(finished.project.runs.glob("*/data"))


def test_update_snapshot_equals_a_full_snapshot(later: Later) -> None:
    project = later()
    done = loop.update(project)
    folders = [path.name for path in project.store.glob("states-*")]
    spec = project.load_bundle().spec
    assert folders == [state_store.name(done.to_seq, spec.state_key)]
    archive = project.open_archive()
    whole = digests_of_frame(EventLabeler.from_spec(spec).label(archive.events()), archive.users())
    assert digests(state_store.read(project.store / folders[0], spec.state_key)) == whole


def test_update_without_new_rows_does_nothing(later: Later, first: tuple[Path, pl.DataFrame]) -> None:
    project = later(first[1][:0])
    done = loop.update(project)
    assert (done.verdict, done.bundle, done.read, done.failed) == ("nothing", project.live_bundle_id(), 0, [])


@dataclass
class TwoUpdates:
    """An update after a promoted one; its window alone is inconclusive."""

    project: Project
    first: UpdateResult
    second: UpdateResult
    child: Bundle
    pooled: dict[str, Any]
    """The gate computed from the windows that the child carries."""

    def window(self, outcome: UpdateResult) -> pl.DataFrame:
        """The scores that the update's child carries."""
        scores = bundles.load_window(self.project.bundles / (outcome.bundle or ""))
        assert scores is not None
        return scores


@pytest.fixture(scope="module")
def two_updates(first: tuple[Path, pl.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> TwoUpdates:
    half, few = len(first[1]) // 2, 600
    project = open_project(shutil.copytree(first[0], tmp_path_factory.mktemp("two") / "shop"), COUNTS)
    post(project, first[1][:half])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate_rules, "WIDTH_FACTOR", 1e4)  # a window of any width is pooled
        one = loop.update(project)
        transitions.promote(project, one.bundle or "", "live", "tried")
        post(project, first[1][half : half + few])
        narrow = "release.gates.max_ndcg_loss=0.001"  # so narrow that the window stays inconclusive
        project = open_project(project.root, [*COUNTS, narrow])
        two = loop.update(project)
        assert two.verdict == "registered", two.reason
        child = project.load_bundle(two.bundle or "")
        updates = TwoUpdates(project, one, two, child, {})
        windows = window_scores(updates.window(two), child.manifest.recipe)
        updates.pooled = non_inferiority(windows[1], windows[:1], project.config.release.gates).to_json()
    return updates


def test_update_after_an_update_continues_from_its_watermark(two_updates: TwoUpdates) -> None:
    assert two_updates.second.from_seq == two_updates.first.to_seq + 1
    assert two_updates.child.manifest.parent == two_updates.first.bundle
    live = two_updates.project.load_bundle()
    assert two_updates.child.items.ids.ids[: len(live.items)] == live.items.ids.ids


def test_update_after_an_update_keeps_the_earlier_input_windows(two_updates: TwoUpdates) -> None:
    windows = json.loads((two_updates.project.data / "manifest.json").read_text())["windows"]
    ends = [two_updates.first.to_seq, two_updates.second.to_seq]
    assert [window["to_seq"] for window in windows][-2:] == ends
    checked = next(gate for gate in two_updates.second.gates if gate["name"] == "input")
    assert checked["note"].endswith(f"{len(windows) - 1} earlier windows")


def test_known_windows_after_removal_of_the_parent_keep_those_of_its_recipe(
    two_updates: TwoUpdates, first: tuple[Path, pl.DataFrame], tmp_path: Path
) -> None:
    """Retention removes parents; the input check still compares with their windows."""
    project = open_project(shutil.copytree(two_updates.project.root, tmp_path / "shop"), COUNTS)
    parent = project.load_bundle().manifest.parent
    shutil.rmtree(project.bundles / str(parent))
    post(project, first[1][-40:])
    run = update_run.start_or_resume(project, full=False, reset=False, progress=NullProgress())
    assert run is not None
    update_steps.collect(run)
    own, others = update_steps.known_windows(run)
    assert [window.bundle for window in own] == [two_updates.first.bundle]
    assert {window.bundle for window in others} == {parent}
    changed = replace(run.live.manifest, recipe="another")
    run.live = replace(run.live, manifest=changed)
    assert update_steps.known_windows(run)[1] == []


def test_update_after_an_update_carries_the_scores_of_its_parent(two_updates: TwoUpdates) -> None:
    earlier, carried = two_updates.window(two_updates.first), two_updates.window(two_updates.second)
    ends = [two_updates.first.to_seq, two_updates.second.to_seq]
    assert carried["to_seq"].unique(maintain_order=True).to_list() == ends
    assert carried.filter(pl.col("to_seq") == ends[0]).equals(earlier)
    assert window_scores(carried, "another recipe") == []


def test_gate_of_an_inconclusive_window_pools_the_earlier_one(two_updates: TwoUpdates) -> None:
    new = next(gate for gate in two_updates.second.gates if gate["name"] == "new_rows")
    assert "pooled with 1 earlier windows of the same recipe" in new["note"], new
    assert two_updates.pooled.items() <= new.items()


def with_earlier_dates(rows: pl.DataFrame, days: int) -> pl.DataFrame:
    """The rows as in an export of an earlier year, with earlier stamps and new ids."""
    own = (pl.concat_str(pl.lit("late-"), name).alias(name) for name in ("event_id", "group_id"))
    return rows.with_columns(pl.col("timestamp") - days * DAY, *own)


def test_update_with_late_rows_learns_all_and_evaluates_new_ones(
    later: Later, first: tuple[Path, pl.DataFrame]
) -> None:
    """400 rows with earlier stamps are learned and not evaluated."""
    rows = first[1]
    late = with_earlier_dates(rows.filter(pl.col("event_type") == "purchase").head(400), 700)
    project = later(pl.concat([rows[:900], late, rows[900:]]), PATIENT)
    live = project.load_bundle()
    done = loop.update(project)
    assert done.verdict == "registered", done.failed
    data, child = load(project), project.load_bundle(done.bundle or "")
    assert data.test["stamp"].min() >= live.cut  # type: ignore[operator]
    assert not data.test.filter(live.learned.rows | pl.col("event_id").str.starts_with("late-")).height
    assert data.events.filter(pl.col("event_id").str.starts_with("late-")).height == 400
    assert data.events.filter(child.learned.rows).height == data.events.height, "every row is learned"
    assert child.items.count.sum() > live.items.count.sum()
    assert child.cut == data.events["stamp"].max() + 1  # type: ignore[operator]


def test_update_with_only_late_rows_learns_them_and_evaluates_none(
    later: Later, first: tuple[Path, pl.DataFrame]
) -> None:
    """After an update has learned the test of the first run, only late rows are new."""
    project = later(first[1][:1500], PATIENT)
    one = loop.update(project)
    assert one.bundle is not None, one.failed
    transitions.promote(project, one.bundle, "live", "tried")
    late = with_earlier_dates(first[1].filter(pl.col("event_type") == "purchase").head(400), 700)
    post(project, late)
    done = loop.update(project)
    assert done.verdict == "registered", done.failed
    note = {gate["name"]: gate.get("note", "") for gate in done.gates}
    assert note["new_rows"].startswith("weak: nothing to judge")
    assert note["input"].startswith("weak")
    child, live = project.load_bundle(done.bundle or ""), project.load_bundle()
    assert child.cut == live.cut
    assert child.items.count.sum() > live.items.count.sum()
    assert load(project).events.filter(~child.learned.rows).height == 0
    assert load(project).test.height == 0


def test_update_with_shuffled_items_is_blocked_by_the_input_check(
    later: Later, first: tuple[Path, pl.DataFrame]
) -> None:
    """A window is blocked if live's loss leaves the band of earlier windows."""
    rng = np.random.default_rng(0)
    poisoned = first[1].with_columns(pl.Series("item_id", rng.permutation(first[1]["item_id"].to_numpy())))
    project = later(poisoned)
    before = moved(project)
    done = loop.update(project)
    assert (done.verdict, done.bundle) == ("blocked", None)
    record = last_update.read(project)
    assert record is not None
    assert (record.verdict, record.is_stopped) == ("blocked", True), "the alarm update"
    assert [one["name"] for one in done.failed] == ["input"]
    assert moved(project) == before
    assert loading.log_range(project)[0] < loading.log_range(project)[1], "its rows stay pending"
    unchecked = open_project(project.root, [*COUNTS, "update.input_check=false"])
    unchecked_update = loop.update(unchecked)
    assert unchecked_update.from_seq == done.from_seq
    assert {"new_rows", "forgetting"} <= {one["name"] for one in unchecked_update.gates}


@pytest.mark.slow
def test_update_after_quarantine_of_poisoned_rows_equals_one_without_them(
    later: Later, first: tuple[Path, pl.DataFrame]
) -> None:
    """Poisoned rows block updates; after quarantine the child equals one without."""
    rest, rng = first[1], np.random.default_rng(0)
    shuffled = pl.Series("item_id", rng.permutation(rest["item_id"].to_numpy()))
    poisoned = rest.with_columns(shuffled, pl.lit("broken").alias("placement"), pl.col("event_id") + "-p")
    few, wide = (
        rest[: len(rest) // 3],
        "release.gates.max_ndcg_loss=9",
    )  # the gain from so few rows is not tested
    project, clean = later(poisoned, wide), later(few, wide)
    post(project, few)
    assert loop.update(project).verdict == "blocked", "later good rows do not unblock the window"
    with pytest.raises(Refused, match=r"share of all rows=0\.1\d+, threshold 0\.05: .* rows .* --force"):
        quarantine(project, "placement = 'broken'", "shuffled items")
    done = quarantine(project, "placement = 'broken'", "shuffled items", force=True)
    assert (done.matched, done.new, done.waiting) == (len(rest), len(rest), 0)
    assert (done.users, sum(done.types.values()), len(done.samples)) == (rest["user_id"].n_unique(), len(rest), 5)
    again = quarantine(project, "placement = 'broken'", "shuffled items")
    assert (again.matched, again.already, again.new) == (len(rest), len(rest), 0)
    made, expected = loop.update(project), loop.update(clean)
    assert (made.verdict, expected.verdict) == ("registered", "registered")
    ours, theirs = (one.load_bundle(done.bundle or "") for one, done in ((project, made), (clean, expected)))
    assert ours.items.ids.ids == theirs.items.ids.ids
    assert all(np.array_equal(ours.arrays[name], array) for name, array in theirs.arrays.items())


@pytest.mark.slow
def test_update_after_a_restore_learns_the_restored_rows(later: Later, first: tuple[Path, pl.DataFrame]) -> None:
    rows = first[1].with_columns(pl.lit("suspect").alias("placement"))
    project = later(rows, "update.input_check=false", "release.gates.max_ndcg_loss=9")
    quarantine(project, "placement = 'suspect'", "bots", force=True)
    post(project, first[1][:30].with_columns(pl.col("event_id") + "-again"))
    made = loop.update(project)
    assert made.verdict == "registered", made.failed
    quarantined_seqs = range(made.from_seq, made.from_seq + len(rows))
    assert set(load(project).events["seq"]).isdisjoint(quarantined_seqs)
    restored = quarantine(project, "placement = 'suspect'", "not bots", restore=True)
    assert (restored.new, restored.restore) == (len(rows), True)
    assert quarantine(project, "placement = 'suspect'", "twice", restore=True).new == 0
    back = loop.update(project)
    assert back.verdict == "registered", back.failed
    assert set(load(project).events["seq"]).issuperset(quarantined_seqs)


@pytest.mark.slow
def test_update_refresh_becomes_live_but_not_after_a_rollback(
    later: Later, first: tuple[Path, pl.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "check_golden", lambda bundle: pytest.fail("the gate `golden` has compared the lists"))
    rows = first[1]
    project = open_project(later(rows[:900]).root, [*REFRESH, "release.gates.max_ndcg_loss=0.2"])
    parent = project.load_bundle()
    one = loop.update(project)
    assert (one.verdict, one.state) == ("registered", "live"), one.reason
    assert project.live_bundle_id() == one.bundle
    assert project.load_bundle().manifest.recipe == parent.manifest.recipe
    row = releases.lives(project.open_control())[0]
    assert (row.by, row.evidence["refresh_of"]) == ("recloop update", parent.id)
    transitions.rollback(project, "not wanted")
    post(project, rows[900:])
    two = loop.update(project)
    assert (two.verdict, two.state) == ("registered", "registered"), two.reason
    assert project.live_bundle_id() == parent.id


def test_update_with_another_recipe_registers_without_promotion(later: Later) -> None:
    sets = [*REFRESH, "release.gates.max_ndcg_loss=0.2", "placement.home.weights={popular=1.0,history=1.0}"]
    project = open_project(later().root, sets)
    live = project.live_bundle_id()
    done = loop.update(project)
    assert (done.verdict, done.state) == ("registered", "registered"), done.reason
    assert project.live_bundle_id() == live


def test_update_with_few_rows_is_not_refused(later: Later, first: tuple[Path, pl.DataFrame]) -> None:
    """One posted row, then twelve neutral ones, are not refused."""
    neutral = first[1][1:13].with_columns(pl.lit("impression").alias("event_type"))
    project = later(first[1][:1])
    for more in (neutral[:0], neutral):
        post(project, more)
        done = loop.update(project)
        assert done.verdict in {"registered", "waiting", "nothing"}, done.reason


@pytest.mark.slow
def test_update_with_an_inconclusive_window_waits_for_more_rows(later: Later, first: tuple[Path, pl.DataFrame]) -> None:
    project = later(first[1][:900], "release.gates.max_ndcg_loss=0.0001")
    one = loop.update(project)
    assert one.verdict == "waiting", one.reason
    assert "inconclusive, this window" in one.reason
    again = loop.update(project)
    assert "judged again from" in again.reason, again.reason
    wider = open_project(project.root, [*COUNTS, "release.gates.max_ndcg_loss=0.5"])
    assert loop.update(wider).verdict == "registered", "another margin is evaluated at once"


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_update_killed_after_any_step_gives_the_same_child(later: Later, step: str) -> None:
    project, other = later(), later()
    whole = loop.update(other)
    die_after(step, project, COUNTS)
    done = loop.update(project)
    assert done.verdict == "registered", done.reason
    assert (done.bundle or "")[-8:] == (whole.bundle or "")[-8:], "equal content hashes"
    assert (project.data / "manifest.json").read_bytes() == (other.data / "manifest.json").read_bytes()
    assert loop.update(project).verdict == "nothing"
    assert [row["state"] for row in loading.status(project)["bundles"]] == ["live", "registered"]


def test_update_during_another_update_exits_3_and_names_it(later: Later, cli: Callable[..., Any]) -> None:
    project = later()
    with locks.run_lock(project.root, "update"):
        code, _, err = cli("-C", project.root, "update")
    assert code == 3
    assert "recloop update" in err
    assert str(os.getpid()) in err


def test_update_on_a_full_disk_changes_nothing(later: Later, cli: Callable[..., Any]) -> None:
    project = later()
    before = moved(project)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        code, out, err = cli("-C", project.root, *SETS, "update")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (code, out) == (2, ""), err
    assert "error: disk=" in err.splitlines()[-1]
    assert moved(project) == before
    assert loop.update(project).verdict == "registered"


def test_update_of_a_log_with_one_user_waits(tmp_path: Path) -> None:
    rows = [
        f"e{day},ann,i{day % 3 + 1},2025-01-{day:02d}T10:00:00Z,purchase" for day in range(1, 21)
    ]  # one basket a day
    (tmp_path / "log.csv").write_text("event_id,user_id,item_id,timestamp,event_type\n" + "\n".join(rows) + "\n")
    toml = '[data]\nevents = "log.csv"\n[data.columns]\nevent_id = "event_id"\nevent_type = "event_type"\n'
    (tmp_path / "recloop.toml").write_text(toml)
    project = open_project(tmp_path, COUNTS)
    loop.first_run(project)
    day = 86_400_000_000
    start = 1_737_540_000_000_000
    rows_later = pl.DataFrame(
        {
            "event_id": [f"l{n}" for n in range(8)],
            "user_id": ["ann"] * 8,
            "item_id": [f"i{n % 4 + 1}" for n in range(8)],
            "timestamp": [start + n * day for n in range(8)],
            "event_type": ["purchase"] * 8,
            "group_id": [None] * 8,
            "quantity": [None] * 8,
            "value": [None] * 8,
            "session_id": [None] * 8,
            "placement": [None] * 8,
        },
        schema_overrides={"group_id": pl.String, "quantity": pl.Float64, "value": pl.Float64, "session_id": pl.String,
                          "placement": pl.String},
    )  # fmt: skip
    post(project, rows_later)
    done = loop.update(project)
    assert done.verdict == "waiting"
    assert "too few to judge" in done.reason
    assert all(one["value"] is None or np.isfinite(one["value"]) for one in done.gates)


def test_update_with_changed_features_retrains_in_full(later: Later) -> None:
    project = later(None, "features.context=['hour']")
    done = loop.update(project)
    assert done.changed == ["features.context"]
    assert done.verdict in {"registered", "refused"}
    if done.bundle:
        child = project.load_bundle(done.bundle)
        assert child.manifest.train.mode == "full"
        assert child.spec.context == ("hour",)


def test_verify_after_an_update_explains_earlier_decisions(later: Later) -> None:
    project = later()
    from recloop.records import Query
    from recloop.serve.service import Service

    service = Service(project)
    try:
        for user in ("u001", "u002", "u003"):
            query = Query(user_id=user, now=now(), request_id=f"r-{user}")
            service.recommend(query, started=time.perf_counter())
        done = loop.update(project)
        assert done.verdict == "registered", done.reason
        assert len(list(project.store.glob("states-*"))) == 2, "the server still reads the old snapshot"
        query = Query(user_id="u004", now=now(), request_id="r-u004")
        assert service.recommend(query, started=time.perf_counter())[0].items
    finally:
        service.close()
    found = verify.verify(project)
    assert (found["checked"], found["unexplained"]) == (4, 0)
    again = Service(project)
    query = Query(user_id="u001", now=now(), request_id="r-again")
    again.recommend(query, started=time.perf_counter())
    again.close()
    assert verify.verify(project)["unexplained"] == 0
    assert bundles.manifest_hash(project.bundles / (done.bundle or ""))


@pytest.mark.slow
def test_update_cli_with_shuffled_items_exits_1_and_ends_the_loop(
    later: Later, first: tuple[Path, pl.DataFrame]
) -> None:
    rng = np.random.default_rng(0)
    project = later(first[1].with_columns(pl.Series("item_id", rng.permutation(first[1]["item_id"].to_numpy()))))
    verb = [sys.executable, "-m", "recloop", "-C", str(project.root), *SETS, "update", "--json"]
    held = subprocess.run(verb, capture_output=True, text=True)
    tree = json.loads(held.stdout)
    assert (held.returncode, tree["verdict"], tree["bundle"]) == (1, "blocked", None)
    keys = "from_seq to_seq read kept new_users new_items bundle verdict gates seconds removed signals changed state"
    assert list(tree) == keys.split()
    assert {"name", "value", "threshold", "ok"} <= set(tree["gates"][0])
    assert sum(tree["removed"].values()) + sum(one["events"] for one in tree["signals"]) == tree["read"]
    again = subprocess.run([*verb, "--every", "1s"], capture_output=True, text=True)
    assert again.returncode == 1, "a failed gate ends the loop"
    assert json.loads(again.stdout)["verdict"] == "blocked"
    assert "stopped: blocked: input=" in again.stderr.splitlines()[-1]
