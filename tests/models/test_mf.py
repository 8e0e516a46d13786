"""MF: the half-step by numerical minimization, negative feedback, and folding in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sp

from recloop import bundle as bundles
from recloop.errors import UserError
from recloop.features.state import StateBatch, offsets_of
from recloop.models.als import base_gram, confidence, solve_rows
from recloop.models.base import Negatives, TrainData, load_model
from recloop.models.conjugate_gradient import RowBlocks
from recloop.recommend.recommender import Recommender
from recloop.recommend.sources import FactorSource
from recloop.records import DAY, Use
from recloop.testing import Fitted, fit_on_world
from recloop.testing.states import UserActs, states_of


def test_solve_rows_gives_the_minimum() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(13, 4)).astype(np.float32)
    table[0] = 0
    weights = np.where(rng.random((1, 13)) < 0.4, rng.random((1, 13)) + 1, 0)
    weights[0, 0] = 0
    refused = np.where(rng.random((1, 13)) < 0.3, rng.random((1, 13)) * 3, 0)
    refused[0, 0] = 0
    l2, unseen = 0.05, 0.3

    def cost(x: np.ndarray) -> float:
        scores = table @ x
        held = (weights[0] > 0).sum()
        return float(
            (weights[0] * (scores - 1) ** 2).sum()
            + ((refused[0] + unseen) * scores**2).sum()
            + l2 * (held + unseen * 12) * (x @ x)
        )

    found = solve_rows(table, base_gram(table, unseen), sp.csr_array(weights), l2, unseen, sp.csr_array(refused))[0]
    best = scipy.optimize.minimize(cost, np.zeros(4), tol=1e-12).x
    np.testing.assert_allclose(found, best, atol=1e-4)


@pytest.fixture(scope="module")
def fitted_mf(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit_on_world(tmp_path_factory.mktemp("mf") / "shop", "mf", ("model.dim=16", "train.refit=true"))


def vectors(fitted: Fitted, states: StateBatch, **changes: object) -> np.ndarray:
    bundle = replace(fitted.bundle, **changes)
    config = bundle.scorers["model"].config
    encoded = _encoder(fitted).encode(states, [fitted.bundle.cut + 9 * DAY] * len(states))
    return FactorSource(bundle, "model", config["l2"], config["unseen"]).user_vectors(encoded)[1]


def _encoder(fitted: Fitted) -> Recommender:
    return Recommender(fitted.bundle, fitted.catalogue)


def test_mf_refit_keeps_model_and_options(fitted_mf: Fitted) -> None:
    assert fitted_mf.bundle.manifest.model.name == "mf"
    assert fitted_mf.bundle.arrays["item_vectors"].shape == (len(fitted_mf.bundle.items) + 1, 16)
    assert fitted_mf.bundle.id.startswith("mf-")
    assert not fitted_mf.bundle.graphs


def test_mf_user_table_equals_folding_in(fitted_mf: Fitted) -> None:
    """Users at the end of the log have their table row; folding in is equal."""
    users = fitted_mf.bundle.users
    assert users is not None
    ids = users.ids.ids[:50]
    last = fitted_mf.bundle.learned.until_seq
    states = fitted_mf.timeline.states(ids, [last] * len(ids))
    table = vectors(fitted_mf, states)
    np.testing.assert_array_equal(table, fitted_mf.bundle.arrays["user_vectors"][1 : len(ids) + 1])
    folded = vectors(fitted_mf, states, users=replace(users, count=np.zeros_like(users.count)))
    np.testing.assert_allclose(folded, table, atol=1e-5)


def test_mf_folds_in_users_with_new_events(fitted_mf: Fitted) -> None:
    item = fitted_mf.bundle.items.ids.ids[3]
    active = UserActs()
    active.add(item, fitted_mf.bundle.cut + DAY, None, Use.TARGET)
    users = states_of([fitted_mf.bundle.users.ids.ids[0], "unknown"], [active, active])  # type: ignore[union-attr]
    own, other = vectors(fitted_mf, users)
    np.testing.assert_array_equal(own, other)
    scores = fitted_mf.bundle.arrays["item_vectors"] @ own
    assert scores.argmax() == 4 or scores[4] > np.quantile(scores, 0.9)


def tastes(weights: dict[int, float] | None = None, rejected: Sequence[tuple[int, int, float]] = ()) -> TrainData:
    """Twelve users: half have items 1 to 3, half 4 to 6, except one each."""
    rows = [(u, item) for u in range(12) for item in range(1 + u % 2 * 3, 4 + u % 2 * 3) if item != 1 + u % 6]
    users, items = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    plain = np.ones(len(items), dtype=np.float32)
    rejected_rows = np.array(sorted(rejected), dtype=np.float64).reshape(-1, 3)
    negatives = Negatives(
        rejected_rows[:, 0].astype(np.int64), rejected_rows[:, 1].astype(np.int64), np.full(len(rejected_rows), 9 * DAY),
        np.arange(len(rejected_rows)) + 100, rejected_rows[:, 2].astype(np.float32),
    )  # fmt: skip
    none = np.zeros((12, 0), np.int32)
    return TrainData(
        [f"i{n}" for n in range(1, 8)], [f"u{n:02}" for n in range(12)], offsets_of(np.ones(12, np.int64)),
        offsets_of(np.bincount(users)), np.zeros(12, np.int64), items.astype(np.int32), np.arange(len(items)),
        plain if weights is None else np.array([weights.get(i, 1.0) for i in items.tolist()], dtype=np.float32),
        np.zeros(12, bool), none, np.zeros((8, 0), np.int32), [], [], [], 10 * DAY,
        np.bincount(items, minlength=8), None, negatives if len(rejected_rows) else None,
    )  # fmt: skip


def score(data: TrainData, user: int, item: int) -> float:
    made = load_model("mf", {"dim": 3}).fit(data)
    return float(made["user_vectors"][user + 1] @ made["item_vectors"][item])


@pytest.mark.parametrize("weight", [0.5, 1.0])
def test_mf_negative_feedback_lowers_the_score(weight: float) -> None:
    """A skip changes item vectors, a dislike also the user; both lower the score."""
    pair = (0, 1)  # user 0 has items 2 and 3, which occur with item 1
    before, after = score(tastes(), *pair), score(tastes(rejected=[(*pair, weight)]), *pair)
    assert before > 0.4
    assert after < before - 0.01
    all_skip = [(user, 1, weight) for user in range(0, 12, 2)]
    assert score(tastes(rejected=all_skip), *pair) < before - 0.1  # six users skipped it


def test_mf_dislike_of_an_old_user_keeps_item_vectors() -> None:
    with_dislike, without_dislike = tastes(rejected=[(0, 1, 1.0)]), tastes()
    old = np.arange(12) == 0
    with_it, without = (
        load_model("mf", {"dim": 3}).fit(replace(data, old=old)) for data in (with_dislike, without_dislike)
    )
    np.testing.assert_array_equal(with_it["item_vectors"], without["item_vectors"])
    assert not np.array_equal(with_it["user_vectors"][1], without["user_vectors"][1])


def test_mf_with_weight_5_raises_the_score() -> None:
    plain, heavy = score(tastes(), 0, 2), score(tastes({2: 5.0}), 0, 2)
    assert heavy > plain


def test_mf_folds_in_a_user_with_a_new_dislike(fitted_mf: Fitted) -> None:
    """A new dislike lowers the item's score, and the table row is no longer used."""
    users = fitted_mf.bundle.users
    assert users is not None
    last = fitted_mf.bundle.learned.until_seq
    one = fitted_mf.timeline.states(users.ids.ids[:1], [last])
    plain = vectors(fitted_mf, one)[0]
    liked = int((fitted_mf.bundle.arrays["item_vectors"] @ plain).argmax())
    name = fitted_mf.bundle.items.ids.ids[liked - 1]
    negative = np.array([one.codes.add(name)], np.int32)
    mine = replace(one, negatives=negative, negative_offsets=np.array([0, 1]), derived={})
    found = vectors(fitted_mf, mine)[0]
    table = fitted_mf.bundle.arrays["item_vectors"]
    assert table[liked] @ found < table[liked] @ plain - 0.05
    held = one.items, one.item_offsets
    lengths = np.bincount(fitted_mf.bundle.items.ids.lookup(one.names, len(one.names))[held[0]], minlength=len(table))
    often = sp.csr_array(np.where(lengths, confidence(lengths.astype(float)), 0)[None])
    refused = sp.csr_array((np.ones(1), [liked], [0, 1]), shape=(1, len(table)))
    config = fitted_mf.bundle.scorers["model"].config
    gram = base_gram(table, config["unseen"])
    expected = solve_rows(table, gram, often, config["l2"], config["unseen"], refused)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_mf_options_invalid_are_refused() -> None:
    with pytest.raises(UserError, match=r"model\.sweeps"):
        load_model("mf", {"sweeps": 0})


def test_mf_bundle_round_trips_with_its_users(fitted_mf: Fitted) -> None:
    again = bundles.load(fitted_mf.project.bundles / fitted_mf.bundle.id)
    assert again.users is not None
    assert fitted_mf.bundle.users is not None
    assert again.users.ids.ids == fitted_mf.bundle.users.ids.ids
    np.testing.assert_array_equal(again.users.count, fitted_mf.bundle.users.count)


def test_conjugate_gradients_come_close_to_the_exact_rows() -> None:
    """Rows of many lengths, an empty one, and one with refusals only."""
    rng = np.random.default_rng(1)
    table = rng.normal(size=(40, 6)).astype(np.float32)
    table[0] = 0
    shares = np.linspace(0, 0.9, 30)[:, None]
    positives = np.where(rng.random((30, 40)) < shares, rng.random((30, 40)) + 1, 0)
    rejected = np.where(rng.random((30, 40)) < 0.1, 1.0, 0)
    positives[:, 0] = rejected[:, 0] = 0
    rejected[0], positives[1] = 0, 0
    taken, refused = sp.csr_array(positives), sp.csr_array(rejected)
    exact = solve_rows(table, base_gram(table, 0.3), taken, 0.05, 0.3, refused)
    blocks = RowBlocks(taken, refused, 6)
    vectors = np.zeros((30, 6), dtype=np.float32)
    distances = []
    for _ in range(6):
        vectors = blocks.improve(vectors, table, 0.05, 0.3)
        distances.append(float(np.abs(vectors - exact).max()))
    assert distances[0] > distances[-1]
    np.testing.assert_allclose(vectors, exact, atol=1e-4)
    np.testing.assert_array_equal(blocks.improve(vectors, table, 0.05, 0.3)[0], np.zeros(6))
