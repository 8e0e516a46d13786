"""A changed recloop.toml: the next update restarts or retrains in full."""

from __future__ import annotations

import io
import json
import shutil
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from recloop import loop
from recloop.cli import run
from recloop.config import Config
from recloop.pipeline import config_changes, restart
from recloop.pipeline.config_changes import Change, Effect
from recloop.project import Project, open_project
from recloop.recommend import loading
from recloop.records import Event, Item, Query, now
from recloop.settings import build
from recloop.simulation.shop import SimulatedShop
from recloop.storage import locks, open_control, releases

COUNTS = '\n[model]\nname = "popular"\n[placement.home]\nweights = { history = 1.0, popular = 0.25 }\n'
Said = tuple[int, str, str]


def cli(root: Path, *words: str) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run(["-C", str(root), *words])
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def wrong(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after its first run with a row number as item column."""
    folder = SimulatedShop(seed=0, users=40, items=30).write(tmp_path_factory.mktemp("wrong") / "shop")
    rows = pl.read_csv(folder / "events.csv").rename({"item_id": "sku"})
    rows.with_row_index("line").write_csv(folder / "events.csv")
    toml = (folder / "recloop.toml").read_text()
    toml = toml.replace("[data.columns]\n", '[data.columns]\nitem_id = "line"\n').replace("items.csv", "")
    toml = toml.partition("[features.item")[0]
    (folder / "recloop.toml").write_text(toml + COUNTS)
    assert cli(folder, "update")[0] == 0
    return folder


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("split.quantile=0.5", "split.quantile=0.5: expected 0.9, with which data/ was prepared; try: recloop prepare"),
        ("split.k_core=3", "split.k_core=3: expected 1,"),
        ("split.validation_rows=sampled", "split.validation_rows=sampled: expected all,"),
        ("clean.burst=off", "clean.burst=off: expected "),
    ],
)
def test_train_refuses_settings_that_data_was_not_prepared_with(mistaken: Path, setting: str, said: str) -> None:
    """They decide the rows and their split, so the table would be that of other settings."""
    before = sorted((mistaken / "bundles").iterdir())
    code, _, err = cli(mistaken, "train", "popular", "--set", setting)
    assert (code, said in err) == (2, True), err
    assert sorted((mistaken / "bundles").iterdir()) == before
    assert len([*(mistaken / "runs").iterdir()]) == 1


def test_tune_refuses_settings_that_data_was_not_prepared_with(mistaken: Path) -> None:
    code, _, err = cli(mistaken, "tune", "covisitation", "--trials", "1", "--set", "split.k_core=3")
    assert (code, "split.k_core=3: expected 1, with which data/ was prepared" in err) == (2, True), err
    assert not (mistaken / "tuning").exists()


@pytest.fixture
def mistaken(wrong: Path, tmp_path: Path) -> Path:
    return shutil.copytree(wrong, tmp_path / "shop")


def correct(folder: Path) -> None:
    toml = (folder / "recloop.toml").read_text()
    (folder / "recloop.toml").write_text(toml.replace('item_id = "line"', 'item_id = "sku"'))


def put(project: Project, *events: Event) -> None:
    """Store rows as the server does."""
    with project.open_log(write=True) as log:
        log.start_at(project.open_archive().watermark)
        log.append_items([Item(item_id="i01", attributes={"name": "posted"}, received_at=5)])
        log.append_events([msgspec.structs.replace(row, rule="keep") if row.quantity == 0 else row for row in events])


def posted(number: int, item: str, user: str = "ann", **more: Any) -> Event:
    stamp = int(time.time()) * 1_000_000 - 10**9 + number * 60_000_000
    return Event(
        user_id=user, item_id=item, event_type="purchase", timestamp=stamp, received_at=stamp, event_id=f"p{number}", **more
    )  # fmt: skip


def listed(folder: Path, user: str) -> list[str]:
    code, out, err = cli(folder, "recommend", user, "--json")
    assert code == 0, err
    return [item["item_id"] for item in json.loads(out)["items"]]


# -- compared keys


def test_changed_keys_of_equal_settings_are_empty() -> None:
    config = build({"events": {"weights": {"b": 1.0, "a": 2.0}}}, environment={})
    before = json.loads(json.dumps(config_changes.recorded(config), sort_keys=True))
    assert config_changes.changed_keys(config, before) == []
    swapped = build({"events": {"weights": {"a": 2.0, "b": 1.0}}}, environment={})
    assert [one.key for one in config_changes.changed_keys(swapped, before)] == ["events.weights"], (
        "the order of rules decides"
    )


@pytest.mark.parametrize(
    ("setting", "effect"),
    [
        ("data.columns.item_id=sku", Effect.RESTART), ("data.events=other.csv", Effect.RESTART),
        ('data.timezone="Europe/Berlin"', Effect.RESTART), ('clean.burst="off"', Effect.RESTART),
        ('clean.keep=""', Effect.RESTART), ("split.quantile=0.8", Effect.RESTART), ("split.k_core=2", Effect.RESTART),
        ('events.positive=["purchase"]', Effect.RETRAIN), ("features.dim=32", Effect.RETRAIN),
        ("features.item.price.from=price", Effect.RETRAIN), ("model.name=popular", Effect.RETRAIN),
        ("model.layers=3", Effect.RETRAIN), ("baselines.half_life=30", Effect.RETRAIN), ("train.lr=0.01", Effect.RETRAIN),
        ("split.filter_seen=true", Effect.RETRAIN), ("serve.segment=age", Effect.RETRAIN),
        ("placement.home.n=5", Effect.NEXT), ("train.seed=3", Effect.NEXT), ("clean.max_removed=0.5", None), ("train.time_budget=1h", None),
        ("serve.port=9000", None), ("data.columns.name=title", None),
    ],
)  # fmt: skip
def test_changed_key_has_its_effect(setting: str, effect: Effect | None) -> None:
    before = config_changes.recorded(Config())
    found = config_changes.changed_keys(build({}, [setting], environment={}), before)
    assert {one.effect for one in found} == (set() if effect is None else {effect})


def test_changed_keys_of_an_unrecorded_key_compare_with_its_default() -> None:
    before = config_changes.recorded(Config())
    del before["split.targets"]
    assert config_changes.changed_keys(Config(), before) == []
    found = config_changes.changed_keys(build({}, ["split.targets=next"], environment={}), before)
    assert found == [Change("split.targets", "successive", "next")]
    assert config_changes.changed_keys(build({}, ["split.targets=next"], environment={}), None) == []


# -- a new first run


@pytest.fixture(scope="module")
def corrected(wrong: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A project after the update that follows the correction; the update's JSON and stderr."""
    folder = shutil.copytree(wrong, tmp_path_factory.mktemp("corrected") / "shop")
    assert all(item.isdigit() for item in listed(folder, "u01"))
    correct(folder)
    code, out, err = cli(folder, "update", "--json")
    assert code == 0, err
    return folder, json.loads(out), " ".join(err.split())


def test_update_after_the_item_column_was_corrected_restarts(corrected: tuple[Path, dict[str, Any], str]) -> None:
    folder, tree, err = corrected
    assert tree["verdict"] == "restarted"
    assert tree["changed"] == ["data.columns.item_id"]
    assert "data.columns.item_id: line -> sku" in err
    assert not (folder / ".restart").exists()
    assert len(list((folder / "runs").iterdir())) == 2


def test_restart_recommends_the_items_of_the_corrected_column(corrected: tuple[Path, dict[str, Any], str]) -> None:
    items = listed(corrected[0], "u01")
    assert items
    assert all(item.startswith("i") for item in items)


def test_restart_refuses_the_bundles_of_the_earlier_data(corrected: tuple[Path, dict[str, Any], str]) -> None:
    folder, tree, _ = corrected
    project = open_project(folder)
    assert project.live_bundle_id() == tree["bundle"]
    assert project.load_bundle().manifest.parent is None
    states = {row["bundle"]: row["state"] for row in loading.status(project)["bundles"]}
    assert sorted(states.values()) == ["live", "refused"]
    assert cli(folder, "rollback", "--reason", "x")[0] == 1, "a bundle of other items cannot be a rollback target"
    assert json.loads(cli(folder, "update", "--json")[1])["verdict"] == "nothing"


@pytest.fixture(scope="module")
def restarted(wrong: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, int]:
    """A project with posted rows after a new first run, and the last seq of that run.

    Rows 1 to 6 were archived before the restart, and rows 7 and 8 were not.
    """
    folder = shutil.copytree(wrong, tmp_path_factory.mktemp("restarted") / "shop")
    project = open_project(folder)
    put(project, *(posted(n, f"i{n:02d}") for n in range(1, 6)), posted(6, "i09", quantity=0.0))
    assert loop.update(open_project(folder, ["update.input_check=false"])).to_seq > 0  # archives where it passes
    put(open_project(folder), posted(7, "i07"), posted(8, "i08", user="bob"))
    correct(folder)
    outcome = loop.update(open_project(folder))
    assert outcome.verdict == "restarted"
    return project, outcome.to_seq


def test_restart_keeps_archived_and_unarchived_posted_rows(restarted: tuple[Project, int]) -> None:
    archive = restarted[0].open_archive()
    mine = archive.events().filter(pl.col("event_id").str.starts_with("p") & pl.col("user_id").is_in(["ann", "bob"]))
    assert mine["event_id"].to_list() == ["p1", "p2", "p3", "p4", "p5", "p7", "p8"]
    assert mine["item_id"].to_list() == ["i01", "i02", "i03", "i04", "i05", "i07", "i08"]
    assert mine["seq"].min() > archive.manifest.imported  # type: ignore[operator]
    assert archive.quarantine().filter(pl.col("event_id") == "p6")["rule"].to_list() == ["keep"]
    items = archive.items()
    assert items is not None
    assert items["item_id"].to_list() == ["i01", "i01"], "every posted version"


def test_restart_archives_every_row_of_the_log(restarted: tuple[Project, int]) -> None:
    project, to_seq = restarted
    assert to_seq == project.open_archive().watermark == loading.log_range(project)[1]
    with project.open_log() as log:
        assert log.is_empty()
    assert listed(project.root, "bob")[0] == "i08", "the user's history is kept"


def test_restart_twice_gives_the_same_rows_and_numbers(restarted: tuple[Project, int]) -> None:
    project, _ = restarted
    before = project.open_archive().events()
    assert loop.update(open_project(project.root), restart=True).verdict == "restarted"
    assert project.open_archive().events().equals(before)


def test_verify_counts_decisions_of_earlier_data_separately(mistaken: Path) -> None:
    from recloop.serve.service import Service

    def answer(user: str) -> None:
        service = Service(open_project(mistaken))
        query = Query(user_id=user, now=now(), request_id=f"r-{user}")
        service.recommend(query, started=time.perf_counter())
        service.close()

    answer("u01")
    correct(mistaken)
    loop.update(open_project(mistaken))
    answer("u02")
    code, out, _ = cli(mistaken, "verify", "--json")
    found = json.loads(out)
    assert (code, found["checked"], found["equal"], found["earlier"], found["unexplained"]) == (0, 2, 1, 1, 0)
    assert "1 from before the last new first run" in cli(mistaken, "verify")[1]


def test_restart_during_serving_is_refused_and_changes_nothing(mistaken: Path) -> None:
    before = {path: path.read_bytes() for path in (mistaken / "data").rglob("*") if path.is_file()}
    correct(mistaken)
    with locks.writer_lock(mistaken, "serve"):
        code, out, err = cli(mistaken, "update")
    assert (code, out) == (3, "")
    assert "data.columns.item_id: line -> sku" in err
    assert "stop it, run recloop update" in err
    assert {path: path.read_bytes() for path in (mistaken / "data").rglob("*") if path.is_file()} == before
    assert not (mistaken / ".restart").exists()


def test_restart_with_an_unreadable_column_changes_nothing(mistaken: Path) -> None:
    live = open_project(mistaken).live_bundle_id()
    toml = (mistaken / "recloop.toml").read_text()
    (mistaken / "recloop.toml").write_text(toml.replace('item_id = "line"', 'item_id = "skus"'))
    code, _, err = cli(mistaken, "update")
    assert (code, "nearest: sku" in err) == (2, True)
    assert not (mistaken / ".restart").exists()
    assert open_project(mistaken).live_bundle_id() == live
    (mistaken / "recloop.toml").write_text(toml)
    assert json.loads(cli(mistaken, "update", "--json")[1])["verdict"] == "nothing"


def interrupt(monkeypatch: pytest.MonkeyPatch, step: str, when: str) -> None:
    """Interrupt the restart before or after one of its steps, as a kill does."""
    real = getattr(restart, step)

    def dying(*words: Any) -> None:
        if when == "after":
            real(*words)
        raise KeyboardInterrupt

    monkeypatch.setattr(restart, step, dying)


@pytest.mark.parametrize(
    ("step", "when"),
    [
        pytest.param("_replace_log", "before", marks=pytest.mark.slow),
        pytest.param("swap_folder", "before", marks=pytest.mark.slow),
        ("swap_folder", "after"),
        pytest.param("_release", "before", marks=pytest.mark.slow),
        pytest.param("_release", "after", marks=pytest.mark.slow),
    ],
)
def test_restart_killed_at_any_step_is_completed_by_the_next_update(
    mistaken: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    put(open_project(mistaken), posted(1, "i01"))
    correct(mistaken)
    with monkeypatch.context() as patch:
        interrupt(patch, step, when)
        assert cli(mistaken, "update")[0] == 130
    code, _, err = cli(mistaken, "recommend", "u01")
    assert (code, "recloop update" in err) == (2, True), "neither the old nor the new data is complete"
    assert cli(mistaken, "update")[0] == 0
    project = open_project(mistaken)
    assert listed(mistaken, "ann")[0] == "i01"
    assert project.load_bundle().manifest.data.fingerprint == loading.manifest(project).fingerprint
    assert json.loads(cli(mistaken, "update", "--json")[1])["verdict"] == "nothing"
    assert not {*(mistaken / "store").glob("restart*"), *mistaken.glob(".restart"), *mistaken.glob("data.*")}


def test_update_after_prepare_and_train_with_other_columns_restarts(mistaken: Path) -> None:
    correct(mistaken)
    assert cli(mistaken, "prepare")[0] == 0
    assert cli(mistaken, "train")[0] == 0
    done = loop.update(open_project(mistaken))
    assert done.verdict == "restarted"
    states = releases.read_state(open_control("sqlite:///store/control.db", mistaken)).states
    live = open_project(mistaken).load_bundle().id  # the bundle of `train` if both were made in the same second
    assert len(states) > 1
    assert {name for name, (state, _) in states.items() if state != "refused"} == {live}


# -- a full retrain


def test_update_with_a_changed_model_retrains_in_full(project: Project) -> None:
    toml = project.file.read_text().replace('name = "covisitation"', 'name = "mf"')
    project.file.write_text(
        toml.replace("history = 1.0, neighbours = 0.5, popular = 0.25", "model = 1.0, popular = 0.25")
    )
    code, out, err = cli(project.root, "update", "--json")
    tree = json.loads(out)
    assert "(model.name: covisitation -> mf" in " ".join(err.split())
    assert (code, tree["verdict"]) in {(0, "registered"), (1, "refused")}
    assert set(tree["changed"]) == {"model.name", "placement.home.weights.history", "placement.home.weights.neighbours",
                                    "placement.home.weights.model"}  # fmt: skip
    if tree["bundle"]:
        child = open_project(project.root).load_bundle(tree["bundle"])
        assert (child.manifest.model.name, child.manifest.train.mode) == ("mf", "full")
        code, out, _ = cli(project.root, "update")
        assert code == 0
        assert f"next: recloop promote {tree['bundle']}" in " ".join(out.split()), (
            "an unchanged recipe is not trained again"
        )


def test_update_with_a_changed_placement_suggests_full(project: Project) -> None:
    project.file.write_text(project.file.read_text().replace("n = 3", "n = 4"))
    code, out, _ = cli(project.root, "update")
    assert code == 0
    assert "placement.cart.n" in out
    assert "next: recloop update --full" in out
    tree = json.loads(cli(project.root, "update", "--full", "--json")[1])
    assert tree["verdict"] in {"registered", "refused"}
    if tree["bundle"]:
        policy = open_project(project.root).load_bundle(tree["bundle"]).policy
        assert policy.placements["cart"].n == 4
