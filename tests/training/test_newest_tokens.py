"""SASRec reads only the tokens of the newest moment: against all tokens, and in the exported graph."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from recloop.models.attention import Block
from recloop.models.layers import FieldEmbedding, embedding
from recloop.models.sasrec import SASRec
from recloop.training.export import user_graph

DIM = 8


@pytest.fixture(scope="module")
def network() -> SASRec:
    torch.manual_seed(0)
    network = SASRec(SASRec.Config())
    network.dim, network.history = DIM, 6
    network.positions = embedding(6, DIM, std=0.5)
    network.dropout = nn.Dropout(0.2)
    network.blocks = nn.ModuleList(Block(DIM, 2, 0.2) for _ in range(2))
    network.norm = nn.LayerNorm(DIM)
    network.context = FieldEmbedding([("context.hour", 5, 4)], DIM)
    return network.eval()


@pytest.fixture(scope="module")
def windows() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows of 0 to 5 tokens with newest moments of 1 to 3; the second has no token."""
    moments = torch.tensor([[2, 1, 1, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [7, 6, 1, 0, 0]])
    lengths = torch.tensor([5, 0, 3, 2, 4])
    mask = torch.arange(5) < lengths[:, None]
    torch.manual_seed(1)
    return torch.randn(5, 5, DIM) * mask[:, :, None], moments, mask, torch.tensor([[1], [0], [2], [4], [3]])


def all_tokens(network: SASRec, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor) -> Tensor:
    """User vectors by the definition: all tokens pass all blocks."""
    hidden = network.hidden(history, moments, mask)
    newest = (mask & (moments == 0)).float()[:, :, None]
    users: Tensor = (hidden * newest).sum(1) / newest.sum(1).clamp(min=1) + network.context(context)
    return users


def test_forward_user_equals_the_definition_over_all_tokens(
    network: SASRec, windows: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    with torch.no_grad():
        torch.testing.assert_close(network.forward_user(*windows), all_tokens(network, *windows), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_exported_graph_equals_forward_user_for_any_number_of_newest_tokens(
    network: SASRec, windows: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    graph = ort.InferenceSession(user_graph(network, DIM, 1), providers=["CPUExecutionProvider"])
    names = ("history", "moments", "mask", "context")
    for rows in ([0, 1, 2, 3, 4], [3], [0, 3], [1]):
        feeds = {name: tensor[rows].numpy() for name, tensor in zip(names, windows, strict=True)}
        with torch.no_grad():
            users = all_tokens(network, *(tensor[rows] for tensor in windows)).numpy()
        assert np.allclose(graph.run(None, feeds)[0], users, rtol=0, atol=1e-6)
