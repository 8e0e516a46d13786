"""Exports: the split with dense indices, and the log as a new project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recloop import loop
from recloop.data.entities import read_items
from recloop.data.export import export, split_tables
from recloop.data.prepare import load, prepare
from recloop.errors import UserError
from recloop.features.state_history import StateHistory
from recloop.project import Project, open_project
from recloop.recommend import loading

ProjectFactory = Callable[..., Project]
TOML = """\
[data]
items = "items.jsonl"
[data.columns]
user_id = "who"
item_id = "sku"
timestamp = "at"
event_type = "kind"
group_id = "basket"
quantity = "n"
[events]
positive = ["buy"]
history = ["view"]
[clean]
exclude_items = ["POST"]
[features.item.kinds]
kind = "categories"
separator = "|"
[model]
name = "popular"
"""


@pytest.fixture
def shop(project_factory: ProjectFactory, tmp_path: Path) -> Project:
    """Users, guests, returns, postage and items with several categories."""
    lines = ["who,sku,at,kind,basket,n"]
    for day in range(1, 21):
        for user in range(1, 6):
            lines.append(f"u{user},s{(day + user) % 6},2025-01-{day:02}T0{user}:00:00.123456,view,,")
            lines.append(f"u{user},s{(day * user) % 6},2025-01-{day:02}T1{user}:00:00,buy,b{day}-{user},2")
        lines.append(f",s{day % 6},2025-01-{day:02}T20:00:00,buy,g{day},1")
        lines.append(f"u1,POST,2025-01-{day:02}T21:00:00,buy,p{day},1")
    lines.append("u1,s1,2025-01-21T10:00:00,buy,c1,-2")
    rows = "".join(f'{{"sku": "s{n}", "name": "Item {n}", "kinds": "a|b{n % 2}"}}\n' for n in range(6))
    (tmp_path / "items.jsonl").write_text(rows)
    project = project_factory("\n".join(lines) + "\n", toml=TOML)
    prepare(project)
    return project


def test_split_tables_have_indices_of_the_ids_before_the_cut(shop: Project) -> None:
    data = load(shop)
    tables = split_tables(data)
    assert [len(tables[name]) for name in ("train", "valid", "test")] == [
        len(data.train),
        len(data.valid),
        len(data.test),
    ]
    assert tables["users"]["user_id"].to_list() == ["u1", "u2", "u3", "u4", "u5"]
    assert tables["items"]["item_ix"].to_list() == [1, 2, 3, 4, 5, 6]
    train = tables["train"]
    assert set(train.filter(pl.col("user_id").str.starts_with("guest:"))["user_ix"]) == {0}
    joined = train.filter(pl.col("user_ix") > 0).join(tables["users"], on="user_ix")
    assert (joined["user_id"] == joined["user_id_right"]).all()


def test_export_split_writes_equal_parquet_and_hdf5(shop: Project, tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    done = export(shop, "split", "parquet", tmp_path / "parquet")
    assert done.rows["items"] == 6
    export(shop, "split", "hdf5", tmp_path / "hdf5")
    with h5py.File(tmp_path / "hdf5" / "split.h5") as store:
        for name in ("train", "valid", "test", "users", "items"):
            frame = pl.read_parquet(tmp_path / "parquet" / f"{name}.parquet")
            assert set(store[name]) == set(frame.columns)
            for column in ("user_ix", "item_ix"):
                if column in frame.columns:
                    assert np.array_equal(store[name][column][:], frame[column].to_numpy())
        assert store["items"]["item_id"].asstr()[:].tolist() == [f"s{n}" for n in range(6)]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_export_log_gives_a_project_with_equal_events_states_and_items(
    shop: Project, tmp_path: Path, form: str
) -> None:
    done = export(shop, "log", form, tmp_path / "new")
    new = open_project(tmp_path / "new")
    report = prepare(new).report
    old, again = load(shop), load(new)
    assert (report.rejected, report.removed, report.kept) == (0, {}, done.rows["events"])
    kept = ["user_id", "item_id", "timestamp", "event_type", "quantity", "group_id", "stamp", "label", "use", "moment"]
    assert again.events.select(kept).equals(old.events.select(kept))
    users = [f"u{n}" for n in range(1, 6)]
    states = [StateHistory(data.events).states(users, [10**9] * 5) for data in (old, again)]
    assert [states[0].digest(b) for b in range(5)] == [states[1].digest(b) for b in range(5)]
    items = [read_items(project) for project in (shop, new)]
    assert items[0] is not None
    assert items[1] is not None
    assert items[1].frame.sort("item_id")["attributes"].equals(items[0].frame.sort("item_id")["attributes"])


@pytest.mark.slow
def test_export_log_gives_a_project_with_equal_lists(shop: Project, tmp_path: Path) -> None:
    export(shop, "log", "jsonl", tmp_path / "new")
    new = open_project(tmp_path / "new")
    bundles = []
    for project in (shop, new):
        loop.first_run(project)
        bundles.append(project.load_bundle())
        assert loading.status(project)["live"]
    assert bundles[0].items.ids.ids == bundles[1].items.ids.ids
    assert bundles[0].policy == bundles[1].policy
    assert bundles[0].arrays.keys() == bundles[1].arrays.keys()
    assert all(np.array_equal(array, bundles[1].arrays[name]) for name, array in bundles[0].arrays.items())


@pytest.mark.parametrize(
    ("what", "form", "name"),
    [("rows", "parquet", "export"), ("split", "jsonl", "--format"), ("log", "hdf5", "--format")],
)
def test_export_of_an_unknown_kind_names_the_choices(
    shop: Project, tmp_path: Path, what: str, form: str, name: str
) -> None:
    with pytest.raises(UserError) as refused:
        export(shop, what, form, tmp_path / "new")
    assert refused.value.name == name
    assert not (tmp_path / "new").exists()


def test_export_into_a_folder_with_files_is_refused(shop: Project, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="new or empty folder"):
        export(shop, "log", "jsonl", tmp_path)
