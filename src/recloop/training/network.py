"""Interface of a network: the methods that training and export call.

Shapes: B users, L items of history, M moments, N items, D = ``features.dim``. `recloop.models.sasrec` shows each method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from recloop.models.base import TrainData


class Network(Protocol):
    """Members that every network has; a built-in or custom `torch.nn.Module`.

    ``config`` is its frozen ``Config``; with ``start = "counts"`` the network also has ``init_items(vectors)``. A network of
    ``pairs`` learns pairs of a user id and an item (`PairNetwork`).
    """

    inputs: ClassVar[str]  # "sequence" or "pairs"
    config: Any

    def build(self, data: TrainData, dim: int, history: int) -> None:
        """Create the tables for the training rows."""

    def item_vectors(self, codes: Tensor) -> Tensor:
        """Return item vectors (N+1, D) from the fields' codes (N+1, Ci)."""

    def forward_user(self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor) -> Tensor:
        """Return user vectors (B, D) for serving."""

    def forward_moments(
        self, history: Tensor, moments: Tensor, mask: Tensor, context: Tensor, arrived: Tensor
    ) -> Tensor:
        """Vector of the user after each moment, in training.

        Args:
            history, moments, mask: As in `forward_user`.
            context: (B, M, C) codes at the moment that follows moment m, counted from the newest.
            arrived: (B, T, T) True where token j had arrived by the last row of token i's moment; None: everywhere.

        Returns:
            (B, M, D), by the number of the moment; undefined for moments that a window does not have.
        """


class PairNetwork(Network, Protocol):
    """Further members of a network that knows users by id.

    It is trained on pairs instead of `forward_moments`; `forward_user` folds in a user without a row. ``config.pairs`` is the
    number of pairs in a step.
    """

    users: nn.Embedding  # (U+1, D) rows of users; row 0 is of no user
    has_row: Tensor  # (U+1, 1) bool buffer: users with a training pair
    user_tables: ClassVar[tuple[str, ...]]  # ("users.weight",) and further parameters with a row for each user

    def start_epoch(self, epoch: int) -> None:
        """Prepare the network for an epoch, counted from 0."""

    def user_vectors(self) -> Tensor:
        """Return user vectors (U+1, D); 0 for a user without a row."""

    def fit_fold_in(self, means: Tensor, users: Tensor) -> None:
        """Fit `forward_user` to mean vectors (n, D) of histories and their users (n, D)."""


@dataclass(frozen=True)
class OptionalMembers:
    """Optional members of a network, with defaults for undefined ones.

    Attributes:
        kind: ``vectors``: scores are inner products with item vectors; ``rank``: the network scores candidates.
        default_loss: Name of the loss of ``train.loss = "auto"``.
        max_full_softmax_items: Number of items above which ``auto`` samples negatives; None: that of all networks.
        hides_seen: The full softmax of a target leaves out the items of its history where lists hide seen items.
        loss: Loss of target rows, as `recloop.training.losses.cross_entropy`.
        sampled_loss: Loss of target rows that draws its own negatives and receives the rows' `OwnedItems`.
        rejected_loss: Loss of rejected items, as `recloop.training.losses.rejected_item_loss`.
        draw_negatives: Sampler; targets -> (ids, m q_j).
        score_items: Scores (B, N+1) of users over the item table.
        cold_item_vectors: Item vectors from fields alone.
        user_vectors: Vectors (U+1, D) of users that the network knows by id; 0 for the others.
        user_tables: Names of the parameters with a row for each user.
        start_epoch: Preparation of an epoch.
    """

    kind: str = "vectors"
    default_loss: str | None = None
    max_full_softmax_items: int | None = None
    hides_seen: bool = False
    loss: Callable[..., Tensor] | None = None
    sampled_loss: Callable[..., Tensor] | None = None
    rejected_loss: Callable[..., Tensor] | None = None
    draw_negatives: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    score_items: Callable[[Tensor, Tensor], Tensor] | None = None
    cold_item_vectors: Callable[[Tensor], Tensor] | None = None
    user_vectors: Callable[[], Tensor] | None = None
    user_tables: tuple[str, ...] = ()
    start_epoch: Callable[[int], None] | None = None

    @classmethod
    def from_network(cls, network: object) -> OptionalMembers:
        """Read the members that the network defines."""
        names = [member.name for member in fields(cls) if hasattr(network, member.name)]
        return cls(**{name: getattr(network, name) for name in names})
