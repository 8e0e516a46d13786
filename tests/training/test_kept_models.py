"""Models that an update keeps: when they are due, and their arrays over a longer item table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from arriving import post
from said_lines import Lines

from recloop import loop
from recloop.bundle import Bundle
from recloop.bundle.arrays import check_arrays
from recloop.models.base import TrainData, load_model
from recloop.pipeline.quarantine import quarantine
from recloop.policy import ScorerSpec
from recloop.project import open_project
from recloop.recommend.golden import check_golden
from recloop.records import DAY
from recloop.simulation.shop import SimulatedShop
from recloop.training.kept_models import keepable, kept_arrays, refit_reason, with_fit, with_fits

Make = Callable[..., TrainData]
EASE = ScorerSpec("ease", "ease", "neighbours")
MF = ScorerSpec("model", "mf", "vectors")
NEIGHBOURS = ScorerSpec("neighbours", "covisitation", "neighbours")


def test_keepable_excludes_baselines_and_networks() -> None:
    network = ScorerSpec("model", "sasrec", "vectors")
    assert list(keepable({"ease": EASE, "model": MF, "neighbours": NEIGHBOURS})) == ["ease", "model"]
    assert list(keepable({"model": network, "neighbours": NEIGHBOURS})) == []


def test_with_fit_records_rows_of_models_that_may_be_kept(arrays: Make) -> None:
    data = arrays([[[1, 2], [3]], [[1]]], 3)
    assert with_fit(NEIGHBOURS, data) == NEIGHBOURS
    fitted = with_fit(EASE, data)
    assert (fitted.rows, fitted.until) == (4, data.cut)
    assert with_fits({"ease": EASE, "neighbours": NEIGHBOURS}, {"ease": fitted}) == {
        "ease": fitted,
        "neighbours": NEIGHBOURS,
    }


@pytest.mark.parametrize(
    ("rows", "days", "share", "reason"),
    [
        (100, 0, 0.05, ""),
        (96, 27, 0.05, ""),
        (95, 0, 0.05, "5.3% new rows, update.refit_share is 5.0%"),
        (110, 0, 0.05, "9.1% new rows, update.refit_share is 5.0%"),
        (100, 0, 0.0, "0.0% new rows, update.refit_share is 0.0%"),
        (100, 28, 0.05, "28 days have passed"),
        (50, 28, 1.0, "100.0% new rows, update.refit_share is 100.0%"),
        (None, 0, 0.05, "the bundle does not record the rows of ease"),
    ],
)
def test_refit_reason_names_the_first_limit_that_is_reached(
    arrays: Make, rows: int | None, days: int, share: float, reason: str
) -> None:
    data = arrays([[[1, 2]] * 50], 2)
    until = None if rows is None else data.cut - days * DAY
    assert refit_reason({"ease": replace(EASE, rows=rows, until=until)}, data, share) == reason


def fitted_bundle(data: TrainData, scorers: dict[str, ScorerSpec]) -> Bundle:
    """The parts of a bundle that `kept_arrays` reads."""
    made: dict[str, Any] = {"popular": np.arange(1, data.n_items + 1, dtype=np.int32)}
    for source, spec in scorers.items():
        fitted = load_model(spec.model, {}).fit(data)
        made |= {name.replace("neighbours.", "ease.") if source == "ease" else name: a for name, a in fitted.items()}
    return cast("Bundle", SimpleNamespace(arrays=made, items=data.item_ids, scorers=scorers))


@pytest.mark.parametrize("seed", range(3))
def test_kept_arrays_of_random_logs_hold_the_old_rows_and_empty_new_ones(arrays: Make, seed: int) -> None:
    random = np.random.default_rng(seed)
    histories = [[sorted({*random.integers(1, 8, 3).tolist()}) for _ in range(4)] for _ in range(6)]
    data = arrays(histories, 7)
    models = {"ease": EASE, "model": MF}
    parent = fitted_bundle(data, models)
    n_new = int(random.integers(0, 4))
    kept = kept_arrays(parent, models, 7 + n_new)
    check_arrays({"popular": parent.arrays["popular"], **kept}, 7 + n_new, data.n_users)
    for name in ("ease.ids", "ease.weights", "user_vectors"):
        np.testing.assert_array_equal(kept[name], parent.arrays[name])
    np.testing.assert_array_equal(kept["ease.indptr"][:9], parent.arrays["ease.indptr"])
    assert (np.diff(kept["ease.indptr"])[8:] == 0).all()
    np.testing.assert_array_equal(kept["item_vectors"][:8], parent.arrays["item_vectors"])
    assert not kept["item_vectors"][8:].any()
    assert not any(name.startswith("neighbours.") for name in kept)


SETS = ('model.name="covisitation"', 'baselines.extra=["ease"]', 'release.refresh="manual"', 'ranker.model="off"',
    "release.gates.max_latency_ratio=100", "release.gates.max_ndcg_loss=1", "release.gates.max_slice_loss=1", "release.gates.min_queries=5", "release.gates.min_users=5",
)  # fmt: skip


@pytest.fixture(scope="module")
def ease_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with EASE after its first run, and posted rows."""
    world = SimulatedShop(seed=0, users=60, items=40)
    folder = world.write(tmp_path_factory.mktemp("kept") / "shop")
    whole = pl.read_csv(folder / "events.csv", schema_overrides={"event_id": pl.String})
    start = int(0.95 * len(whole))
    whole[:start].write_csv(folder / "events.csv")
    project = open_project(folder, SETS)
    loop.first_run(project)
    post(project, world.events()[start:])
    return folder


@pytest.fixture
def updated(ease_project: Path, tmp_path: Path) -> Callable[..., tuple[Bundle, Bundle, list[str]]]:
    """Update a copy: ``updated(share, quarantined="")`` returns live, the child and the lines."""

    def update(share: float, quarantined: str = "") -> tuple[Bundle, Bundle, list[str]]:
        folder = shutil.copytree(ease_project, tmp_path / f"shop{len(list(tmp_path.iterdir()))}")
        project = open_project(folder, [*SETS, f"update.refit_share={share}"])
        if quarantined:
            quarantine(project, quarantined, "a robot")
        live, lines = project.load_bundle(), Lines()
        outcome = loop.update(project, lines)
        assert outcome.verdict == "registered", outcome.reason
        return live, project.load_bundle(outcome.bundle or ""), lines.said

    return update


@pytest.mark.slow
def test_update_keeps_ease_below_the_share_and_fits_it_from_there(
    updated: Callable[..., tuple[Bundle, Bundle, list[str]]],
) -> None:
    live, kept, lines = updated(1.0)
    assert [line for line in lines if line.startswith("ease kept: ")]
    assert kept.scorers["ease"] == live.scorers["ease"]
    for part in ("ids", "weights"):
        np.testing.assert_array_equal(kept.arrays[f"ease.{part}"], live.arrays[f"ease.{part}"])
    assert not np.array_equal(kept.arrays["neighbours.weights"], live.arrays["neighbours.weights"])
    check_golden(kept)
    live, fitted, lines = updated(0.1)
    assert len([line for line in lines if line.startswith("ease fitted on ")]) == 1
    rows = fitted.scorers["ease"].rows
    assert rows is not None
    assert rows > (live.scorers["ease"].rows or 0)
    assert not np.array_equal(fitted.arrays["ease.weights"], live.arrays["ease.weights"])


@pytest.mark.slow
def test_update_after_a_quarantine_fits_ease_again(
    updated: Callable[..., tuple[Bundle, Bundle, list[str]]],
) -> None:
    _, _, lines = updated(1.0, "user_id = 'u01'")
    assert [line for line in lines if line.endswith(": rows were quarantined or restored")]
