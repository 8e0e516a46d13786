"""Updates of each network model on a small shop, end to end, and after a kill at each step."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from arriving import STEPS, die_after, post

from recloop import bundle as bundles
from recloop import loop
from recloop.bundle import Bundle
from recloop.data.prepare import load
from recloop.project import Project, open_project
from recloop.recommend.golden import check_golden
from recloop.release import transitions
from recloop.serve import offline
from recloop.simulation.shop import SimulatedShop
from recloop.training.warm_start import MIN_ROW_EVENTS

SETS = (
    "features.dim=16", "features.max_history=20", "train.epochs=2", "split.validation_users=50",
    "release.gates.max_ndcg_loss=9", "release.gates.max_slice_loss=9", "release.gates.max_latency_ratio=99",
    "release.gates.max_cold_coverage_loss=1", "release.refresh=manual", "update.input_check=false",
)  # fmt: skip
"""Small models and gates that pass everything: the tests check what an update makes, not its quality."""
OPTIONS = {
    "mf": ("model.dim=16",),
    "sasrec": ("model.blocks=1", "model.heads=1"),
    "gru4rec": ("model.hidden=16",),
    "two_tower": ("model.hidden=16", "model.uniform=32"),
    "neumf": ("model.hidden=16",),
}
GRAPHS = {
    "mf": [],
    "sasrec": ["user.onnx"],
    "gru4rec": ["user.onnx"],
    "two_tower": ["item.onnx", "user.onnx"],
    "neumf": ["rank.onnx"],
}
KEPT = 0.85
NEW = ("new-often", "new-once")


def settings(model: str) -> list[str]:
    return [f"model.name={model}", *SETS, *OPTIONS[model]]


def started_project(folder: Path, model: str) -> Project:
    """A project after its first run with the rest of the log and two new items."""
    world = SimulatedShop(seed=0, users=120, items=60, days=120)
    world.write(folder)
    whole = pl.read_csv(folder / "events.csv", schema_overrides={"event_id": pl.String})
    kept = int(KEPT * len(whole))
    whole[:kept].write_csv(folder / "events.csv")
    project = open_project(folder, settings(model))
    loop.first_run(project)
    rows = world.events()[kept:]
    bought = rows.with_row_index("n").filter(pl.col("event_type") == "purchase")["n"]
    often, once = bought[: MIN_ROW_EVENTS + 1].to_list(), bought[MIN_ROW_EVENTS + 1]
    item = pl.when(pl.int_range(pl.len()).is_in(often)).then(pl.lit(NEW[0])).when(pl.int_range(pl.len()) == once)
    post(project, rows.with_columns(item.then(pl.lit(NEW[1])).otherwise("item_id").alias("item_id")))
    return project


def updated(project: Project) -> tuple[Bundle, Bundle]:
    """Run an update; return the live bundle and its child."""
    live = project.load_bundle()
    done = loop.update(project)
    assert done.verdict == "registered", done.reason
    assert done.new_items == len(set(NEW) | (set(new_items(project)) - set(live.items.ids.ids)))
    return live, project.load_bundle(done.bundle or "")


def new_items(project: Project) -> list[str]:
    return load(project).events["item_id"].unique().to_list()


@dataclass
class NetworkUpdate:
    """A project with a live network and its child after an update."""

    model: str
    project: Project
    live: Bundle
    child: Bundle


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=() if name == "mf" else pytest.mark.slow) for name in OPTIONS]
)
def network_update(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NetworkUpdate:
    model: str = request.param
    if model != "mf":
        pytest.importorskip("torch")
    project = started_project(tmp_path_factory.mktemp(model) / "shop", model)
    return NetworkUpdate(model, project, *updated(project))


def test_update_of_each_network_keeps_settings_and_indices(network_update: NetworkUpdate) -> None:
    live, child = network_update.live, network_update.child
    assert child.manifest.parent == live.id
    assert child.manifest.model.name == network_update.model
    assert child.manifest.model.config == live.manifest.model.config
    assert child.items.ids.ids[: len(live.items)] == live.items.ids.ids, "a raw id keeps its index"
    assert set(NEW) <= set(child.items.ids.ids[len(live.items) :])
    assert child.fields.to_json() == live.fields.to_json()


def test_update_of_each_network_changes_trained_rows(network_update: NetworkUpdate) -> None:
    live, child = network_update.live, network_update.child
    vectors = child.arrays["item_vectors"]
    assert vectors.shape == (len(child.items) + 1, live.arrays["item_vectors"].shape[1])
    assert not np.array_equal(vectors[: len(live.items) + 1], live.arrays["item_vectors"]), "it has learned"
    if network_update.model == "mf":
        assert child.users is not None
        assert set(live.users.ids.ids) <= set(child.users.ids.ids)  # type: ignore[union-attr]
    else:
        assert_only_trained_rows_moved(network_update.project, live, child)


def test_updated_network_is_served_after_its_promotion(network_update: NetworkUpdate) -> None:
    project, child = network_update.project, network_update.child
    assert sorted(child.graphs) == GRAPHS[network_update.model]
    check_golden(child)
    transitions.promote(project, child.id, "live", "tried")
    answer = offline.recommend(project, "u001", 10, "home")
    assert answer["model_version"] == child.id
    assert len(answer["items"]) == 10


def assert_only_trained_rows_moved(project: Project, live: Bundle, child: Bundle) -> None:
    """Check shapes, and that padding rows and rows of rare items stay 0."""
    before, after = (bundles.load_train(project.bundles / one.id) for one in (live, child))
    assert set(after) == set(before)
    table, rows = after["network.table.weight"], len(live.items) + 1
    assert table.shape == (len(child.items) + 1, before["network.table.weight"].shape[1])
    often, once = (child.items.ids.index(item) for item in NEW)
    assert child.items.count[[often - 1, once - 1]].tolist() == [MIN_ROW_EVENTS + 1, 1]
    assert (table[once] == 0).all(), "one event is too few for an embedding row"
    assert (after["exp_avg.table.weight"][once] == 0).all()
    assert (table[often] != 0).any()
    assert np.array_equal(table[0], before["network.table.weight"][0])
    assert (table[1:rows] != before["network.table.weight"][1:]).any()
    for name in after:
        if not name.startswith(("network.table.", "exp_avg.table.", "exp_avg_sq.table.")):
            assert after[name].shape == before[name].shape, name
    assert float(after["step.table.weight"].item()) > float(before["step.table.weight"].item())
    assert child.manifest.train.mode == "warm"


@pytest.fixture(scope="module")
def sasrec(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Folders of a project before and after its update, and the child's name."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("kill")
    project = started_project(folder / "before", "sasrec")
    shutil.copytree(project.root, folder / "after")
    whole = open_project(folder / "after", settings("sasrec"))
    return project.root, whole.root, updated(whole)[1].id


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_update_killed_after_any_step_gives_the_same_network(
    sasrec: tuple[Path, Path, str], tmp_path: Path, step: str
) -> None:
    before, after, name = sasrec
    root = Path(shutil.copytree(before, tmp_path / "shop"))
    project = open_project(root, settings("sasrec"))
    die_after(step, project, settings("sasrec"))
    done = loop.update(project)
    assert done.verdict == "registered", done.reason
    made, whole = (json.loads((path / "manifest.json").read_text()) for path in (
        root / "bundles" / (done.bundle or ""), after / "bundles" / name,
    ))  # fmt: skip
    assert made["files"] == whole["files"], "weights and optimizer included"
    assert made["bundle"][-8:] == name[-8:]
    assert (root / "data" / "manifest.json").read_bytes().replace(done.bundle.encode(), name.encode()) == (
        after / "data" / "manifest.json"
    ).read_bytes()
    assert not list(root.glob("runs/*/candidate"))


@pytest.mark.slow
def test_update_with_reset_starts_a_new_optimizer(sasrec: tuple[Path, Path, str], tmp_path: Path) -> None:
    project = open_project(shutil.copytree(sasrec[0], tmp_path / "shop"), settings("sasrec"))
    live = project.load_bundle()
    done = loop.update(project, reset=True)
    assert done.verdict == "registered", done.reason
    child = project.load_bundle(done.bundle or "")
    assert child.manifest.train.optimizer == "reset"
    other = open_project(sasrec[1])
    kept = other.load_bundle(sasrec[2])
    counted = ((project, live), (project, child), (other, kept))
    before, reset_steps, on = (
        float(bundles.load_train(where.bundles / one.id)["step.table.weight"].item()) for where, one in counted
    )
    assert 0 < reset_steps == on - before, "the new optimizer counts its steps alone"
    assert kept.manifest.train.optimizer is None
    assert child.id[-8:] != kept.id[-8:]
