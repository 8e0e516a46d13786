"""Each built-in model and a custom one pass the model contract."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recloop.evaluation.metrics import one_target_expectation
from recloop.models.base import MODELS
from recloop.models.covisitation import CoVisitation
from recloop.models.item_knn import ItemKNN
from recloop.testing import ModelContract, fit_on_world


@pytest.mark.slow
class TestPopular(ModelContract):
    model = "popular"
    liked = 0.6  # popular items are liked by most users, not by all


@pytest.mark.slow
class TestBoughtBefore(ModelContract):
    model = "bought_before"
    better = 5.0
    liked = 0.75


class TestBuyAgain(ModelContract):
    model = "buy_again"
    better = 5.0
    liked = 0.75


class TestCoVisitation(ModelContract):
    model = "covisitation"
    better = 3.0


class NextMoment(CoVisitation):
    """A custom baseline: co-visitation over directly following moments."""

    class Config(CoVisitation.Config):
        """One lag."""

        lags: tuple[float, ...] = (1.0,)


class TestCustomModel(ModelContract):
    model = f"{__name__}:NextMoment"
    better = 3.0


@pytest.mark.slow
class TestSASRec(ModelContract):
    model = "recloop.models.sasrec:SASRec"  # by its dotted path, as a custom model


@pytest.mark.slow
class TestTwoTower(ModelContract):
    model = "two_tower"


@pytest.mark.slow
class TestTwoTowerOfSequences(ModelContract):
    model = "two_tower"
    settings = (*ModelContract.settings, "model.user=sequence")


@pytest.mark.slow
class TestNeuMF(ModelContract):
    model = "neumf"
    settings = ("train.epochs=20", "train.time_budget=1h", "train.lr=3e-3")  # an MLP starts without item embeddings


class TestMF(ModelContract):
    model = "mf"
    better = 4.0


class TestEASE(ModelContract):
    model = "ease"
    better = 3.0


@pytest.mark.slow
class TestItemKNN(ModelContract):
    model = "item_knn"
    better = 3.0


class OwnSource(ItemKNN):
    """A custom model that adds a source of its own name."""

    source = "my_neighbours"


@pytest.mark.slow
class TestOwnSource(ModelContract):
    model = f"{__name__}:OwnSource"
    better = 3.0


@pytest.mark.slow
class TestGRU4Rec(ModelContract):
    model = "gru4rec"


def test_model_contract_covers_every_built_in_model() -> None:
    tried = {cls.model for cls in ModelContract.__subclasses__()}
    assert [name for name, path in MODELS.items() if not {name, path} & tried] == []


def test_model_contract_with_a_random_scorer_fails(tmp_path: Path) -> None:
    """One random order of items for all users fails the contract."""
    popular = fit_on_world(tmp_path / "shop", "popular")
    drawn = np.random.default_rng(0).permutation(popular.bundle.arrays["popular"])
    nothing = replace(popular, bundle=replace(popular.bundle, arrays={**popular.bundle.arrays, "popular": drawn}))
    answers = nothing.ask(range(len(nothing.users)))
    contract = TestPopular()
    contract.test_recall_is_above_that_of_a_constant_scorer(popular, popular.ask(range(len(popular.users))))
    with pytest.raises(AssertionError):
        contract.test_recall_is_above_that_of_a_constant_scorer(nothing, answers)
    with pytest.raises(AssertionError):
        contract.test_listed_items_have_high_true_utility(nothing, answers)
    with pytest.raises(AssertionError):
        contract.test_list_after_save_and_load_is_equal(
            nothing, answers, tmp_path
        )  # the stored bundle has the other list


@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_hit_rate_of_a_constant_scorer_is_k_over_n(k: int) -> None:
    """With all 20 items tied HR@K is exactly K/N, independent of the order of ids."""
    found = one_target_expectation(np.zeros(20), np.full(20, 20), k)
    np.testing.assert_allclose(found["HR"], k / 20, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["MRR"], sum(1 / r for r in range(1, k + 1)) / 20, rtol=0, atol=1e-12)
