"""MF: the half-step by brute force, a loss that only falls, and who is folded in when."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp

from recloop import bundle as bundles
from recloop.errors import UserError
from recloop.features.latent import explain, unseen_gram
from recloop.features.state import States, UserState
from recloop.models.base import load_model
from recloop.recommend.recommender import Recommender
from recloop.recommend.scorer import Factors
from recloop.records import DAY
from recloop.testing import Fitted, fit_on_world


def test_a_half_step_is_the_minimum() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(13, 4)).astype(np.float32)
    table[0] = 0
    weights = np.where(rng.random((1, 13)) < 0.4, rng.random((1, 13)) + 1, 0)
    weights[0, 0] = 0
    l2, unseen = 0.05, 0.3

    def cost(x: np.ndarray) -> float:
        scores = table @ x
        held = (weights[0] > 0).sum()
        return float(
            (weights[0] * (scores - 1) ** 2).sum() + unseen * (scores**2).sum() + l2 * (held + unseen * 12) * (x @ x)
        )

    found = explain(table, unseen_gram(table, unseen), sp.csr_array(weights), l2, unseen)[0]
    best = scipy.optimize.minimize(cost, np.zeros(4), tol=1e-12).x
    np.testing.assert_allclose(found, best, atol=1e-4)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit_on_world(tmp_path_factory.mktemp("mf") / "shop", "mf", ("model.dim=16", "train.refit=true"))


def vectors(fitted: Fitted, states: States, **changes: object) -> np.ndarray:
    bundle = replace(fitted.bundle, **changes)
    config = bundle.scorers["model"]["config"]
    encoded = _encoder(fitted).encode(states, [fitted.now[0]] * len(states))
    return Factors(bundle, config["l2"], config["unseen"]).users(encoded)[1]


def _encoder(fitted: Fitted) -> Recommender:
    return Recommender(fitted.bundle, fitted.catalogue)


def test_options_of_the_file_arrive_and_a_refit_keeps_the_model(fitted: Fitted) -> None:
    assert fitted.bundle.manifest["model"]["name"] == "mf"
    assert fitted.bundle.arrays["item_vectors"].shape == (len(fitted.bundle.items) + 1, 16)
    assert fitted.bundle.id.startswith("mf-")
    assert not fitted.bundle.graphs


def test_the_table_is_what_folding_in_gives(fitted: Fitted) -> None:
    """Every user of the refit table as of the end of the log: the table's row, and the same by the other way."""
    users = fitted.bundle.users
    assert users is not None
    ids = users.ids.ids[:50]
    last = int(fitted.bundle.manifest["data"]["until_seq"])
    states = fitted.timeline.states(ids, [last] * len(ids))
    table = vectors(fitted, states)
    np.testing.assert_array_equal(table, fitted.bundle.arrays["user_vectors"][1 : len(ids) + 1])
    folded = vectors(fitted, states, users=replace(users, count=np.zeros_like(users.count)))
    np.testing.assert_allclose(folded, table, atol=1e-5)


def test_who_acted_since_is_folded_in(fitted: Fitted) -> None:
    item = fitted.bundle.items.ids.ids[3]
    stranger = UserState(moments=[(fitted.bundle.cut + DAY, [item])], positives=1)
    users = States.of([fitted.bundle.users.ids.ids[0], "nobody we know"], [stranger, stranger])  # type: ignore[union-attr]
    own, other = vectors(fitted, users)
    np.testing.assert_array_equal(own, other)
    scores = fitted.bundle.arrays["item_vectors"] @ own
    assert scores.argmax() == 4 or scores[4] > np.quantile(scores, 0.9)


def test_options_are_checked() -> None:
    with pytest.raises(UserError, match=r"model\.sweeps"):
        load_model("mf", {"sweeps": 0})


def test_written_and_read_with_its_users(fitted: Fitted) -> None:
    again = bundles.load(fitted.project.bundles / fitted.bundle.id)
    assert again.users is not None
    assert fitted.bundle.users is not None
    assert again.users.ids.ids == fitted.bundle.users.ids.ids
    np.testing.assert_array_equal(again.users.count, fitted.bundle.users.count)
