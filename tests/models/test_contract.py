"""Every model of the shelf keeps the contract that a stranger's has to keep, through the same door."""

from __future__ import annotations

import numpy as np
import pytest

from recloop.metrics import above_and_tied, one_target_expectation
from recloop.models.base import SHELF
from recloop.testing import ModelContract


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


class TestCoVisitationByItsPath(TestCoVisitation):
    model = "recloop.models.covisitation:CoVisitation"


class TestSASRec(ModelContract):
    model = "sasrec"


def test_the_whole_shelf_is_here() -> None:
    tried = {cls.model for cls in ModelContract.__subclasses__()}
    assert set(SHELF) - tried == set()


@pytest.mark.parametrize("k", [1, 5, 10, 20])
def test_a_constant_scorer_gives_k_of_n(k: int) -> None:
    """All 20 items tied, whichever is the target: HR@K is K/N exactly, not what the order of ids happens to give."""
    above, tied = above_and_tied(np.full((20, 20), 0.25), np.arange(20))
    found = one_target_expectation(above, tied, k)
    np.testing.assert_allclose(found["HR"], k / 20, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found["MRR"], sum(1 / r for r in range(1, k + 1)) / 20, rtol=0, atol=1e-12)
