"""Training losses over item embeddings: full softmax and sampled variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from recloop.config import Train
from recloop.errors import UserError
from recloop.models.base import TrainData
from recloop.training import sampled_losses
from recloop.training.network import Network, OptionalMembers
from recloop.training.sampled_losses import NegativeSampler, OwnedItems, PairScores, SampledItems
from recloop.training.seen_items import SeenItems

CHUNK_SCORES = 4_000_000
"""Number of scores in memory at a time (16 MB); a full softmax over 65,116 items would need gigabytes."""

MAX_FULL_SOFTMAX_ITEMS = 100_000
"""Catalog size above which ``auto`` samples negatives (timings in docs/decisions/)."""

RowLoss = Callable[[PairScores], Tensor]
SAMPLED_LOSSES: dict[str, tuple[RowLoss, RowLoss, bool]] = {
    "ss": (sampled_losses.ss, sampled_losses.softmax_rejected, False),
    "ss_logq": (sampled_losses.ss_logq, sampled_losses.softmax_rejected, True),
    "ss_refined": (sampled_losses.ss_refined, sampled_losses.softmax_rejected, True),
    "gbce": (sampled_losses.gbce, sampled_losses.bce_rejected, False),
    "bce": (sampled_losses.bce, sampled_losses.bce_rejected, False),
    "bpr": (sampled_losses.bpr, sampled_losses.bpr_rejected, False),
}
"""Losses by name: loss of a target, loss of a rejected item, and True if q can differ from uniform."""
OWNED_MASKED_LOSSES = frozenset({"bce", "bpr"})
"""Losses with negatives outside the user's items, as in their papers (docs/definitions/losses.md).

The other losses estimate a sum over all items except the target, so only the target is masked in random draws.
"""


class LossRows(NamedTuple):
    """R vectors, each with one item: its target or a rejected item."""

    vectors: Tensor  # (R, D)
    items: Tensor  # (R,) int64 rows of the item table
    weights: Tensor  # (R,) float32


class Criterion:
    """Loss of a network by its name in ``train.loss``.

    ``auto`` is the network's default loss if it has one, else ``ce``, or ``ss_refined`` above `MAX_FULL_SOFTMAX_ITEMS`
    items. For a network with a custom sampler it is ``ss_logq`` above the network's own limit. A network without an inner product (NeuMF) defines ``loss`` and ``rejected_loss`` like `cross_entropy` and `rejected_item_loss`.
    Alternatively it defines ``sampled_loss`` with the rows' `OwnedItems` as an additional argument. A network with a
    custom sampler (Two-Tower) defines ``draw_negatives(targets) -> (ids, m q_j)``; draws of items that the user took are masked.

    Raises:
        UserError: the network does not support the loss.
    """

    def __init__(self, network: Network, data: TrainData, settings: Train) -> None:
        members = OptionalMembers.from_network(network)
        custom_loss = members.sampled_loss or members.loss
        limit = members.max_full_softmax_items or MAX_FULL_SOFTMAX_ITEMS
        sampled = "ss_refined" if members.draw_negatives is None else "ss_logq"
        default_loss = members.default_loss or (sampled if data.n_items > limit else "ce")
        self.name: str = default_loss if settings.loss == "auto" else settings.loss
        if custom_loss is not None and self.name != default_loss:
            expected = f"auto or {default_loss}, the loss that {type(network).__name__} defines"
            raise UserError("train.loss", settings.loss, expected, "--set train.loss=auto")
        self.sampler: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
        self.target_loss: Callable[..., Tensor]
        self.rejected_loss: Callable[..., Tensor]
        self.masks_owned = self.samples = members.sampled_loss is not None
        self.hides_seen = members.hides_seen and self.name == "ce"
        if custom_loss is not None or self.name == "ce":
            self.target_loss = custom_loss or cross_entropy
            self.rejected_loss = members.rejected_loss or rejected_item_loss
            return
        self.target_loss, self.rejected_loss, corrected = SAMPLED_LOSSES[self.name]
        self.sampler = members.draw_negatives if corrected else None
        self.masks_owned = self.sampler is not None or self.name in OWNED_MASKED_LOSSES
        if self.sampler is None:
            self.sampler = NegativeSampler(data.counts[1:], settings.negatives, settings.seed, by_count=corrected)

    def __call__(
        self,
        items: Tensor,
        targets: LossRows,
        rejected: LossRows | None,
        owned: OwnedItems | None = None,
        seen: SeenItems | None = None,
    ) -> Tensor:
        """Return the weighted mean loss over targets and rejected items; items (N, D).

        Args:
            owned: Owned items of the target rows; required if ``masks_owned``.
            seen: Items that ``ce`` leaves out of the softmax of a target; only if ``hides_seen``.
        """
        if self.samples:
            loss: Tensor = self.target_loss(targets.vectors, items, targets.items, targets.weights, owned)
            sampled = None
        elif seen is not None:
            sampled, loss = None, cross_entropy(targets.vectors, items, targets.items, targets.weights, seen)
        else:
            sampled = None if self.sampler is None else SampledItems(*self.sampler(targets.items))
            loss = self._mean(self.target_loss, items, targets, sampled, owned if self.masks_owned else None)
        if rejected is None:
            return loss
        rejected_share = rejected.weights.sum() / (targets.weights.sum() + rejected.weights.sum())
        return (1 - rejected_share) * loss + rejected_share * self._mean(self.rejected_loss, items, rejected, sampled)

    @staticmethod
    def _mean(
        loss: Any, items: Tensor, rows: LossRows, sampled: SampledItems | None, owned: OwnedItems | None = None
    ) -> Tensor:
        vectors, item_rows, weights = rows
        if sampled is None:
            mean: Tensor = loss(vectors, items, item_rows, weights)
            return mean
        return weighted(loss(PairScores.from_vectors(vectors, items, item_rows, sampled, owned)), weights)


def weighted(row_losses: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean: sum of w loss / sum of w, both (R,)."""
    return (weights * row_losses).sum() / weights.sum()


def cross_entropy(
    vectors: Tensor, items: Tensor, targets: Tensor, weights: Tensor, seen: SeenItems | None = None
) -> Tensor:
    """Return the full-softmax cross-entropy (``ce``).

    The loss is sum of w (ln sum over all items of e^s - s_target) / sum of w, with s = vector . item. The gradient is
    computed in the same pass, a few rows of scores at a time, so memory does not grow with the catalog.

    Args:
        vectors: (R, D). items: (N, D). targets: (R,) int64 rows of ``items``. weights: (R,).
        seen: Items that the sum of a row leaves out, except its target.
    """
    loss: Tensor = _FullSoftmax.apply(vectors, items, targets, weights, seen)  # type: ignore[no-untyped-call]
    return loss


def rejected_item_loss(vectors: Tensor, items: Tensor, rejected: Tensor, weights: Tensor) -> Tensor:
    """Return the softmax loss of disliked or skipped items.

    The loss is sum of w softplus(s_d - ln Z) / sum of w, with Z = sum of e^s over the other items. The term
    softplus(s_d - ln Z) = -ln(1 - p_d) is finite for every score.

    Args:
        vectors: (K, D). items: (N, D), N > 1. rejected: (K,) int64 rows of ``items``. weights: (K,).
    """
    loss: Tensor = _RejectedItemLoss.apply(vectors, items, rejected, weights)  # type: ignore[no-untyped-call]
    return loss


class _SavedGradients(torch.autograd.Function):
    """Loss whose forward pass saves the gradients of users and items."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        vectors_grad, items_grad = ctx.saved_tensors
        return grad * vectors_grad, grad * items_grad, *(None for _ in ctx.needs_input_grad[2:])


class _RejectedItemLoss(_SavedGradients):
    """Rejected-item loss and gradients, chunk by chunk like `_FullSoftmax`.

    With p = sigmoid(s_d - ln Z): ds_d = w p and ds_j = -w p e^s_j / Z.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, items: Tensor, rejected: Tensor, weights: Tensor) -> Tensor:
        share = weights / weights.sum()  # (K,)
        vectors_grad, items_grad = torch.empty_like(vectors), torch.zeros_like(items)
        loss = vectors.new_zeros(())
        rows = max(1, CHUNK_SCORES // len(items))
        for start in range(0, len(vectors), rows):
            chunk = slice(start, start + rows)
            chunk_vectors = vectors[chunk]  # (rows, D)
            item = rejected[chunk, None]  # (rows, 1)
            w = share[chunk]  # (rows,)
            scores = chunk_vectors @ items.T  # (rows, N)
            margin = scores.gather(1, item)[:, 0]
            scores.scatter_(1, item, -torch.inf)
            margin = margin - scores.logsumexp(1)
            loss += (w * F.softplus(margin)).sum()
            pull = (w * margin.sigmoid())[:, None]  # (rows, 1)
            slopes = scores.softmax(1).mul_(-pull).scatter_(1, item, pull)
            vectors_grad[chunk] = slopes @ items
            items_grad.addmm_(slopes.T, chunk_vectors)
        ctx.save_for_backward(vectors_grad, items_grad)
        return loss


class _FullSoftmax(_SavedGradients):
    """Cross-entropy and its gradients, chunk by chunk, with one reused score buffer."""

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, items: Tensor, targets: Tensor, weights: Tensor, seen: SeenItems | None
    ) -> Tensor:
        share = weights / weights.sum()  # (R,)
        vectors_grad = torch.empty_like(vectors)
        items_grad = torch.zeros_like(items)
        loss = vectors.new_zeros(())
        rows = max(1, CHUNK_SCORES // len(items))
        # allocated once, because fresh pages cost more than exp
        scratch = vectors.new_empty(min(rows, len(vectors)), len(items))
        for start in range(0, len(vectors), rows):
            chunk = slice(start, start + rows)
            chunk_vectors = vectors[chunk]  # (rows, D)
            target = items[targets[chunk]]  # (rows, D)
            w = share[chunk]  # (rows,)
            scores = torch.mm(chunk_vectors, items.T, out=scratch[: len(chunk_vectors)])  # (rows, N)
            own = (chunk_vectors * target).sum(1)  # (rows,)
            if seen is not None:
                seen.hide(scores, start)
                scores.scatter_(1, targets[chunk, None], own[:, None])
            top = scores.amax(1)
            powers = scores.sub_(top[:, None]).exp_()
            total = powers.sum(1)
            loss += (w * (total.log() + top - own)).sum()
            scale = (w / total)[:, None]
            vectors_grad[chunk] = scale * (powers @ items) - w[:, None] * target
            items_grad.addmm_(powers.T, scale * chunk_vectors)
        items_grad.index_add_(0, targets, share[:, None] * vectors, alpha=-1)
        ctx.save_for_backward(vectors_grad, items_grad)
        return loss
