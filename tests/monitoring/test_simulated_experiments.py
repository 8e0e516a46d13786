"""Simulated experiments: the batched computation equals evaluate and has the nominal error."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest

from recloop.monitoring import experiment

WORDS = {"better": 1, "worse": -1, "invalid": -1, "running": 0, "inconclusive": 0}


@pytest.fixture(scope="module")
def simulated() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "experiments.py"
    spec = importlib.util.spec_from_file_location("simulated_experiments", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def frame(users: Any, run: int) -> pl.DataFrame:
    """One run in the shape of `user_outcomes`."""
    arm = np.where(users.treated[run], "candidate", "live")
    columns = {name: values[run] for name, values in users.columns.items()}
    return pl.DataFrame({"arm": arm, "waiting": np.zeros(len(arm), bool), **columns})


@pytest.mark.parametrize(("lift", "fails"), [(0.0, 0.0), (-0.15, 0.0), (0.15, 0.0), (0.0, 0.02)])
def test_simulated_verdicts_of_many_runs_equal_those_of_evaluate(
    simulated: ModuleType, lift: float, fails: float
) -> None:
    plan = simulated._plan(1_200, 6)
    world = simulated.failing(fails) if fails else simulated.two_arms(lift)
    users = world(np.random.default_rng(3), 2, 1_200)
    asks, said = simulated.asked_at(users, plan), simulated.ask(users, plan)
    for run in range(2):
        table = frame(users, run)
        for look in (3, 7, 8, 11, 15, 23):
            found = experiment.evaluate(table.head(asks[look]), plan)
            assert (WORDS[found.verdict], found.no_harm) == (said.word[run, look], said.no_harm[run, look] & ~said.unproven[run, look] & (said.word[run, look] >= 0))  # fmt: skip


def test_simulated_effects_equal_those_of_measure(simulated: ModuleType) -> None:
    users = simulated.two_arms(0.1)(np.random.default_rng(4), 2, 900)
    for metric in experiment.METRICS:
        if not users.columns[metric.top].any():
            continue
        many = simulated.effects(users, metric, [300, 650, 900])
        for run in range(2):
            table = experiment.Table.from_outcomes(frame(users, run))
            for look, size in enumerate((300, 650, 900)):
                one = experiment.measure(table.first(size), metric)
                got = (many.live[run, look], many.delta[run, look], many.se[run, look])
                assert got == pytest.approx((one.live, one.delta, one.se), rel=1e-8), metric.name


def test_simulate_equal_arms_has_the_nominal_error(simulated: ModuleType) -> None:
    """200 runs of 14 interim analyses; full alpha at each errs in a fifth."""
    ever = simulated.simulate(simulated.Row(simulated.two_arms(0.0), simulated._plan(2_800, 14), 2_800), 200, 7)
    assert 0.01 <= ever["planned looks"] <= 0.09  # 10 runs expected of 200, standard deviation 3.1
    assert ever["confidence sequence"] <= 0.055
    assert ever["any verdict"] <= 0.09
    assert ever["full alpha at each look"] > 0.12


def test_simulate_true_loss_seldom_becomes_live_without_a_reason(simulated: ModuleType) -> None:
    row = simulated.ROWS["-10 %, 200 users an arm, plan of 400"]
    assert simulated.simulate(row, 400, 8)["live without a reason"] <= 0.02


def test_simulate_failing_candidate_is_not_better(simulated: ModuleType) -> None:
    row = simulated.Row(simulated.failing(0.2), simulated._plan(2_800, 14), 2_800)
    ever = simulated.simulate(row, 100, 9)
    assert (ever["better"], ever["live without a reason"]) == (0, 0)
    assert ever["delivered: better at the end"] > 0.9  # the result if users with failures were dropped


@pytest.mark.slow
def test_simulate_2000_runs_are_within_the_limits(simulated: ModuleType) -> None:
    """The published rows with another seed."""
    ever = simulated.simulate(simulated.ROWS["equal arms, 14 looks"], 2_000, 100)
    assert 0.04 <= ever["planned looks"] <= 0.06
    assert ever["confidence sequence"] <= 0.055
    for name, row in simulated.ROWS.items():
        if name.startswith("-10 %, 200 users an arm"):
            assert simulated.simulate(row, 2_000, 101)["live without a reason"] <= 0.02
        if name.startswith("fails"):
            assert simulated.simulate(row, 2_000, 102)["better"] == 0
