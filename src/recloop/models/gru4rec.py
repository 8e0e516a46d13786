"""GRU4Rec over moments: a recurrent state with one step per moment."""

from __future__ import annotations

import math
from typing import ClassVar

import pydantic
import torch
from torch import Tensor, nn

from recloop.models.base import TrainData
from recloop.models.layers import Dropout, SequenceModel
from recloop.models.search_space import SEQUENCE_SPACE, Range, SearchSpace


class GRU4Rec(SequenceModel):
    """GRU over the moments of a history.

    Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks", ICLR 2016 (arXiv 1511.06939), with one
    table for input and output, as the authors do since 2018 ("constrained embedding", arXiv 1706.03847).

    Difference to the paper (docs/definitions/sequence-models.md): a step is a moment, and its input is the mean of its
    items' vectors. A row that arrived after a later moment is not in the input. The projected state after a moment plus
    the context predicts the next moment. With one event per moment and no context the model equals the paper's.

    Shapes: B windows, T tokens, M moments, D = ``features.dim``, H = ``hidden``, N items, C fields of the context.
    """

    class Config(SequenceModel.Config):
        """Options.

        ``layers`` of ``hidden`` units. ``embedding_dropout``, ``dropout``: shares of input vectors and of states dropped
        in training. ``dropout_after``: epochs of a full run before both start.
        """

        layers: int = pydantic.Field(1, ge=1)
        hidden: int = pydantic.Field(100, ge=1)
        embedding_dropout: float = pydantic.Field(0.2, ge=0, lt=1)
        dropout: float = pydantic.Field(0.2, ge=0, lt=1)
        dropout_after: int = pydantic.Field(4, ge=0)

    search_space: ClassVar[SearchSpace] = {
        **SEQUENCE_SPACE,
        "model.hidden": Range(50, 250, step=50),
        "model.embedding_dropout": Range(0.0, 0.5, step=0.1),
        "model.dropout": Range(0.0, 0.5, step=0.1),
    }

    def build(self, data: TrainData, dim: int, history: int) -> None:  # noqa: ARG002 - no table counts positions
        """Build the tables: N items, fields; a recurrent network needs no positions."""
        self.make_tables(data, dim)
        self.embedding_dropout, self.dropout = Dropout(self.config.embedding_dropout), Dropout(self.config.dropout)
        self.gru = nn.GRU(dim, self.config.hidden, self.config.layers, batch_first=True)
        self.out = nn.Linear(self.config.hidden, dim)
        self.norm = nn.LayerNorm(dim)

    def forward_user(self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor) -> Tensor:
        """Vector of each user now.

        Args:
            history: (B, T, D) item vectors. moments: (B, T) numbers from the newest, 0. mask: (B, T) True = a token.
            context: (B, C) codes at ``now``.

        Returns:
            (B, D)
        """
        token_weights = mask.to(history.dtype)
        length = moments.shape[1]  # no window has more moments than tokens
        states, count = self.states(history, moments, mask, token_weights, length)  # (B, T, D), (B,)
        newest = (torch.arange(length, device=mask.device) == (count - 1)[:, None]).to(states.dtype)  # (B, T)
        users: Tensor = (states * newest[:, :, None]).sum(1) + self.context(context)
        return users

    def forward_moments(
        self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor, arrived: Tensor | None = None
    ) -> Tensor:
        """Vector after each moment, in training (`recloop.training.network`)."""
        token_weights = mask.to(history.dtype)
        if arrived is not None:
            later = (moments[:, :, None] < moments[:, None, :]) & mask[:, :, None]  # (B, T, T): i is newer than j
            token_weights = token_weights * (~(later & ~arrived).any(1)).to(token_weights.dtype)
        size = context.shape[1]
        states, count = self.states(history, moments, mask, token_weights, size)  # (B, M, D), oldest first
        step = (count[:, None] - 1 - torch.arange(size, device=mask.device)).clamp(min=0)  # (B, M)
        ends: Tensor = states.gather(1, step[:, :, None].expand(-1, -1, states.shape[2])) + self.context(context)
        return ends

    def states(
        self, history: Tensor, moments: Tensor, mask: Tensor, token_weights: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """(B, size, D) states after each moment, oldest first, and (B,) moment counts.

        Args:
            token_weights: (B, T) weight of each token in its moment's mean: 0 or 1.
        """
        count = torch.where(mask, moments, -1).amax(1) + 1  # (B,)
        moment_number = count[:, None] - 1 - moments  # (B, T) number of a token's moment, from the oldest
        step = torch.arange(size, device=mask.device)[None, :, None]  # (1, M, 1)
        member = (moment_number[:, None, :] == step).to(history.dtype) * token_weights[:, None, :]  # (B, M, T)
        mean = member @ history / member.sum(2, keepdim=True).clamp(min=1)  # (B, M, D)
        states = _run(self.gru, self.embedding_dropout(mean * math.sqrt(history.shape[2])))  # (B, M, H)
        projected: Tensor = self.norm(self.out(self.dropout(states)))
        return projected, count


def _run(gru: nn.GRU, x: Tensor) -> Tensor:
    """Run the layers: (B, M, D) -> (B, M, H).

    In an exported graph each layer is one ONNX operator instead of a loop traced step by step.
    """
    if not torch.onnx.is_in_onnx_export():
        states: Tensor = gru(x)[0]
        return states
    x = x.transpose(0, 1)  # (M, B, D)
    for layer in range(gru.num_layers):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        gates = [_gates(getattr(gru, f"{name}_l{layer}"), gru.hidden_size)[None] for name in names]
        inputs = (x, gates[0], gates[1], torch.cat(gates[2:], dim=1))
        x = torch.onnx.ops.symbolic(
            "GRU",
            inputs,
            attrs={"hidden_size": gru.hidden_size, "linear_before_reset": 1},
            dtype=x.dtype,
            shape=(x.shape[0], 1, x.shape[1], gru.hidden_size),
            version=14,
        )[:, 0]  # (M, B, H)
    return x.transpose(0, 1)


def _gates(weight: Tensor, hidden: int) -> Tensor:
    """Reorder gates from torch (reset, update, new) to ONNX (update, reset, new)."""
    reset, update, new = torch.split(weight, hidden)
    return torch.cat([update, reset, new])
