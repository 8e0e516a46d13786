"""SASRec over moments: self-attention over a user's history."""

from __future__ import annotations

from typing import ClassVar, Literal

import pydantic
from torch import Tensor

from recloop.models.attention import AttentionEncoder
from recloop.models.base import TrainData
from recloop.models.layers import SequenceModel
from recloop.models.search_space import SEQUENCE_SPACE, Choice, Range, SearchSpace


class SASRec(AttentionEncoder, SequenceModel):
    """Self-attention over a user's history, with one vector per moment.

    Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018 (arXiv 1808.09781). The blocks are the paper's:
    x + Dropout(Attention(LayerNorm(x))), then x + Dropout(FFN(LayerNorm(x))) with a point-wise FFN of width D and ReLU;
    learned positions; one item table for input and output.

    Difference to the paper (docs/definitions/sequence-models.md): a token is an item of a moment. Its position is the
    number of its moment from the newest, and it attends to its moment and earlier ones. The mean over a moment's tokens
    plus the context predicts the next moment. With one event per moment and no context the model equals the paper's.

    Shapes: B windows, T tokens, M moments, D = ``features.dim``, N items, C fields of the context.
    """

    class Config(SequenceModel.Config):
        """Options.

        ``blocks`` of attention with ``heads`` each, a divisor of ``features.dim``. ``block``: the paper's (``vanilla``) or
        gated (``ligr``). ``dropout``, ``attention_dropout``: share dropped in training. ``dropout_after``: epochs of a full
        run before ``dropout`` starts.
        """

        block: Literal["vanilla", "ligr"] = "vanilla"
        blocks: int = pydantic.Field(2, ge=1)
        heads: int = pydantic.Field(2, ge=1)
        dropout: float = pydantic.Field(0.2, ge=0, lt=1)
        dropout_after: int = pydantic.Field(4, ge=0)
        attention_dropout: float = pydantic.Field(0.0, ge=0, lt=1)

    search_space: ClassVar[SearchSpace] = {
        **SEQUENCE_SPACE,
        "model.block": Choice(("vanilla", "ligr")),
        "model.blocks": Range(1, 3),
        "model.heads": Choice((1, 2, 4)),
        "model.dropout": Range(0.0, 0.5, step=0.1),
    }

    def build(self, data: TrainData, dim: int, history: int) -> None:
        """Build the tables: N items, fields, ``history`` positions.

        Raises:
            UserError: the number of heads does not divide the width.
        """
        self.make_tables(data, dim)
        config = self.config
        self.make_blocks(
            config.block, config.blocks, config.heads, dim, history, config.dropout, config.attention_dropout
        )

    def forward_user(self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor) -> Tensor:
        """Vector of each user now.

        Args:
            history: (B, T, D) item vectors. moments: (B, T) numbers from the newest, 0. mask: (B, T) True = a token.
            context: (B, C) codes at ``now``.

        Returns:
            (B, D)
        """
        users: Tensor = self.newest(history, moments, mask) + self.context(context)
        return users

    def forward_moments(
        self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor, arrived: Tensor | None = None
    ) -> Tensor:
        """Vector after each moment, in training (`recloop.training.network`)."""
        ends: Tensor = self.ends(history, moments, mask, context.shape[1], arrived) + self.context(context)
        return ends
