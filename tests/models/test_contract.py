"""Every model of the shelf keeps the contract that a stranger's has to keep, through the same door."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recloop.evaluation.metrics import above_and_tied, one_target_expectation
from recloop.models.base import MODELS
from recloop.models.covisitation import CoVisitation
from recloop.testing import ModelContract, fit_on_world


class TestPopular(ModelContract):
    model = "popular"
    liked = 0.6  # what most people take is what most people like, no more


class TestBoughtBefore(ModelContract):
    model = "bought_before"
    better = 5.0
    liked = 0.75


class TestCoVisitation(ModelContract):
    model = "covisitation"
    better = 3.0


class NextMoment(CoVisitation):
    """A stranger's model in closed form: the rows of co-visitation, over moments that follow at once alone."""

    class Config(CoVisitation.Config):
        """One lag."""

        lags: tuple[float, ...] = (1.0,)


class TestStranger(ModelContract):
    model = f"{__name__}:NextMoment"
    better = 3.0


@pytest.mark.slow
class TestSASRec(ModelContract):
    model = "recloop.models.sasrec:SASRec"  # by its dotted path, as a stranger's


@pytest.mark.slow
class TestTwoTower(ModelContract):
    model = "two_tower"


@pytest.mark.slow
class TestNeuMF(ModelContract):
    model = "neumf"
    settings = ("train.epochs=20", "train.time_budget=1h", "train.lr=3e-3")  # an MLP begins knowing nothing


class TestMF(ModelContract):
    model = "mf"
    better = 4.0


@pytest.mark.slow
class TestGRU4Rec(ModelContract):
    model = "gru4rec"


def test_the_whole_shelf_is_here() -> None:
    tried = {cls.model for cls in ModelContract.__subclasses__()}
    assert [name for name, path in MODELS.items() if not {name, path} & tried] == []


def test_the_contract_refuses_a_scorer_that_knows_nothing(tmp_path: Path) -> None:
    """Items in a drawn order, the same for all: a list like any other, and not a right one."""
    popular = fit_on_world(tmp_path / "shop", "popular")
    drawn = np.random.default_rng(0).permutation(popular.bundle.arrays["popular"])
    nothing = replace(popular, bundle=replace(popular.bundle, arrays={**popular.bundle.arrays, "popular": drawn}))
    answers = nothing.ask(range(len(nothing.users)))
    contract = TestPopular()
    contract.test_finds_the_right_items(popular, popular.ask(range(len(popular.users))))
    with pytest.raises(AssertionError):
        contract.test_finds_the_right_items(nothing, answers)
    with pytest.raises(AssertionError):
        contract.test_lists_what_users_like_by_the_truth(nothing, answers)
    with pytest.raises(AssertionError):
        contract.test_saved_and_loaded_answers_alike(nothing, answers, tmp_path)  # the disk holds the other list


@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_a_constant_scorer_gives_k_of_n(k: int) -> None:
    """All 20 items tied, whichever is the target: HR@K is K/N exactly, not what the order of ids happens to give."""
    above, tied = above_and_tied(np.full((20, 20), 0.25), np.arange(20))
    found = one_target_expectation(above, tied, k)
    np.testing.assert_allclose(found["HR"], k / 20, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["MRR"], sum(1 / r for r in range(1, k + 1)) / 20, rtol=0, atol=1e-12)
