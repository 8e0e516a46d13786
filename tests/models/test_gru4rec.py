"""GRU4Rec over moments: a plain GRU for single items, a set within a moment."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime as ort
import pytest
import torch

from recloop.models.base import TrainData, load_model
from recloop.models.gru4rec import GRU4Rec
from recloop.training.export import user_graph

D, HISTORY, N = 16, 12, 20


def made(context: int = 0, layers: int = 1) -> GRU4Rec:
    torch.manual_seed(0)
    network: GRU4Rec = load_model("gru4rec", {"hidden": 24, "layers": layers})
    none = np.zeros(0, np.int64)
    data = TrainData(
        [str(n) for n in range(N)], [], np.zeros(1, np.int64), np.zeros(1, np.int64), none, none, none, none, none,
        none, none, [(f"user.{n}", 4, 3) for n in range(context)], [], [], 0, none,
    )  # fmt: skip
    network.build(data, D, HISTORY)
    return network.eval()


def window(*sizes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Oldest first: vectors (1, T, D), moments, mask (1, T), context (1, M, 0)."""
    total = sum(sizes)
    number = torch.from_numpy(np.repeat(np.arange(len(sizes))[::-1], sizes).copy())[None]
    history = torch.randn(1, total, D, generator=torch.Generator().manual_seed(total)) * 0.1
    return history, number, torch.ones(1, total, dtype=torch.bool), torch.zeros(1, len(sizes), 0, dtype=torch.int64)


def test_gru4rec_with_single_item_moments_equals_a_plain_gru() -> None:
    network = made()
    history, moments, mask, context = window(*[1] * 7)
    states, _ = network.gru(history * math.sqrt(D))
    plain = network.norm(network.out(states))
    torch.testing.assert_close(
        network.forward_moments(history, moments, mask, context).flip(1), plain, rtol=0, atol=1e-6
    )
    torch.testing.assert_close(
        network.forward_user(history, moments, mask, context[:, 0]), plain[:, -1], rtol=0, atol=1e-6
    )


def test_gru4rec_is_independent_of_padding_batch_and_order_within_a_moment() -> None:
    network = made()
    short, long = window(2, 1, 3), window(1, 4, 2, 2)
    history = torch.randn(2, 14, D) * 100  # values at padded positions must not matter
    moments, mask = torch.zeros(2, 14, dtype=torch.int64), torch.zeros(2, 14, dtype=torch.bool)
    for row, (h, m, k, _) in enumerate((short, long)):
        reordered = h[0] if row else h[0][[1, 0, 2, 5, 3, 4]]
        history[row, : h.shape[1]], moments[row, : m.shape[1]], mask[row, : k.shape[1]] = reordered, m[0], k[0]
    context = torch.zeros(2, 6, 0, dtype=torch.int64)
    ends, users = (
        network.forward_moments(history, moments, mask, context),
        network.forward_user(history, moments, mask, context[:, 0]),
    )
    for row, (h, m, k, c) in enumerate((short, long)):
        alone = network.forward_moments(h, m, k, c)[0]
        torch.testing.assert_close(ends[row, : len(alone)], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(users[row], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("token", "moved"), [(0, [0, 1, 2]), (3, [0, 1]), (5, [0])])
def test_gru4rec_moment_depends_on_itself_and_earlier_ones(token: int, moved: list[int]) -> None:
    network = made()
    history, moments, mask, context = window(2, 3, 1)
    before = network.forward_moments(history, moments, mask, context)[0]
    history[0, token] += torch.linspace(-1, 1, D)
    after = network.forward_moments(history, moments, mask, context)[0]
    assert ((after - before).abs().amax(1) > 1e-6).nonzero().ravel().tolist() == moved


def test_gru4rec_masked_positions_have_no_gradient() -> None:
    network = made().train()
    history, moments, mask, context = window(2, 1, 3)
    mask[0, -1] = False
    history.requires_grad_()
    network.forward_moments(history, moments, mask, context).square().sum().backward()
    assert history.grad is not None
    assert torch.all(history.grad[0, -1] == 0)
    assert torch.all(history.grad[0, :-1].abs().sum(-1) > 0)


def test_gru4rec_late_row_does_not_change_earlier_outputs() -> None:
    network = made()
    history, moments, mask, context = window(2, 1, 1)
    arrived = torch.ones(1, 4, 4, dtype=torch.bool)
    arrived[0, 2, 0] = False  # the second moment did not know token 0
    before = network.forward_moments(history, moments, mask, context, arrived)[0]
    history[0, 0] += torch.linspace(-1, 1, D)
    after = network.forward_moments(history, moments, mask, context, arrived)[0]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)


def test_gru4rec_adds_the_context() -> None:
    network = made(context=1)
    history, moments, mask, _ = window(2, 1)
    codes = torch.tensor([[1], [3]])
    two = [tensor.expand(2, *tensor.shape[1:]) for tensor in (history, moments, mask)]
    users, expected = network.forward_user(*two, codes), network.context(codes)
    torch.testing.assert_close(users[0] - users[1], expected[0] - expected[1], rtol=0, atol=1e-6)


@pytest.mark.slow  # eight seconds of export; the graph of SASRec is in the fast tests
@pytest.mark.parametrize("layers", [1, 2])
def test_gru4rec_graph_equals_torch_for_any_length(layers: int) -> None:
    network = made(context=1, layers=layers)
    session = ort.InferenceSession(user_graph(network, D, 1), providers=["CPUExecutionProvider"])
    for sizes in ((1,), (2, 3, 1), (1,) * 40):
        history, moments, mask, _ = (tensor.expand(3, *tensor.shape[1:]).contiguous() for tensor in window(*sizes))
        codes = torch.tensor([[0], [1], [3]])
        feeds = {"history": history, "moments": moments, "mask": mask, "context": codes}
        found = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})[0]
        expected = network.forward_user(history, moments, mask, codes).detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
