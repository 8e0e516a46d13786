"""Updates of a bundle with a ranker: its statistics are new, its trees are kept or fitted again."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from arriving import post

from recloop import loop
from recloop.bundle.checks import RANKER_GRAPH
from recloop.project import Project, open_project
from recloop.recommend.golden import check_golden
from recloop.simulation.shop import SimulatedShop
from recloop.training import ranker

SETS = ('model.name="covisitation"', 'release.refresh="manual"', 'ranker.model="gbdt"', "ranker.trees=20",
    "release.gates.max_latency_ratio=100", "release.gates.max_ndcg_loss=1", "release.gates.max_slice_loss=1",
)  # fmt: skip
KEPT = 0.85


@pytest.fixture
def ranked_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project with a live ranked bundle, and posted rows."""
    monkeypatch.setattr(ranker, "MIN_MOMENTS", 2)
    monkeypatch.setattr(ranker, "MIN_JUDGED", 1)
    world = SimulatedShop(seed=0, users=80, items=60)
    folder = world.write(tmp_path / "shop")
    whole = pl.read_csv(folder / "events.csv", schema_overrides={"event_id": pl.String})
    kept = int(KEPT * len(whole))
    whole[:kept].write_csv(folder / "events.csv")
    project = open_project(folder, SETS)
    loop.first_run(project)
    post(project, world.events()[kept:])
    return project


@pytest.mark.slow
def test_update_fits_new_trees_if_they_are_due_and_keeps_them_otherwise(
    ranked_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = open_project(shutil.copytree(ranked_project.root, tmp_path / "copy"), SETS)
    live = ranked_project.load_bundle("")
    monkeypatch.setattr(ranker, "is_due", lambda spec, data: spec.until < data.cut)
    due = ranked_project.load_bundle(loop.update(ranked_project).bundle or "")
    assert due.manifest.parent == live.id
    assert live.policy.ranker is not None
    assert due.policy.ranker is not None
    assert due.policy.ranker.until == due.cut > live.policy.ranker.until
    assert due.graphs[RANKER_GRAPH] != live.graphs[RANKER_GRAPH]
    check_golden(due)
    monkeypatch.setattr(ranker, "is_due", lambda *_: False)
    kept = copy.load_bundle(loop.update(copy).bundle or "")
    assert kept.policy == live.policy
    assert kept.policy.placements["home"].ranked
    assert kept.graphs == live.graphs
    assert not np.array_equal(kept.arrays["ranking.values"], live.arrays["ranking.values"])
    check_golden(kept)
