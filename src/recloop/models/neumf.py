"""NeuMF: GMF and MLP over user and item ids; it ranks candidates."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recloop.errors import UserError
from recloop.models.base import TrainData
from recloop.models.layers import Dropout, FieldEmbedding, SequenceModel, embedding
from recloop.models.search_space import Choice, Range, SearchSpace

MAX_VALIDATION_ITEMS = 2_000
"""Number of most frequent items used in validation, because scoring a large catalog takes minutes."""

INITIAL_STD = 0.01
"""Standard deviation of the initial vectors, as in the paper."""


class NeuMF(SequenceModel):
    """Neural matrix factorization: GMF and MLP, joined by one linear layer.

    He et al., "Neural Collaborative Filtering", WWW 2017 (arXiv 1708.05031). A user and an item are rows of tables. The first
    half of a row is the input of GMF (the product), the second half that of the MLP, so each part has its own vectors. The loss
    is the log loss of each positive pair against ``negatives`` drawn items that the user did not take.

    Difference to the paper: pre-training of the parts is their training side by side with separate logits, and the joint
    training continues with the same optimizer. Fields of an item are added to its row. A user without a row is folded in: an
    affine map, fitted by least squares on the users with a row, takes the mean vector of the history to a user vector.

    Shapes: B users, T tokens, D = ``features.dim``, U users, N items, K candidates, R pairs.
    """

    class Config(SequenceModel.Config):
        """Options.

        ``hidden``: width of the first layer of the MLP; each of its ``layers`` has half the width of the one before.
        ``negatives``: items drawn for each positive pair. ``pairs``: positive pairs in a step. ``pretrain``: epochs in which GMF
        and MLP have separate logits. ``l2``: weight of the squared vectors of a step's pairs. ``dropout``: dropout in the MLP.
        """

        hidden: int = pydantic.Field(64, ge=1)
        layers: int = pydantic.Field(2, ge=1)
        negatives: int = pydantic.Field(4, ge=1)
        pairs: int = pydantic.Field(1024, ge=1)
        pretrain: int = pydantic.Field(0, ge=0)
        l2: float = pydantic.Field(0.0, ge=0)
        dropout: float = pydantic.Field(0.0, ge=0, lt=1)

    inputs: ClassVar[str] = "pairs"
    kind: ClassVar[str] = "rank"
    default_loss: ClassVar[str] = "bce"
    user_tables: ClassVar[tuple[str, ...]] = ("users.weight",)

    search_space: ClassVar[SearchSpace] = {
        "train.lr": Range(3e-4, 1e-2, log=True),
        "features.dim": Choice((32, 64, 96, 128)),
        "model.hidden": Range(32, 128, step=32),
        "model.negatives": Choice((4, 8)),
        "model.l2": Range(1e-6, 1e-1, log=True),
        "model.dropout": Range(0.0, 0.5, step=0.1),
    }

    def build(self, data: TrainData, dim: int, history: int) -> None:  # noqa: ARG002 - pairs have no positions
        """Build the tables and the MLP.

        Raises:
            UserError: the width is odd and cannot be halved.
        """
        if dim % 2:
            raise UserError("features.dim", dim, "an even width for the two halves of NeuMF", "--set features.dim=64")
        self.table = embedding(data.n_items + 1, dim, std=INITIAL_STD)  # (N+1, D); row 0 pads
        self.item_fields = FieldEmbedding(data.item_fields, dim)
        self.users = embedding(data.n_users + 1, dim, std=INITIAL_STD)  # (U+1, D); row 0 is of no user
        widths = [self.config.hidden >> layer or 1 for layer in range(self.config.layers)]
        self.wide = nn.Linear(dim, widths[0])
        self.deep = nn.ModuleList(nn.Linear(wide, narrow) for wide, narrow in pairwise(widths))
        self.dropout = Dropout(self.config.dropout)
        self.join = nn.Linear(dim // 2 + widths[-1], 1)
        nn.init.kaiming_uniform_(self.join.weight, a=1)
        self.is_joint = True
        self.slope: Tensor  # (D, D) and (D,) map of the mean vector of a history to a user vector
        self.intercept: Tensor
        self.register_buffer("slope", torch.zeros(dim, dim))
        self.register_buffer("intercept", torch.zeros(dim))
        self.has_row: Tensor  # (U+1, 1): 1 for a user with a training pair
        n_pairs = np.bincount(data.moment_user[data.row_moment][data.target_rows] + 1, minlength=data.n_users + 1)
        is_learned = (n_pairs > 0) & ~np.concatenate([[True], data.old])
        self.register_buffer("has_row", torch.from_numpy(is_learned)[:, None])
        order = torch.as_tensor(data.counts).argsort(descending=True, stable=True)
        self.examined: Tensor  # (at most MAX_VALIDATION_ITEMS,) rows
        self.register_buffer("examined", order[order > 0][:MAX_VALIDATION_ITEMS], persistent=False)

    def start_epoch(self, epoch: int) -> None:
        """Separate the logits of both parts in the first ``pretrain`` epochs."""
        self.is_joint = epoch >= self.config.pretrain

    def user_vectors(self) -> Tensor:
        """(U+1, D) rows of the users; 0 for a user without a training pair."""
        vectors: Tensor = self.users.weight * self.has_row
        return vectors

    def fold_in(self, means: Tensor) -> Tensor:
        """(..., D) user vectors of mean history vectors (..., D)."""
        folded: Tensor = means @ self.slope + self.intercept
        return folded

    def fit_fold_in(self, means: Tensor, users: Tensor) -> None:
        """Fit the map of `fold_in` by least squares.

        Args:
            means: (n, D) mean vectors of the histories. users: (n, D) rows of the same users.
        """
        inputs = torch.cat([means, torch.ones(len(means), 1)], dim=1).double()
        gram = inputs.T @ inputs
        gram += torch.eye(len(gram)) * gram.diagonal().mean() * 1e-4  # a unique solution for few users
        solution = torch.linalg.solve(gram, inputs.T @ users.double()).float()
        self.slope.copy_(solution[:-1])
        self.intercept.copy_(solution[-1])

    def forward_user(self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor) -> Tensor:  # noqa: ARG002
        """(B, D) users folded in by their history (B, T, D)."""
        weights = mask.to(history.dtype)
        means = (history * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
        return self.fold_in(means)

    def score_candidates(self, users: Tensor, candidates: Tensor) -> Tensor:
        """(B, K) logits of candidates for users (B, D).

        Candidates are (B, K, D), or (1, K, D) shared by all users.
        """
        product, deep = self.part_logits(users, candidates)
        return product + deep

    def part_logits(self, users: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """Shares of GMF and MLP in the logits of `score_candidates`, (B, K) each."""
        half = users.shape[1] // 2
        user = users[:, None, :]  # (B, 1, D)
        product = user[..., :half] * candidates[..., :half]  # (B, K, D/2)
        weight = self.wide.weight  # its input is user and item
        wide = user[..., half:] @ weight[:, :half].T + candidates[..., half:] @ weight[:, half:].T
        hidden = F.relu(wide + self.wide.bias)  # (B, K, H)
        for layer in self.deep:
            hidden = F.relu(layer(self.dropout(hidden)))
        joined = self.join.weight[0]
        return product @ joined[:half], hidden @ joined[half:] + self.join.bias

    def score_items(self, users: Tensor, table: Tensor) -> Tensor:
        """(B, N+1) for validation: logits of the examined items, -inf for the others."""
        scores = users.new_full((len(users), len(table)), -torch.inf)
        scores[:, self.examined] = self.score_candidates(users, table[self.examined][None])
        return scores

    def sampled_loss(
        self, vectors: Tensor, items: Tensor, targets: Tensor, weights: Tensor, owned: Callable[[Tensor], Tensor] | None
    ) -> Tensor:
        """Log loss of pairs and their drawn negatives.

        It is the sum of w (softplus(-s_y) + n mean of softplus(s_j) + l2 (|p|^2 + |q|^2) / 2) over the sum of w. The mean is
        over the drawn j that the user did not take, n is ``negatives``.

        Args:
            vectors: (R, D) users. items: (N, D). targets: (R,) rows of ``items``. weights: (R,). owned: (R, n) drawn rows ->
                (R, n) bool, the items that each row's user took (`recloop.training.sampled_losses.OwnedItems`).
        """
        drawn = torch.randint(len(items), (len(targets), self.config.negatives), device=targets.device)
        masked = drawn == targets[:, None]
        if owned is not None:
            masked = masked | owned(drawn)
        pairs = F.embedding(torch.cat([targets[:, None], drawn], dim=1), items)  # (R, 1 + n, D)
        row_losses = self._log_loss(vectors, pairs, masked)
        if self.config.l2:
            squares = vectors.square().sum(1) + pairs[:, 0].square().sum(1)
            row_losses = row_losses + self.config.l2 / 2 * squares
        loss: Tensor = (weights * row_losses).sum() / weights.sum()
        return loss

    def _log_loss(self, users: Tensor, pairs: Tensor, masked: Tensor) -> Tensor:
        """(R,) log losses of items (R, 1 + n, D), the positive first.

        Negatives in ``masked`` (R, n) are left out. Before the joint training it is the sum of the losses of both parts.
        """
        product, deep = self.part_logits(users, pairs)
        losses = torch.zeros(len(users), device=users.device)
        for logits in (product + deep,) if self.is_joint else (2 * product, 2 * deep):  # joint: the mean of both
            negatives = F.softplus(logits[:, 1:]).masked_fill(masked, 0.0).sum(1) / (~masked).sum(1).clamp(min=1)
            losses = losses + F.softplus(-logits[:, 0]) + self.config.negatives * negatives
        return losses

    def rejected_loss(self, vectors: Tensor, items: Tensor, rejected: Tensor, weights: Tensor) -> Tensor:
        """Log loss of dislikes and skips: sum of w softplus(s_d) / sum of w."""
        row_losses = F.softplus(self.score_candidates(vectors, items[rejected][:, None])[:, 0])
        loss: Tensor = (weights * row_losses).sum() / weights.sum()
        return loss
