"""MF: matrix factorisation with L2, every user and every item a vector, learned by alternating least squares."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pydantic
import scipy.sparse as sp

from recloop.features.latent import explain, strength, unseen_gram
from recloop.models.base import ModelConfig, TrainData


class MF:
    """Hu, Koren & Volinsky, "Collaborative Filtering for Implicit Feedback Datasets", ICDM 2008, with the L2 of Rendle
    et al., "Revisiting the Performance of iALS on Item Recommendation Benchmarks", RecSys 2022 (arXiv 2110.14037).

    Squared loss over all (user, item) pairs: 1 where the user took the item, of weight 1 + ln(how often), 0 elsewhere,
    of weight ``unseen``; the formula is that of `recloop.features.latent.explain`. Each half-step is exact, so a user
    whom the table does not know, or who did something since the cut, is folded in from the history by that very step.

    Shapes: U users, N items, D = ``dim``.
    """

    class Config(ModelConfig):
        """``dim``: width of the vectors. ``l2``: strength of the regularisation. ``unseen``: weight of a pair that
        did not happen. ``sweeps``: times that users and items are solved. ``seed``: of the vectors at the start.
        """

        dim: int = pydantic.Field(64, ge=1)
        l2: float = pydantic.Field(0.003, ge=0)
        unseen: float = pydantic.Field(0.1, gt=0)
        sweeps: int = pydantic.Field(12, ge=1)
        seed: int = 0

    kind: ClassVar[str] = "vectors"
    source: ClassVar[str] = "model"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:
        """``item_vectors`` (N+1, D) and ``user_vectors`` (U+1, D) float32, row 0 = 0.

        Users of ``old`` teach no item; they have a vector like anybody else.
        """
        config = self.config
        owner = data.moment_user[data.row_moment]
        shape = (data.n_users + 1, data.n_items + 1)
        taken = sp.csr_array((data.weights.astype(np.float64), (owner + 1, data.items)), shape=shape)
        taken.sum_duplicates()
        taken.data = strength(taken.data)
        teaching = taken.copy()
        teaching.data[np.repeat(np.concatenate([[False], data.old]), np.diff(taken.indptr))] = 0
        teaching.eliminate_zeros()
        holders = sp.csr_array(teaching.T)
        rng = np.random.default_rng(config.seed)
        items = rng.normal(scale=0.1 / np.sqrt(config.dim), size=(data.n_items + 1, config.dim)).astype(np.float32)
        items[0] = 0
        for _ in range(config.sweeps):
            users = self._solve(items, teaching)
            items = self._solve(users, holders)
        return {"item_vectors": items, "user_vectors": self._solve(items, taken)}

    def _solve(self, table: np.ndarray, taken: sp.csr_array) -> np.ndarray:
        gram = unseen_gram(table, self.config.unseen)
        return explain(table, gram, taken, self.config.l2, self.config.unseen)
