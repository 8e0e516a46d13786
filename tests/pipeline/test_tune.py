"""Search of a model's settings on validation."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recloop import loop
from recloop.data.prepare import load
from recloop.errors import Locked, UserError
from recloop.models.mf import MF
from recloop.models.search_space import Choice, Range
from recloop.pipeline.tune import (
    STARTUP_TRIALS,
    _distribution,
    _n_done,
    _open_study,
    _run,
    search_space,
    tune,
    with_settings,
)
from recloop.project import Project, open_project
from recloop.storage import locks
from recloop.training.fit import Look

SMALL_MF = ("model.name=mf", "model.dim=8", "model.sweeps=2")
NETWORK = ("train.time_budget=20s", "train.epochs=1", "features.dim=8", "features.max_history=8", "features.context=[]")


@pytest.fixture
def shop(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """The shared project with a small factorization; its search has two settings."""
    monkeypatch.setattr(MF, "search_space", {"model.l2": Range(1e-4, 0.1, log=True), "model.unseen": Range(0.01, 1.0)})
    return open_project(project.root, SMALL_MF)


def test_search_starts_with_the_configured_settings_and_prints_lines_for_recloop_toml(shop: Project) -> None:
    """The best settings are never worse on validation than the configured ones, and the lines load."""
    found = tune(shop, "mf", trials=4, budget="5m")
    assert found.finished == 4
    assert found.best >= (found.configured or 0) > 0
    lines = tomllib.loads(found.toml())
    assert lines["model"] == {"name": "mf", "l2": found.settings["model.l2"], "unseen": found.settings["model.unseen"]}
    assert with_settings(shop.config, "mf", found.settings).model.options["dim"] == 8


def test_covisitation_has_a_search_and_its_lines_are_used_by_an_update(project: Project) -> None:
    """A baseline gets as many trials as a network."""
    found = tune(project, "covisitation", trials=3, budget="5m")
    assert found.finished == 3
    assert found.best >= (found.configured or 0) > 0
    lines = tomllib.loads(found.toml())["model"]
    sets = [f"model.{key}={value}" for key, value in lines.items()]
    changed = loop.update(open_project(project.root, (*sets, "model.width=7")), full=True)
    scorer = project.load_bundle(changed.bundle or "").scorers["neighbours"]
    assert scorer.config == {"shrink": lines["shrink"], "width": 7}


def test_configured_settings_that_fail_have_no_result(shop: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another trial is not shown as the configured one, and without another one the error is that of the trial."""
    fit, configured = MF.fit, MF.Config().l2
    monkeypatch.setattr(
        MF,
        "fit",
        lambda self, data: {"item_vectors": np.array([np.nan])} if self.config.l2 == configured else fit(self, data),
    )
    with pytest.raises(
        UserError, match=r"model\.name=mf: expected settings that can be trained; model\.name=mf: .* finite"
    ):
        tune(shop, "mf", trials=1, budget="5m")
    found = tune(shop, "mf", trials=3, budget="5m")
    assert (found.finished, found.configured) == (2, None)
    assert found.best > 0


def test_later_run_continues_the_study_and_a_changed_setting_starts_a_new_one(shop: Project) -> None:
    """`trials` counts the trials of earlier runs."""
    first = tune(shop, "mf", trials=2, budget="5m")
    assert tune(shop, "mf", trials=2, budget="5m").settings == first.settings
    assert tune(shop, "mf", trials=3, budget="5m").finished == 3
    other = open_project(shop.root, (*SMALL_MF, "train.seed=1"))
    assert tune(other, "mf", trials=1, budget="5m").finished == 1


def test_equal_seeds_search_equal_settings(shop: Project, tmp_path: Path) -> None:
    """Two studies with one seed have the same trials."""
    first = tune(shop, "mf", trials=3, budget="5m")
    (shop.root / "tuning").rename(tmp_path / "earlier")
    again = tune(shop, "mf", trials=3, budget="5m")
    assert (again.settings, again.best) == (first.settings, first.best)


@pytest.mark.slow
def test_network_is_searched_without_reading_the_test_split(shop: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network trains on validation arrays, and nothing is exported or registered."""
    pytest.importorskip("torch")
    from recloop.evaluation import evaluate

    monkeypatch.setattr(evaluate, "evaluate", pytest.fail)
    bundles = sorted(shop.bundles.iterdir())
    found = tune(open_project(shop.root, NETWORK), "gru4rec", trials=2, budget="5m")
    assert found.finished + found.pruned == 2
    assert sorted(shop.bundles.iterdir()) == bundles
    assert [path.name for path in shop.tuning.iterdir()] == ["gru4rec.log"]


@pytest.mark.slow
def test_budget_that_ends_before_the_first_trial_is_one_message(shop: Project) -> None:
    """A cut trial has no result, and the next run repeats it."""
    pytest.importorskip("torch")
    long = open_project(shop.root, (*NETWORK, "train.epochs=1000", "train.patience=1000"))
    with pytest.raises(UserError, match=r"--budget=1s: expected time for one trial"):
        tune(long, "gru4rec", budget="1s")
    assert tune(open_project(shop.root, NETWORK), "gru4rec", trials=1, budget="5m").finished == 1


@pytest.mark.slow
def test_killed_search_repeats_its_trial(shop: Project) -> None:
    """The settings of the killed trial are tried by the next run."""
    endless = (*NETWORK, "train.time_budget=1h", "train.epochs=100000", "train.patience=100000")
    sets = [word for setting in endless for word in ("--set", setting)]
    words = [sys.executable, "-m", "recloop", "-C", str(shop.root), *sets, "tune", "gru4rec"]
    running = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(shop.root.glob("tuning/*/log.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    running.kill()
    running.wait()
    with pytest.raises(UserError, match="--budget=2s"):  # the killed trial runs again, and the budget cuts it again
        tune(open_project(shop.root, endless), "gru4rec", budget="2s")
    assert not list(shop.root.glob("tuning/*/"))


class Curve:
    """Validation of a network whose looks are given."""

    def __init__(self, *values: float) -> None:
        self.values, self.seen = values, 0

    def score(self, params: Mapping[str, Any], budget: float, on_look: Callable[[Look], None]) -> float:
        assert params
        assert budget > 0
        for epoch, ndcg in enumerate(self.values, 1):
            self.seen = epoch
            on_look(Look(epoch=epoch, step=epoch, ndcg=ndcg, seconds=1.0, at="epoch"))
        return self.values[-1]


def test_trial_below_the_median_at_an_epoch_is_stopped_and_counts(shop: Project) -> None:
    """The first trials run whole, and the first epoch stops none."""
    study = _open_study(shop, "mf", search_space("mf"), load(shop))
    distributions = {"model.l2": _distribution(Range(1e-4, 0.1, log=True), 0.003)}

    def run(curve: Curve) -> str:
        trial = study.ask(distributions)
        _run(study, trial, curve, time.monotonic() + 60)  # type: ignore[arg-type]
        return study.trials[trial.number].state.name

    assert [run(Curve(0.1, 0.2, 0.3)) for _ in range(STARTUP_TRIALS)] == ["COMPLETE"] * STARTUP_TRIALS
    low, late = Curve(0.01, 0.02, 0.03), Curve(0.01, 0.25, 0.4)
    assert (run(low), low.seen) == ("PRUNED", 2)
    assert (run(late), late.seen) == ("COMPLETE", 3)
    assert _n_done(study) == STARTUP_TRIALS + 2


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("mf", {"trials": 0}, "--trials=0: expected at least 1 trial"),
        ("mf", {"budget": "soon"}, "--budget=soon: expected a time"),
        ("sasrek", {}, "model.name=sasrek"),
        ("popular", {}, "model.name=popular: expected a model with a `search_space`"),
    ],
)
def test_bad_input_is_named(shop: Project, model: str, options: dict[str, Any], message: str) -> None:
    """Each message names the value and writes nothing."""
    with pytest.raises(UserError, match=message):
        tune(shop, model, **options)
    assert not shop.tuning.exists()


def test_log_without_validation_moments_is_named(shop: Project) -> None:
    """A search needs moments to compare on."""
    short = open_project(shop.root, (*SMALL_MF, "split.validation_users=0"))
    with pytest.raises(UserError, match="validation"):
        tune(short, "mf")


def test_one_search_runs_at_a_time(shop: Project) -> None:
    """A second search in the same folder is refused; an update is not."""
    with locks.tune_lock(shop.root), pytest.raises(Locked):
        tune(shop, "mf", trials=1)


def test_configured_value_is_part_of_the_search() -> None:
    """A configured value outside the declared space widens it."""
    pytest.importorskip("optuna")
    choice = _distribution(Choice((20, 50)), 64)
    assert choice.to_internal_repr(64) == 2.0
    assert _distribution(Range(64, 256, step=64), 100).step == 1
