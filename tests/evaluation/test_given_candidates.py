"""Given candidates: each target is ranked among the items of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recloop import loop
from recloop.data.prepare import load
from recloop.errors import UserError
from recloop.pipeline.training_steps import evaluate_bundles
from recloop.project import Project, open_project
from recloop.simulation.shop import SimulatedShop

SETS = [
    "split.protocol=leave-one-out",
    "split.ties=row",
    "split.filter_seen=true",
    "evaluate.k=[5]",
    "evaluate.candidates=items.parquet",
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with a bundle and 15 drawn items for each user of its test."""
    folder = tmp_path_factory.mktemp("given")
    SimulatedShop(seed=0, users=120, items=80).write(folder)
    project = open_project(folder, SETS)
    loop.collect(project)
    data = load(project)
    items = data.train["item_id"].unique().sort().to_list()
    rng = np.random.default_rng(0)
    drawn = [rng.choice(items, 15, replace=False).tolist() for _ in range(len(data.test))]
    given = pl.DataFrame({"user_id": data.test["user_id"], "item_id": drawn}).explode("item_id")
    given.write_parquet(folder / "items.parquet")
    loop.train(project, model="popular")
    return project


def bundle_of(project: Project) -> str:
    return next(path.name for path in project.bundles.iterdir())


def test_evaluate_with_given_candidates_ranks_each_target_among_them(project: Project) -> None:
    table = evaluate_bundles(project, [bundle_of(project)], loop.NullProgress())
    data = load(project)
    popular = project.load_bundle(bundle_of(project)).arrays["popular"].tolist()
    ids = project.load_bundle(bundle_of(project)).items.ids
    given = dict(pl.read_parquet(project.root / "items.parquet").group_by("user_id").agg("item_id").iter_rows())
    rows = pl.concat([data.train, data.valid]).filter(pl.col("label") > 0)
    past = dict(rows.group_by("user_id").agg("item_id").iter_rows())
    hits = []
    for user, target in data.test.select("user_id", "item_id").iter_rows():
        seen = {*ids.lookup(past[user]).tolist()}
        rivals = {*ids.lookup(given[user]).tolist()} - seen
        ranks = [item for item in popular if item in rivals or item == ids.index(target)]
        hits.append(ids.index(target) in ranks[:5] and ids.index(target) not in seen)
    row = {row.row.model: row for row in table.rows}["popular"]
    assert row.row.values["all", "HR@5"].mean() == pytest.approx(np.mean(hits))
    assert 0.1 < np.mean(hits) < 0.9
    assert table.protocol.candidates == 15
    assert table.protocol.to_json()["candidates"] == 15


def test_evaluate_without_the_items_of_a_user_names_the_user(project: Project) -> None:
    given = pl.read_parquet(project.root / "items.parquet")
    user = load(project).test["user_id"][0]
    given.filter(pl.col("user_id") != user).write_parquet(project.root / "part.parquet")
    part = open_project(project.root, [*SETS, "evaluate.candidates=part.parquet"])
    with pytest.raises(UserError, match=f"evaluate.candidates=no row of user {user}"):
        evaluate_bundles(part, [bundle_of(project)], loop.NullProgress())


def test_evaluate_with_a_missing_file_of_candidates_names_its_columns(project: Project) -> None:
    missing = open_project(project.root, [*SETS, "evaluate.candidates=none.parquet"])
    with pytest.raises(UserError, match="with the columns user_id and item_id"):
        evaluate_bundles(missing, [bundle_of(project)], loop.NullProgress())


def test_evaluate_with_candidates_under_a_temporal_split_is_refused(tmp_path: Path) -> None:
    SimulatedShop(seed=0, users=60, items=40).write(tmp_path)
    temporal = open_project(tmp_path, ["evaluate.candidates=items.parquet"])
    loop.collect(temporal)
    with pytest.raises(UserError, match=r"split\.protocol=leave-one-out"):
        loop.train(temporal, model="popular")
