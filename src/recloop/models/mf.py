"""MF: implicit matrix factorization with L2, by alternating least squares."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pydantic
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from recloop.models.als import base_gram, confidence, solve_rows
from recloop.models.base import ModelConfig, TrainData
from recloop.models.conjugate_gradient import RowBlocks
from recloop.models.search_space import Choice, Range, SearchSpace


class MF:
    """Matrix factorization for implicit feedback.

    Hu, Koren & Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008, with the L2 of Rendle
    et al., "Revisiting the Performance of iALS on Item Recommendation Benchmarks", RecSys 2022 (arXiv 2110.14037).

    The squared loss is over all (user, item) pairs. The target is 1 for an item that the user took, with the weight
    1 + ln(sum of its weights). It is 0 for all others, with the weight ``unseen`` plus the weight of refusals
    (`recloop.models.als.solve_rows`). A sweep improves users, then items, by conjugate gradients. The last step is exact. It
    makes the user table from the facts that a state holds: counts of items, and suppressed items (each with weight 1). The
    same step folds in users that are outside the table or have events after the cut.

    Shapes: U users, N items, D = ``dim``.
    """

    class Config(ModelConfig):
        """Options.

        ``dim``: width of the vectors. ``l2``: strength of the regularization. ``unseen``: weight of an unobserved pair.
        ``sweeps``: number of passes over users and items. ``seed``: seed of the initial vectors.
        """

        dim: int = pydantic.Field(64, ge=1)
        l2: float = pydantic.Field(0.003, ge=0)
        unseen: float = pydantic.Field(0.1, gt=0)
        sweeps: int = pydantic.Field(12, ge=1)
        seed: int = 0

    search_space: ClassVar[SearchSpace] = {
        "model.dim": Choice((32, 64, 96, 128, 192)),
        "model.l2": Range(1e-4, 1e-1, log=True),
        "model.unseen": Range(0.01, 1.0, log=True),
        "model.sweeps": Range(4, 16, step=4),
    }

    kind: ClassVar[str] = "vectors"
    source: ClassVar[str] = "model"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:
        """Fit ``item_vectors`` (N+1, D) and ``user_vectors`` (U+1, D), float32, row 0 = 0.

        Users in ``old`` do not train item vectors, but they get a user vector.
        """
        config = self.config
        owner = data.moment_user[data.row_moment]
        is_training_user = ~np.concatenate([[True], data.old])
        positives, counts = (
            _pairs(data, owner, data.items, weights) for weights in (data.weights, np.ones(len(owner)))
        )
        positives.data, counts.data = confidence(positives.data), confidence(counts.data)
        rejected, disliked = _refused(data)
        training_positives, training_rejected = _rows(positives, is_training_user), _rows(rejected, is_training_user)
        by_user = RowBlocks(training_positives, training_rejected, config.dim)
        by_item = RowBlocks(sp.csr_array(training_positives.T), sp.csr_array(training_rejected.T), config.dim)
        rng = np.random.default_rng(config.seed)
        items = rng.normal(scale=0.1 / np.sqrt(config.dim), size=(data.n_items + 1, config.dim)).astype(np.float32)
        items[0] = 0
        users = np.zeros((data.n_users + 1, config.dim), dtype=np.float32)
        with threadpool_limits(1, "blas"):  # threads cost more than a system of this size
            for _ in range(config.sweeps):
                users = by_user.improve(users, items, config.l2, config.unseen)
                items = by_item.improve(items, users, config.l2, config.unseen)
            gram = base_gram(items, config.unseen)
            user_vectors = solve_rows(items, gram, counts, config.l2, config.unseen, disliked)
        return {"item_vectors": items, "user_vectors": user_vectors}


def _pairs(data: TrainData, users: np.ndarray, items: np.ndarray, weights: np.ndarray) -> sp.csr_array:
    """(U+1, N+1) sums of the weights of each (user from 0, item)."""
    shape = (data.n_users + 1, data.n_items + 1)
    pairs = sp.csr_array((weights.astype(np.float64), (users + 1, items)), shape=shape)
    pairs.sum_duplicates()
    return pairs


def _refused(data: TrainData) -> tuple[sp.csr_array, sp.csr_array]:
    """Two matrices (U+1, N+1): confidence of refused items, and 1 for disliked ones.

    The first includes skips and uses the confidence of positives of equal weight. The second marks the suppressed items
    of the state.
    """
    negatives = data.negatives
    if negatives is None:
        empty = sp.csr_array((data.n_users + 1, data.n_items + 1))
        return empty, empty
    rejected = _pairs(data, negatives.user_ix, negatives.items, negatives.weights)
    rejected.data = np.minimum(rejected.data, confidence(rejected.data))
    is_dislike = negatives.weights >= 1
    disliked = _pairs(data, negatives.user_ix[is_dislike], negatives.items[is_dislike], negatives.weights[is_dislike])
    disliked.data[:] = 1
    return rejected, disliked


def _rows(pairs: sp.csr_array, keep: np.ndarray) -> sp.csr_array:
    """Empty all rows outside ``keep``."""
    filtered = pairs.copy()
    filtered.data[~np.repeat(keep, np.diff(pairs.indptr))] = 0
    filtered.eliminate_zeros()
    return filtered
