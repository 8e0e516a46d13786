"""NeuMF: product and MLP of user and item; it ranks candidates of baselines."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloop.errors import UserError
from recloop.models.base import TrainData
from recloop.models.layers import SequenceModel
from recloop.models.pooling import TimeDecayPooling
from recloop.models.search_space import Choice, Range, SearchSpace

MAX_VALIDATION_ITEMS = 2_000
"""Number of most frequent items used in validation, because scoring a large catalog takes minutes."""

PRODUCT_WEIGHT = 10.0
"""Initial weight of each part of the product; vectors from counts have a standard deviation of 0.1."""


class NeuMF(SequenceModel):
    """Neural collaborative filtering that ranks candidates.

    He et al., "Neural Collaborative Filtering", WWW 2017 (arXiv 1708.05031). Half of an item's vector is the input of the
    product (GMF), half is the input of the MLP; the last layer joins both into one logit.

    Difference to the paper: a user is the time-decayed mean of the history plus the context instead of a table row, so
    new users have a vector. The loss is ``bce``: each target against ``negatives`` drawn items with a total weight of
    four, as in the paper.

    Shapes: B windows, T tokens, M moments, D = ``features.dim``, N items, K candidates, R targets.
    """

    class Config(SequenceModel.Config):
        """Options.

        ``hidden``: width of the MLP. ``negatives``: items drawn per step. ``dropout``: dropout in the MLP.
        """

        hidden: int = pydantic.Field(64, ge=1)
        negatives: int = pydantic.Field(64, ge=1)
        dropout: float = pydantic.Field(0.1, ge=0, lt=1)

    kind: ClassVar[str] = "rank"
    default_loss: ClassVar[str] = "bce"

    search_space: ClassVar[SearchSpace] = {
        "train.lr": Range(3e-4, 1e-2, log=True),
        "features.dim": Choice((32, 64, 96, 128)),
        "model.hidden": Range(32, 128, step=32),
        "model.negatives": Choice((32, 64, 128, 256)),
        "model.dropout": Range(0.0, 0.5, step=0.1),
    }

    def build(self, data: TrainData, dim: int, history: int) -> None:  # noqa: ARG002 - a mean has no positions
        """Build the tables and the MLP.

        Raises:
            UserError: the width is odd and cannot be halved.
        """
        if dim % 2:
            raise UserError("features.dim", dim, "an even width for the two halves of NeuMF", "--set features.dim=64")
        self.make_tables(data, dim)
        self.pool = TimeDecayPooling()
        self.person = nn.Linear(dim, dim)
        self.wide, self.deep = nn.Linear(dim, self.config.hidden), nn.Linear(self.config.hidden, dim // 2)
        self.dropout = nn.Dropout(self.config.dropout)
        self.join = nn.Linear(dim, 1)
        order = torch.as_tensor(data.counts).argsort(descending=True, stable=True)
        self.examined: Tensor  # (at most MAX_VALIDATION_ITEMS,) rows
        self.register_buffer("examined", order[order > 0][:MAX_VALIDATION_ITEMS], persistent=False)

    def init_items(self, vectors: Tensor) -> None:
        """Initialize the item vectors (N+1, D) and the weights of the product.

        The paper starts from a trained GMF; here the vectors from counts replace it.
        """
        super().init_items(vectors)
        with torch.no_grad():
            self.person.weight.copy_(torch.eye(len(self.person.weight)))
            self.person.bias.zero_()
            self.join.weight[:, : self.join.in_features // 2] = PRODUCT_WEIGHT

    def forward_user(self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor) -> Tensor:
        """(B, D) users now.

        Inputs are history (B, T, D), moments and mask (B, T), context (B, C).
        """
        users: Tensor = self.person(self.pool.pool_user(history, moments, mask)) + self.context(context)
        return users

    def forward_moments(
        self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor, arrived: Tensor | None = None
    ) -> Tensor:
        """(B, M, D) users after each moment.

        ``context`` is (B, M, C); the other arguments are those of `SASRec.ends`.
        """
        pooled = self.pool.pool_moments(history, moments, mask, context.shape[1], arrived)
        ends: Tensor = self.person(pooled) + self.context(context)
        return ends

    def score_candidates(self, users: Tensor, candidates: Tensor) -> Tensor:
        """(B, K) logits of candidates for users (B, D).

        Candidates are (B, K, D), or (1, K, D) shared by all users.
        """
        half = users.shape[1] // 2
        user = users[:, None, :]  # (B, 1, D)
        product = user[..., :half] * candidates[..., :half]  # (B, K, D/2)
        # the MLP's input is user and item
        user_weights = self.wide.weight[:, :half]
        item_weights = self.wide.weight[:, half:]
        wide = user[..., half:] @ user_weights.T + candidates[..., half:] @ item_weights.T + self.wide.bias  # (B, K, H)
        deep = F.relu(self.deep(self.dropout(F.relu(wide))))  # (B, K, D/2)
        logits: Tensor = self.join(torch.cat([product, deep], dim=-1))[..., 0]
        return logits

    def score_items(self, users: Tensor, table: Tensor) -> Tensor:
        """(B, N+1) for validation: logits of the examined items, -inf for the others."""
        scores = users.new_full((len(users), len(table)), -torch.inf)
        scores[:, self.examined] = self.score_candidates(users, table[self.examined][None])
        return scores

    def sampled_loss(
        self, vectors: Tensor, items: Tensor, targets: Tensor, weights: Tensor, owned: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Loss ``bce`` over drawn negatives.

        It is the sum of w (softplus(-s_y) + 4 mean of softplus(s_j)) over the sum of w. The mean is over the drawn j that
        the user did not take, as in the paper.

        Args:
            vectors: (R, D). items: (N, D). targets: (R,) rows of ``items``. weights: (R,). owned: (m,) drawn rows ->
                (R, m) bool, the items that each row's user took (`recloop.training.sampled_losses.OwnedItems`).
        """
        sampled = torch.randint(len(items), (self.config.negatives,), device=targets.device)
        target_scores = self.score_candidates(vectors, items[targets][:, None])[:, 0]  # (R,)
        sampled_losses = F.softplus(self.score_candidates(vectors, items[sampled][None]))  # (R, m)
        masked = sampled == targets[:, None]
        if owned is not None:
            masked = masked | owned(sampled)
        sampled_losses = sampled_losses.masked_fill(masked, 0.0)
        row_losses = F.softplus(-target_scores) + 4.0 * sampled_losses.sum(1) / (~masked).sum(1).clamp(min=1)
        loss: Tensor = (weights * row_losses).sum() / weights.sum()
        return loss

    def rejected_loss(self, vectors: Tensor, items: Tensor, rejected: Tensor, weights: Tensor) -> Tensor:
        """Loss ``bce`` of dislikes and skips: sum of w softplus(s_d) / sum of w."""
        row_losses = F.softplus(self.score_candidates(vectors, items[rejected][:, None])[:, 0])
        loss: Tensor = (weights * row_losses).sum() / weights.sum()
        return loss
