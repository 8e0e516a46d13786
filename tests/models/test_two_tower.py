"""Two-Tower: loss by hand, mean over moments, and users and items with only attributes."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime as ort
import polars as pl
import pytest
import torch

from recloop.errors import UserError
from recloop.models.base import TrainData, load_model
from recloop.models.two_tower import TwoTower
from recloop.recommend.recommender import Recommender
from recloop.records import ITEM_ID, Query
from recloop.simulation.shop import SimulatedShop
from recloop.testing import Fitted, fit_on_world
from recloop.testing.states import UserActs, states_of
from recloop.training.export import user_graph
from recloop.training.losses import weighted
from recloop.training.sampled_losses import PairScores, SampledItems, ss_logq

D, N = 16, 20
USERS = pytest.mark.parametrize("user", ["pooled", "sequence"])


def made(**options: object) -> TwoTower:
    torch.manual_seed(0)
    network: TwoTower = load_model("two_tower", options)
    items = np.concatenate(
        [[1], np.repeat(np.arange(1, N + 1), np.arange(1, N + 1))]
    )  # one user with n events of item n
    rows, none = np.arange(len(items)), np.zeros(0, np.int64)
    data = TrainData(
        [str(n) for n in range(N)], ["u"], np.array([0, len(items)]), np.arange(len(items) + 1), rows, items, rows,
        np.ones(len(items)), np.zeros(1, bool), none, none, [("user.age", 4, 3)], [("item.kind", 5, 3)], [], 0,
        np.bincount(items),
    )  # fmt: skip
    network.build(data, D, 12)
    return network.eval()


def window(*sizes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    total = sum(sizes)
    number = torch.from_numpy(np.repeat(np.arange(len(sizes))[::-1], sizes).copy())[None]
    history = torch.randn(1, total, D, generator=torch.Generator().manual_seed(total))
    return history, number, torch.ones(1, total, dtype=torch.bool), torch.zeros(1, len(sizes), 1, dtype=torch.int64)


def test_two_tower_moment_output_equals_the_user_at_that_time() -> None:
    network = made()
    history, moments, mask, context = window(2, 3, 1)
    ends = network.forward_moments(history, moments, mask, context)[0]
    for moment, tokens in ((0, 6), (1, 5), (2, 2)):
        then = network.forward_user(history[:, :tokens], moments[:, :tokens] - moment, mask[:, :tokens], context[:, 0])
        torch.testing.assert_close(ends[moment], then[0], rtol=0, atol=1e-5)


def test_two_tower_sequence_user_is_that_of_the_newest_moment_and_depends_on_order() -> None:
    network = made(user="sequence")
    history, moments, mask, context = window(2, 3, 1)
    user = network.forward_user(history, moments, mask, context[:, 0])
    ends = network.forward_moments(history, moments, mask, context)[0]
    torch.testing.assert_close(ends[0], user[0], rtol=0, atol=1e-5)
    other_order = network.forward_user(history[:, [2, 3, 4, 0, 1, 5]], *window(3, 2, 1)[1:3], context[:, 0])
    assert (other_order - user).abs().max() > 1e-3
    changed = history.clone()
    changed[0, 5] += torch.linspace(-1, 1, D) ** 3  # the newest moment is unknown to the earlier ones
    after = network.forward_moments(changed, moments, mask, context)[0]
    assert ((after - ends).abs().amax(1) > 1e-5).tolist() == [True, False, False]


def test_two_tower_sequence_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"model\.heads"):
        made(user="sequence", heads=3)


@pytest.mark.slow  # seconds of export
@USERS
def test_two_tower_graph_equals_torch_for_any_length(user: str) -> None:
    network = made(user=user)
    session = ort.InferenceSession(user_graph(network, D, 1), providers=["CPUExecutionProvider"])
    for sizes in ((1,), (2, 3, 1), (1,) * 12):
        history, moments, mask, context = window(*sizes)
        feeds = {"history": history, "moments": moments, "mask": mask, "context": context[:, 0]}
        found = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})[0]
        expected = network.forward_user(**feeds).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_two_tower_score_is_a_cosine_over_tau() -> None:
    network = made()
    history, moments, mask, context = window(1, 1)
    user = network.forward_user(history, moments, mask, context[:, 0])
    items = network.item_vectors(torch.ones(N + 1, 1, dtype=torch.int64))
    torch.testing.assert_close(items.norm(dim=1), torch.ones(N + 1))
    assert user.norm().item() == pytest.approx(1 / 0.05, rel=1e-5)


@USERS
def test_two_tower_without_history_uses_the_context_only(user: str) -> None:
    network = made(user=user)
    history, moments, mask, _ = window(1)
    codes = torch.tensor([[2]])
    none = network.forward_user(history, moments, torch.zeros_like(mask), codes)
    other = network.forward_user(history * 7, moments, torch.zeros_like(mask), codes)
    torch.testing.assert_close(none, other)


@USERS
def test_two_tower_late_row_does_not_change_earlier_outputs(user: str) -> None:
    network = made(user=user)
    history, moments, mask, context = window(1, 1, 1)
    arrived = torch.ones(1, 3, 3, dtype=torch.bool)
    arrived[0, 1, 0] = False
    before = network.forward_moments(history, moments, mask, context, arrived)[0]
    history[0, 0] += torch.linspace(-1, 1, D) ** 3
    after = network.forward_moments(history, moments, mask, context, arrived)[0]
    assert ((after - before).abs().amax(1) > 1e-5).tolist() == [True, False, True]


def test_two_tower_loss_by_hand() -> None:
    """Two targets, three draws: each negative's score minus ln of its expectation."""
    network = made(uniform=3)
    vectors, items = torch.randn(2, D), torch.randn(N, D)
    targets, weights = torch.tensor([4, 9]), torch.tensor([1.0, 3.0])
    torch.manual_seed(1)
    found = weighted(
        ss_logq(PairScores.from_vectors(vectors, items, targets, SampledItems(*network.draw_negatives(targets)))),
        weights,
    )
    torch.manual_seed(1)
    drawn = torch.randint(N, (3,)).tolist()
    share = np.arange(1, N + 1) / sum(range(1, N + 1))
    each = []
    for row, target in enumerate((4, 9)):
        scores = (items @ vectors[row]).tolist()
        total = math.exp(scores[target])
        for j in [4, 9, *drawn]:
            if j != target:
                total += math.exp(scores[j] - math.log(2 * share[j] + 3 / N))
        each.append(math.log(total) - scores[target])
    assert found.item() == pytest.approx((each[0] + 3 * each[1]) / 4, rel=1e-4)


@pytest.fixture(scope="module")
def fitted_two_tower(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit_on_world(
        tmp_path_factory.mktemp("towers") / "shop", "two_tower", ("train.epochs=4", "train.time_budget=1h")
    )


@pytest.mark.slow
def test_two_tower_ranks_for_users_and_items_without_history(fitted_two_tower: Fitted) -> None:
    """A user with only attributes is ranked by the towers, others by popularity.

    Items without events before the cut are part of that ranking.
    """
    recommender = Recommender(fitted_two_tower.bundle, fitted_two_tower.catalogue)
    states = states_of(["known", "unknown"], [UserActs(attributes={"age": "18-29"}), UserActs()])
    queries = [Query(user_id=user, now=fitted_two_tower.now[0], n=200) for user in states.users]
    known, unknown = recommender.recommend(states, queries)
    assert set(unknown.sources[:10]) <= {"popular", "segment"}
    found = {source: known.sources.count(source) for source in set(known.sources)}
    assert "attributes" in found or "model" in known.sources
    encoded = recommender.encode(states, [fitted_two_tower.now[0]] * 2)
    allowed = recommender.candidate_mask(encoded, queries, recommender.placement("home"))
    assert recommender.slots.towers is not None
    ranked = list(recommender.slots.towers.best(fitted_two_tower.catalogue, encoded, allowed, 0))
    cold = set(fitted_two_tower.catalogue.latest("", fitted_two_tower.bundle.items.ids))
    assert cold
    assert cold <= set(ranked)
    assert len(set(ranked)) == len(ranked)
    assert list(recommender.slots.towers.best(fitted_two_tower.catalogue, encoded, allowed, 1)) == []


@pytest.mark.slow
def test_two_tower_cold_item_is_near_its_category(fitted_two_tower: Fitted) -> None:
    """The nearest items of a cold item share its category more often than by chance."""
    recommender = Recommender(fitted_two_tower.bundle, fitted_two_tower.catalogue)
    assert recommender.slots.towers is not None
    cold = recommender.slots.towers.outside.select(fitted_two_tower.catalogue, "")
    world = SimulatedShop(seed=0).items()
    category = dict(world.select(ITEM_ID, pl.col("category")).iter_rows())
    table = fitted_two_tower.bundle.arrays["item_vectors"][1:]
    shares = []
    for item_id, vector in zip(cold.ids, cold.features, strict=True):
        near = np.argsort(-(table @ vector))[:10]
        shares.append(np.mean([category[fitted_two_tower.bundle.items.ids.ids[n]] == category[item_id] for n in near]))
    assert np.mean(shares) > 0.4  # eight categories: 0.125 by chance


@pytest.mark.slow
def test_two_tower_similar_lists_use_attributes_for_cold_items(fitted_two_tower: Fitted) -> None:
    """Cold items get neighbours of their category; hot items fuse two sources."""
    recommender = Recommender(fitted_two_tower.bundle, fitted_two_tower.catalogue)
    ids = fitted_two_tower.bundle.items.ids
    cold = list(fitted_two_tower.catalogue.latest("", ids))
    category = dict(SimulatedShop(seed=0).items().select(ITEM_ID, pl.col("category")).iter_rows())
    names = [*cold, ids.ids[0]]
    queries = [
        Query(user_id="", now=fitted_two_tower.now[0], n=10, placement="similar", item_id=name) for name in names
    ]
    answers = recommender.recommend(states_of([""] * len(names), [UserActs()] * len(names)), queries)
    assert all(set(answer.sources) == {"attributes"} for answer in answers[:-1])
    shares = [
        np.mean([category[item] == category[name] for item in answer.items])
        for name, answer in zip(cold, answers, strict=False)
    ]
    assert np.mean(shares) > 0.4  # eight categories: 0.125 by chance
    assert set(answers[-1].sources) <= {"model", "neighbours"}
    vectors = fitted_two_tower.bundle.arrays["item_vectors"]
    nearest = np.argsort(-(vectors[1:] @ vectors[1]))[1]  # vectors have length 1; the item itself is the nearest
    assert ids.ids[nearest] in answers[-1].items
