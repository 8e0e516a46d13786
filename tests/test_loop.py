"""The first run on the simulated shop: files, refusals, and metrics of the served lists."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from recloop import bundle as bundles
from recloop import loop
from recloop.data.prepare import load
from recloop.errors import Locked
from recloop.features.state_history import StateHistory
from recloop.project import open_project
from recloop.recommend import loading
from recloop.recommend.catalog import Catalog
from recloop.recommend.golden import check_golden
from recloop.recommend.recommender import Recommender
from recloop.records import Query
from recloop.simulation.shop import SimulatedShop
from recloop.storage import locks
from recloop.testing.states import UserActs, states_of

COUNTS = ('model.name="covisitation"',)


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, loop.FirstRun]:
    folder = SimulatedShop(seed=0).write(tmp_path_factory.mktemp("loop") / "shop")
    return folder, loop.first_run(open_project(folder, COUNTS))


def test_first_run_writes_a_whole_project(first_run: tuple[Path, loop.FirstRun]) -> None:
    folder, made = first_run
    project = open_project(folder)
    assert project.live_bundle_id() == made.bundle.id
    status = loading.status(project)
    assert [row["state"] for row in status["bundles"]] == ["live"]
    assert status["last_seq"] == status["watermark"] == made.prepared.watermark
    for name in ("data/manifest.json", "reports/evaluation.json", "store/control.db", "store/log.db"):
        assert (folder / name).exists(), name
    assert len(list(folder.glob("store/states-*"))) == 1
    run = next((folder / "runs").iterdir())
    assert json.loads((run / "metrics.json").read_text())["bundle"] == made.bundle.id
    assert not [path for path in folder.rglob("*") if path.name.startswith(".stage") or path.suffix == ".tmp"]


def test_first_run_rows_rank_by_the_simulated_truth(first_run: tuple[Path, loop.FirstRun]) -> None:
    ndcg = {row.row.model: row.estimates["all", "NDCG@10"].value for row in first_run[1].table.rows}
    assert ndcg["bought_before"] > ndcg["popular"] + 0.05
    assert ndcg["served"] > ndcg["popular"] + 0.05


def test_first_run_metrics_equal_those_of_served_lists(first_run: tuple[Path, loop.FirstRun]) -> None:
    """The hit rate of `served`, recomputed from single answers of the stored bundle."""
    folder, made = first_run
    project = open_project(folder, COUNTS)
    data, bundle = load(project), project.load_bundle()
    recommender = Recommender(bundle, Catalog.from_frames([data.items]))
    timeline = StateHistory(data.events, data.users)
    positive = data.test.filter(pl.col("label") > 0)
    moments = positive.group_by("user_id", "stamp").agg(pl.col("item_id"), pl.col("seq").min())
    hits: dict[str, list[float]] = {}
    for user, stamp, items, _ in moments.iter_rows():
        first = data.test.filter((pl.col("user_id") == user) & (pl.col("stamp") == stamp))["seq"].min()
        state = timeline.states([user], [int(first) - 1], [stamp])  # type: ignore[arg-type]
        answer = recommender.recommend(state, [Query(user_id=user, now=stamp, n=10)])[0]
        hits.setdefault(user, []).append(float(bool(set(answer.items) & set(items))))
    rate = sum(sum(one) / len(one) for one in hits.values()) / len(hits)
    served = next(row for row in made.table.rows if row.row.model == "served")
    assert served.estimates["all", "HR@10"].value == pytest.approx(rate, abs=1e-9)


def test_first_run_repeated_gives_equal_bytes(first_run: tuple[Path, loop.FirstRun], tmp_path: Path) -> None:
    folder, made = first_run
    again = shutil.copytree(
        folder, tmp_path / "shop", ignore=shutil.ignore_patterns("data", "bundles", "store", "runs")
    )
    other = loop.first_run(open_project(again, COUNTS))
    files = made.bundle.manifest.files
    assert other.bundle.manifest.files == files
    for name in ("manifest.json", "split/train.parquet", "quarantine.parquet"):
        assert (folder / "data" / name).read_bytes() == (again / "data" / name).read_bytes(), name


def test_first_run_during_an_update_raises_locked(first_run: tuple[Path, loop.FirstRun]) -> None:
    project = open_project(first_run[0], COUNTS)
    with locks.run_lock(project.root, "update"), pytest.raises(Locked, match="update"):
        loop.first_run(project)


def test_refit_learns_test_rows_and_keeps_the_metrics(simulated_shop: SimulatedShop, tmp_path: Path) -> None:
    folder = simulated_shop.write(tmp_path / "shop")
    project = open_project(folder, [*COUNTS, "train.refit=true"])
    loop.collect(project)
    trained = loop.train(project)
    data = load(project)
    bundle = bundles.load(project.bundles / trained.bundle.id)
    check_golden(bundle)
    assert bundle.manifest.train.refit is True
    assert len(bundle.items) == data.events.filter(pl.col("label") > 0)["item_id"].n_unique()
    assert int(bundle.items.count.sum()) == int((data.events["label"] > 0).sum())
    assert bundle.metrics["rows"]


def test_recommend_for_an_unseen_user_excludes_disliked_items(first_run: tuple[Path, loop.FirstRun]) -> None:
    bundle = first_run[1].bundle
    recommender = Recommender(bundle, Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes))
    query = Query(user_id="new", now=bundle.cut, n=10)
    first = recommender.recommend(states_of(["new"], [UserActs()]), [query])[0]
    assert len(first.items) == 10
    angry = UserActs()
    angry.add(first.items[0], bundle.cut, None, -1)
    assert first.items[0] not in recommender.recommend(states_of(["new"], [angry]), [query])[0].items


TURN_WITHOUT_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lightning", "onnx", "onnxscript"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

sys.meta_path.insert(0, Refuse())
from recloop.cli import run
sys.exit(run(["-C", sys.argv[1], "update"]) or run(["-C", sys.argv[1], "recommend", "u001", "--json"]))
"""


def test_first_run_without_torch_uses_baselines(simulated_shop_folder: Path) -> None:
    """The configured network is skipped with one line that names the extra."""
    done = subprocess.run(
        [sys.executable, "-c", TURN_WITHOUT_TORCH, str(simulated_shop_folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert 'pip install "recloop[train]"' in done.stderr
    assert len(json.loads(done.stdout.splitlines()[-1])["items"]) == 10
    assert open_project(simulated_shop_folder).load_bundle().manifest.model.name == "counts"
