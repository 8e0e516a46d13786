"""ItemKNN: cosine similarity of items over users, with shrinkage."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pydantic
import scipy.sparse as sp

from recloop.models.base import ModelConfig, TrainData, user_items
from recloop.models.neighbour_rows import PairCounts, nearest
from recloop.models.search_space import Choice, Range, SearchSpace


class ItemKNN:
    """Cosine of two items over the users who have them.

    Deshpande & Karypis, "Item-based top-N recommendation algorithms", TOIS 2004. With n(a) the users of item a and
    n(a, b) those of both, the similarity is n(a, b) / (sqrt(n(a) n(b)) + shrink). A user's scores are the sum of the rows
    of the items in the history. Moments and their order do not matter.
    """

    class Config(ModelConfig):
        """Options.

        ``shrink`` reduces the similarity of rare items. ``width``: neighbours that a row keeps.
        """

        shrink: float = pydantic.Field(10.0, ge=0)
        width: int = pydantic.Field(400, ge=1)

    search_space: ClassVar[SearchSpace] = {
        "model.shrink": Range(0.1, 300.0, log=True),
        "model.width": Choice((100, 200, 400)),
    }

    kind: ClassVar[str] = "neighbours"
    source: ClassVar[str] = "item_knn"

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or self.Config()

    def fit(self, data: TrainData) -> dict[str, np.ndarray]:
        """Fit the three ``neighbours.*`` arrays of a CSR matrix (N+1, N+1)."""
        users = user_items(data)
        items = sp.csr_array(users.T)
        norms = np.sqrt(np.diff(items.indptr))
        return nearest(PairCounts(items, users), self.config.width, self.config.shrink, norms)
