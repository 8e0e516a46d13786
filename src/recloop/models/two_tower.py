"""Two-Tower: users and items encoded from attributes and history, cosine score."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloop.models.attention import AttentionEncoder
from recloop.models.base import TrainData
from recloop.models.layers import Dropout, SequenceModel
from recloop.models.pooling import TimeDecayPooling
from recloop.models.search_space import SEQUENCE_SPACE, Choice, Range, SearchSpace

MIN_TEMPERATURE = 0.01
"""Lower bound of the learned temperature."""


class TwoTower(AttentionEncoder, SequenceModel):
    """Two towers with MLPs and a learned temperature.

    Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019. The item
    tower is an MLP over the sum of the item's row and its fields. The user tower is an MLP over a vector of the history
    plus user and request fields: time-decayed means of its item vectors (``pooled``), to which ``sequence`` adds the newest
    moment after blocks of self-attention as in SASRec; the means, of vectors of length 1, are scaled by sqrt(D). The score
    is their cosine / tau; tau is learned and starts at 0.05. Training drops the row of a share ``alone`` of items and the history of the same share of windows, where fields are
    left. The towers thus learn to rank users and items without history by attributes (the fallback ``attributes``).

    ``train.loss = "auto"`` is ``ce`` up to `max_full_softmax_items` items, and ``ss_logq`` over `draw_negatives` above
    (docs/definitions/losses.md). Where lists hide seen items, ``ce`` leaves out the items of the history.

    Shapes: B windows, T tokens, M moments, D = ``features.dim``, N items, C fields of the context, R targets.
    """

    class Config(SequenceModel.Config):
        """Options.

        ``user``: vector of a history. ``hidden``: width of the MLPs. ``means``: number of means. ``uniform``:
        negative items drawn per step in addition to the batch's targets. ``alone``: share of items and windows reduced to
        attributes in training. ``dropout``: share dropped inside MLPs and blocks. ``dropout_after``: epochs of a full run
        before it starts. ``blocks`` of attention with ``heads`` each, a divisor of ``features.dim``, and ``block`` as in
        SASRec, for ``sequence``.
        """

        user: Literal["pooled", "sequence"] = "pooled"
        hidden: int = pydantic.Field(128, ge=1)
        means: int = pydantic.Field(4, ge=1)
        uniform: int = pydantic.Field(512, ge=1)
        alone: float = pydantic.Field(0.1, ge=0, lt=1)
        dropout: float = pydantic.Field(0.1, ge=0, lt=1)
        block: Literal["vanilla", "ligr"] = "vanilla"
        blocks: int = pydantic.Field(2, ge=1)
        heads: int = pydantic.Field(2, ge=1)
        dropout_after: int = pydantic.Field(4, ge=0)

    max_full_softmax_items: ClassVar[int] = 10_000
    hides_seen: ClassVar[bool] = True

    search_space: ClassVar[SearchSpace] = {
        **SEQUENCE_SPACE,
        "model.user": Choice(("pooled", "sequence")),
        "model.means": Range(1, 8),
        "model.hidden": Range(64, 256, step=64),
        "model.uniform": Choice((256, 512, 1024, 2048)),
        "model.dropout": Range(0.0, 0.5, step=0.1),
    }

    def build(self, data: TrainData, dim: int, history: int) -> None:
        """Build the tables, both MLPs and the reader of a history.

        Raises:
            UserError: the number of heads does not divide the width.
        """
        config = self.config
        self.make_tables(data, dim)
        self.item_tower, self.user_tower = (Tower(dim, config.hidden, config.dropout) for _ in range(2))
        self.pool = TimeDecayPooling(dim, config.means)
        self.is_sequence = config.user == "sequence"
        if self.is_sequence:
            self.make_blocks(config.block, config.blocks, config.heads, dim, history, config.dropout)
        self.log_tau = nn.Parameter(torch.tensor([0.05]).log())
        self.share: Tensor  # (N,) share of each item among the drawn training targets
        share = torch.from_numpy(data.target_share()[1:].astype(np.float32))
        self.register_buffer("share", share, persistent=False)

    def item_vectors(self, codes: Tensor) -> Tensor:
        """Item vectors (N+1, D) of length 1 from rows and the fields' codes (N+1, Ci)."""
        rows = self.table.weight
        if self.training and len(self.item_fields.tables):
            rows = rows * self._kept(len(rows), rows)[:, None]
        vectors: Tensor = F.normalize(self.item_tower(rows + self.item_fields(codes)), dim=-1)
        return vectors

    def cold_item_vectors(self, codes: Tensor) -> Tensor:
        """(n, D) vectors of items without a row, from their fields' codes (n, Ci)."""
        vectors: Tensor = F.normalize(self.item_tower(self.item_fields(codes)), dim=-1)
        return vectors

    def forward_user(self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor) -> Tensor:
        """Vector of each user now (length 1 / tau); without history from the context only.

        Args:
            history: (B, T, D) item vectors. moments: (B, T) numbers from the newest, 0. mask: (B, T) True = a token.
            context: (B, C) codes at ``now``.

        Returns:
            (B, D)
        """
        vectors = self.pool.pool_user(history, moments, mask)  # (B, D)
        if self.is_sequence:
            vectors = self.newest(history, moments, mask) + vectors * math.sqrt(self.dim)
        return self._user(vectors, context)

    def forward_moments(
        self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor, arrived: Tensor | None = None
    ) -> Tensor:
        """Vector of the user after each moment, in training (`recloop.training.network`)."""
        window = (history, moments, mask, context.shape[1], arrived)
        vectors = self.pool.pool_moments(*window)  # (B, M, D)
        if self.is_sequence:
            vectors = self.ends(*window) + vectors * math.sqrt(self.dim)
        if self.training and context.shape[2]:
            vectors = vectors * self._kept(len(vectors), vectors)[:, None, None]
        return self._user(vectors, context)

    def draw_negatives(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the negatives of a step, (m,), and return the expected count m q_j of each.

        They are the batch's R targets and M uniform draws of N items, so m q_j = R share_j + M / N. In-batch negatives
        alone would penalize popular items. `recloop.training.sampled_losses.OwnedItems` masks the items that the user took;
        otherwise most targets of a window would be negatives of its other rows.
        """
        size = len(self.share)
        uniform = torch.randint(size, (self.config.uniform,), device=targets.device)
        ids = torch.cat([targets, uniform])
        return ids, len(targets) * self.share[ids] + self.config.uniform / size

    def _user(self, vectors: Tensor, context: Tensor) -> Tensor:
        """(..., D) vectors of histories and (..., C) codes -> (..., D) of length 1 / tau."""
        tau = self.log_tau.exp().clamp(min=MIN_TEMPERATURE)
        users: Tensor = F.normalize(self.user_tower(vectors + self.context(context)), dim=-1) / tau
        return users

    def _kept(self, size: int, like: Tensor) -> Tensor:
        """(size,) mask: 1, or 0 for the dropped share ``alone``."""
        keep_mask: Tensor = (torch.rand(size, device=like.device) >= self.config.alone).to(like.dtype)
        return keep_mask


class Tower(nn.Module):
    """MLP with one hidden layer and a residual connection."""

    def __init__(self, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.wide, self.out = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        out: Tensor = x + self.out(self.dropout(F.relu(self.wide(x))))
        return out
