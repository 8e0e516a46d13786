"""NeuMF: logit and loss by hand, the ranking graph, and refused options."""

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

D, N = 16, 20


def made(dim: int = D, **options: object) -> NeuMF:
    torch.manual_seed(0)
    network: NeuMF = load_model("neumf", options)
    none = np.zeros(0, np.int64)
    data = TrainData(
        [str(n) for n in range(N)], [], np.zeros(1, np.int64), np.zeros(1, np.int64), none, none, none, none, none,
        none, none, [("user.age", 4, 3)], [], [], 0, np.arange(N + 1),
    )  # fmt: skip
    network.build(data, dim, 12)
    return network.eval()


def test_neumf_logit_by_hand() -> None:
    network = made()
    user, item = torch.randn(1, D), torch.randn(1, 1, D)
    both = torch.cat([user[0, D // 2 :], item[0, 0, D // 2 :]])
    deep = torch.relu(network.deep(torch.relu(network.wide(both))))
    expected = network.join(torch.cat([user[0, : D // 2] * item[0, 0, : D // 2], deep]))
    torch.testing.assert_close(network.score_candidates(user, item)[0], expected)


def test_neumf_loss_by_hand() -> None:
    network = made(negatives=3)
    vectors, items = torch.randn(2, D), torch.randn(N, D)
    torch.manual_seed(1)
    drawn = torch.randint(N, (3,)).tolist()
    owned_items = {4: {4, drawn[0]}, 9: {9}}  # the first user owns the first drawn item

    def owned(ids: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[j in owned_items[target] for j in ids.tolist()] for target in (4, 9)])

    torch.manual_seed(1)
    found = network.sampled_loss(vectors, items, torch.tensor([4, 9]), torch.tensor([1.0, 3.0]), owned).item()
    logits = network.score_candidates(vectors, items[None]).tolist()
    each = []
    for row, target in enumerate((4, 9)):
        rivals = [math.log1p(math.exp(logits[row][j])) for j in drawn if j not in owned_items[target]]
        each.append(math.log1p(math.exp(-logits[row][target])) + 4 * sum(rivals) / len(rivals))
    assert found == pytest.approx((each[0] + 3 * each[1]) / 4, rel=1e-4)


@pytest.mark.slow  # six seconds of export; the graph of SASRec is in the fast tests
def test_neumf_graph_equals_torch_for_any_size() -> None:
    network = made()
    session = ort.InferenceSession(rank_graph(network, D, 1), providers=["CPUExecutionProvider"])
    for batch, tokens, count in ((1, 1, 1), (1, 7, 40), (3, 2, 5)):
        feeds = {
            "history": torch.randn(batch, tokens, D),
            "moments": torch.arange(tokens).flip(0).expand(batch, tokens).contiguous(),
            "mask": torch.ones(batch, tokens, dtype=torch.bool),
            "context": torch.full((batch, 1), 2),
            "candidates": torch.randn(batch, count, D),
        }
        found = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})[0]
        candidates = feeds.pop("candidates")
        expected = network.score_candidates(network.forward_user(**feeds), candidates).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_neumf_moment_output_equals_the_user_at_that_time() -> None:
    network = made()
    history, mask = torch.randn(1, 4, D), torch.ones(1, 4, dtype=torch.bool)
    moments, context = torch.tensor([[2, 1, 1, 0]]), torch.zeros(1, 3, 1, dtype=torch.int64)
    ends = network.forward_moments(history, moments, mask, context)[0]
    for moment, tokens in ((0, 4), (1, 3), (2, 1)):
        then = network.forward_user(history[:, :tokens], moments[:, :tokens] - moment, mask[:, :tokens], context[:, 0])
        torch.testing.assert_close(ends[moment], then[0], rtol=0, atol=1e-5)


def test_neumf_with_an_odd_dim_is_refused() -> None:
    with pytest.raises(UserError, match=r"features\.dim=15"):
        made(dim=15)
