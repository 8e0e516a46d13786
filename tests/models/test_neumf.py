"""NeuMF: logits and loss by hand, user rows, fold-in, the ranking graph, refused options."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime as ort
import pytest
import torch

from recloop.errors import UserError
from recloop.models.base import TrainData, load_model
from recloop.models.neumf import NeuMF
from recloop.training.export import rank_graph

D, N, U = 16, 20, 5
OLD_USER, USER_WITHOUT_ROWS = 3, 4


def made(dim: int = D, **options: object) -> NeuMF:
    """A network over five users: the fourth is a holdout user, the last has no rows."""
    torch.manual_seed(0)
    network: NeuMF = load_model("neumf", options)
    moments = np.arange(5)  # one item each; the first user has two
    data = TrainData(
        item_ids=[str(n) for n in range(N)],
        user_ids=[str(n) for n in range(U)],
        user_offsets=np.array([0, 2, 3, 4, 5, 5]),
        moment_offsets=np.arange(6),
        stamps=moments,
        items=moments + 1,
        seqs=moments,
        weights=np.ones(5, np.float32),
        old=np.arange(U) == OLD_USER,
        user_codes=np.zeros((U, 1), np.int32),
        item_codes=np.zeros((N + 1, 0), np.int32),
        user_fields=[("user.age", 4, 3)],
        item_fields=[],
        context_fields=[],
        cut=10,
        counts=np.arange(N + 1),
    )
    network.build(data, dim, 12)
    with torch.no_grad():  # initial vectors are too small for a product that a test can see
        for table in (network.users, network.table):
            table.weight.mul_(100)
        network.slope.copy_(torch.randn(dim, dim))
        network.intercept.copy_(torch.randn(dim))
    return network.eval()


def logit(network: NeuMF, user: torch.Tensor, item: torch.Tensor) -> tuple[float, float]:
    """Shares of GMF and MLP for vectors (D,), layer by layer."""
    half = D // 2
    hidden = torch.relu(network.wide(torch.cat([user[half:], item[half:]])))
    for layer in network.deep:
        hidden = torch.relu(layer(hidden))
    weight = network.join.weight[0]
    product = (user[:half] * item[:half]) @ weight[:half]
    return product.item(), (hidden @ weight[half:] + network.join.bias[0]).item()


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("layers", [1, 3])
def test_neumf_logit_is_gmf_and_mlp_joined_by_one_layer(layers: int) -> None:
    network = made(hidden=8, layers=layers)
    assert [layer.out_features for layer in (network.wide, *network.deep)] == [8, 4, 2][:layers]
    user, item = torch.randn(D), torch.randn(D)
    assert network.score_candidates(user[None], item[None, None]).item() == pytest.approx(
        sum(logit(network, user, item)), abs=1e-5
    )


@pytest.mark.parametrize("pretrain", [0, 1])
def test_neumf_loss_by_hand(pretrain: int) -> None:
    network = made(negatives=3, pretrain=pretrain, l2=0.5)
    network.start_epoch(0)
    vectors, items = torch.randn(2, D), torch.randn(N, D)
    torch.manual_seed(1)
    drawn = torch.randint(N, (2, 3)).tolist()
    owned_items = {4: {4, drawn[0][0]}, 9: {9}}  # the first user owns the first drawn item

    def owned(ids: torch.Tensor) -> torch.Tensor:
        return torch.tensor(
            [[j in owned_items[target] for j in row] for target, row in zip((4, 9), ids.tolist(), strict=True)]
        )

    torch.manual_seed(1)
    found = network.sampled_loss(vectors, items, torch.tensor([4, 9]), torch.tensor([1.0, 3.0]), owned).item()
    each = []
    for row, target in enumerate((4, 9)):
        negatives = [j for j in drawn[row] if j not in owned_items[target]]
        parts = {item: logit(network, vectors[row], items[item]) for item in (target, *negatives)}
        ways = (lambda part: 2 * part[0], lambda part: 2 * part[1]) if pretrain else (sum,)
        loss = sum(
            softplus(-way(parts[target])) + 3 * sum(softplus(way(parts[j])) for j in negatives) / len(negatives)
            for way in ways
        )
        each.append(loss + 0.25 * (vectors[row].square().sum() + items[target].square().sum()).item())
    assert found == pytest.approx((each[0] + 3 * each[1]) / 4, rel=1e-4)


def test_neumf_trains_the_parts_jointly_after_pretraining() -> None:
    network = made(pretrain=2)
    joint = []
    for epoch in range(3):
        network.start_epoch(epoch)
        joint.append(network.is_joint)
    assert joint == [False, False, True]


def test_neumf_users_without_a_pair_have_no_row() -> None:
    vectors = made().user_vectors()
    assert vectors.shape == (U + 1, D)
    has_row = (vectors != 0).any(1).tolist()
    assert has_row == [False, True, True, True, False, False]


def test_neumf_fold_in_recovers_an_affine_map_of_the_history() -> None:
    network = made()
    means = torch.randn(200, D)
    slope, intercept = torch.randn(D, D), torch.randn(D)
    network.fit_fold_in(means, means @ slope + intercept)
    history, mask = torch.randn(1, 3, D), torch.tensor([[True, True, False]])
    found = network.forward_user(history, torch.zeros(1, 3), mask, torch.zeros(1, 1))
    expected = history[0, :2].mean(0) @ slope + intercept
    torch.testing.assert_close(found[0], expected, rtol=0, atol=0.05)


@pytest.mark.slow  # six seconds of export; the graph of SASRec is in the fast tests
def test_neumf_graph_equals_torch_for_known_and_folded_users() -> None:
    network = made()
    session = ort.InferenceSession(rank_graph(network, D, 1), providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}
    for batch, tokens, count in ((1, 1, 1), (1, 7, 40), (3, 2, 5)):
        user = torch.randn(batch, D)
        user[-1] = 0  # without a row
        feeds = {
            "history": torch.randn(batch, tokens, D),
            "moments": torch.arange(tokens).flip(0).expand(batch, tokens).contiguous(),
            "mask": torch.ones(batch, tokens, dtype=torch.bool),
            "context": torch.full((batch, 1), 2),
            "candidates": torch.randn(batch, count, D),
            "user": user,
        }
        found = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items() if name in names})[0]
        candidates = feeds.pop("candidates")
        del feeds["user"]
        users = torch.cat([user[:-1], network.forward_user(**feeds)[-1:]])
        expected = network.score_candidates(users, candidates).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_neumf_with_an_odd_dim_is_refused() -> None:
    with pytest.raises(UserError, match=r"features\.dim=15"):
        made(dim=15)
