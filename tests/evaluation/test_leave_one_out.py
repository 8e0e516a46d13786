"""Leave-one-out by hand and on ML-1M: the split, the target's rank, the published metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recloop import loop
from recloop.config import Split
from recloop.data.clean import LABELLED
from recloop.data.prepare import load
from recloop.data.split import split
from recloop.errors import UserError
from recloop.evaluation.leave_one_out import TargetRanks
from recloop.pipeline.training_steps import evaluate_bundles
from recloop.project import open_project
from recloop.recommend.top_k import TopK
from recloop.simulation.shop import SimulatedShop

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
PAPERS = Split(protocol="leave-one-out", ties="row", filter_seen=True)
SETS = ["split.protocol=leave-one-out", "split.ties=row", "split.filter_seen=true"]


def frame(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    """Labelled rows of (user, item, label) in file order, each a separate moment."""
    made = []
    for seq, (user, item, label) in enumerate(rows, 1):
        row = dict.fromkeys(LABELLED)
        row |= {"seq": seq, "user_id": user, "item_id": item, "timestamp": seq, "stamp": seq, "label": label}
        made.append(row)
    return pl.DataFrame(made, schema=LABELLED)


def test_split_leave_one_out_tests_the_last_and_validates_the_one_before() -> None:
    rows = [("u", "a", 1), ("v", "a", 1), ("u", "b", 1), ("u", "c", 1), ("v", "b", 1), ("u", "d", 1), ("u", "x", 0)]
    parts = split(frame(rows), PAPERS)
    held = [(part["user_id"].to_list(), part["item_id"].to_list()) for part in parts[:3]]
    assert held == [
        (["u", "v", "u", "v", "u"], ["a", "a", "b", "b", "x"]),  # v has two rows: training only
        (["u"], ["c"]),
        (["u"], ["d"]),
    ]
    assert parts.cut == 8


def test_split_leave_one_out_without_validation_users_trains_on_all_but_the_test() -> None:
    rows = [("u", "a", 1), ("u", "b", 1), ("u", "c", 1)]
    parts = split(frame(rows), PAPERS.model_copy(update={"validation_users": 0}))
    assert [part["item_id"].to_list() for part in parts[:3]] == [["a", "b"], [], ["c"]]


def test_split_leave_one_out_with_sampled_validation_rows_trains_on_those_of_other_users() -> None:
    rows = [(f"u{user}", item, 1) for user in range(20) for item in "abc"]
    sampled = {"validation_rows": "sampled", "validation_users": 5}
    parts = split(frame(rows), PAPERS.model_copy(update=sampled))
    held = set(parts.valid["user_id"])
    assert (len(held), set(parts.valid["item_id"]), len(parts.test)) == (5, {"b"}, 20)
    assert {user for user, item, *_ in parts.train.select("user_id", "item_id").rows() if item == "b"} == {
        f"u{user}" for user in range(20)
    } - held
    more = split(frame(rows), PAPERS.model_copy(update={**sampled, "validation_users": 6}))
    assert held < set(more.valid["user_id"])
    every = split(frame(rows), PAPERS.model_copy(update={**sampled, "validation_users": 50}))
    assert len(every.valid) == 20


@pytest.mark.parametrize("wrong", [{"ties": "moment"}, {"filter_seen": False}])
def test_split_leave_one_out_with_other_settings_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"split\.protocol=leave-one-out"):
        split(frame([("u", "a", 1)] * 3), PAPERS.model_copy(update=wrong))


def test_split_leave_one_out_without_a_user_with_three_rows_raises() -> None:
    with pytest.raises(UserError, match="three positive rows"):
        split(frame([("u", "a", 1), ("u", "b", 1)]), PAPERS)


def test_target_ranks_share_ties() -> None:
    """Five targets for scores 3 2 2 1: first, tied, last, in the fallback, none."""
    found = TopK(
        np.tile(np.array([[7, 4, 5, 2]], np.int32), (5, 1)), np.tile(np.array([[3, 2, 2, 1]], np.float32), (5, 1))
    )
    lists = np.tile(np.array([[7, 4, 5, 2, 9]]), (5, 1))
    target = np.array([7, 5, 2, 9, 0])
    ranks = TargetRanks.empty(5)
    ranks.record(slice(0, 5), target, found, lists, ordered=False)
    assert ranks.above[:4].tolist() == [0, 1, 3, 4]
    assert ranks.tied[:4].tolist() == [1, 2, 1, 1]
    assert ranks.values(2, np.ones(5, dtype=bool))["HR"].tolist() == [1.0, 0.5, 0.0, 0.0, 0.0]
    ordered = TargetRanks.empty(5)
    ordered.record(slice(0, 5), target, found, lists, ordered=True)
    assert ordered.above[:4].tolist() == [0, 2, 3, 4]
    assert np.isnan(ordered.values(2, target > 0)["NDCG"][4])


def test_train_with_leave_one_out_evaluates_one_target_per_user(tmp_path: Path) -> None:
    SimulatedShop(seed=0).write(tmp_path)
    project = open_project(tmp_path, SETS)
    loop.collect(project)
    table = loop.train(project, model="covisitation").table
    assert table.protocol.name == "leave-one-out"
    assert table.protocol.moments == table.protocol.users
    values = {row.row.model: row.estimates["all", "HR@10"].value for row in table.rows}
    assert values["covisitation"] > values["popular"] * 0.8
    data = load(project)
    assert len(data.test) == len(data.valid) == table.protocol.users
    bundle = next(project.bundles.iterdir()).name
    with pytest.raises(UserError, match=r"split\.protocol=temporal: expected leave-one-out"):
        evaluate_bundles(open_project(tmp_path), [bundle], loop.NullProgress())


@pytest.mark.data
def test_covisitation_on_ml_1m_equals_the_published_metrics(tmp_path: Path) -> None:
    """HR@10 0.260, NDCG@10 0.151 with histories cut to 200, as in the SASRec papers."""
    log = pl.read_parquet(DATA / "sasrec-ml-1m.parquet")
    rows = log.select("user_id", "item_id", timestamp=1_000_000_000 + pl.col("pos"))
    rows.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "recloop.toml").write_text('[data]\nevents = "log.parquet"\n[clean]\nburst = "off"\n')
    project = open_project(tmp_path, [*SETS, 'evaluate.baselines=["popular", "covisitation"]'])
    loop.collect(project)
    table = loop.train(project, model="covisitation").table
    found = {row.row.model: row for row in table.rows}["covisitation"]
    assert table.protocol.users == 6_040
    assert found.estimates["all", "HR@10"].value == pytest.approx(0.260, abs=0.0015)
    assert found.estimates["all", "NDCG@10"].value == pytest.approx(0.151, abs=0.001)
    assert found.row.seconds < 60
