"""The evaluator reproduces the metrics of two independent scripts on a year of groceries."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from recloop.data.prepare import load, prepare
from recloop.demo.grocery_project import write_project
from recloop.evaluation.evaluate import evaluate
from recloop.manifest import Manifest, ModelSpec, TrainingRows
from recloop.pipeline.model_fitting import build_tables
from recloop.project import open_project
from recloop.recommend.catalog import Catalog
from recloop.training.baselines import draft_bundle, fit_counts
from recloop.training.dataset import train_data


def test_evaluate_on_complete_journey_equals_two_independent_scripts(tmp_path: Path) -> None:
    """Popular 0.088 / 0.379, Bought-before 0.169 / 0.579, with half-life 0.177."""
    write_project(tmp_path / "shop", held=0)
    sets = ['clean.keep=""', "split.targets=next", "split.filter_seen=false", "data.items="]
    project = open_project(tmp_path / "shop", [*sets, "features.item={}"])
    prepare(project)
    data = load(project)
    known = data.train["user_id"].implode()
    assert len(data.events) == 1_469_307
    tables = build_tables(project, data)
    arrays = train_data(tables, data.train, data.valid)
    made, scorers = fit_counts(arrays, tables)
    found = {}
    for half_life in (None, 90.0):
        scorers["history"] = replace(scorers["history"], half_life=half_life)
        manifest = Manifest(ModelSpec("counts", {}), TrainingRows(tables.cut, until_seq=0))
        bundle = draft_bundle(project.config, tables, arrays, made, scorers, manifest)
        known_users = replace(data, test=data.test.filter(pl.col("user_id").is_in(known)))
        table = evaluate([bundle], known_users, Catalog(), project.config, {"split_hash": "", "fingerprint": ""})
        assert (table.protocol.users, table.protocol.items) == (2_090, 65_116)
        for row in table.rows:
            values = {name: one.value for (part, name), one in row.estimates.items() if part == "all"}
            found[row.row.model, half_life] = (values["Recall@10"], values["HR@10"])
    assert found["popular", None] == pytest.approx((0.088, 0.379), abs=0.0015)
    assert found["bought_before", None] == pytest.approx((0.169, 0.579), abs=0.003)
    assert found["bought_before", 90.0][0] == pytest.approx(0.177, abs=0.001)
