"""Cost of `min_new`: the main lists with and without their share of new items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan

import numpy as np
from numpy.typing import NDArray

from recloop.evaluation import bootstrap, metrics
from recloop.evaluation.bootstrap import Estimate
from recloop.evaluation.lists import ListRecommender
from recloop.evaluation.queries import Queries
from recloop.features.encode import EncodedBatch
from recloop.files import JsonTree
from recloop.recommend.filters import CandidateMask
from recloop.recommend.new_items import seen_items
from recloop.recommend.top_k import TopK


@dataclass(frozen=True)
class NewItemsResult:
    """Lists of a placement with `min_new` against those without it.

    Attributes:
        share: `min_new` of the placement.
        estimates: Mean over users of the NDCG at the first k: ``NDCG`` of the lists, ``NDCG_without`` `min_new`, and ``cost``,
            their paired difference; ``explore`` and ``explore_without``: over the targets that are new to the user.
        new_share, new_share_without: Share of the slots that are new to the user.
    """

    bundle: str
    placement: str
    share: float
    estimates: Mapping[str, Estimate]
    new_share: float
    new_share_without: float

    def to_json(self) -> JsonTree:
        estimates = {name: estimate.to_json() for name, estimate in self.estimates.items()}
        shares = {name: bootstrap.plain(getattr(self, name)) for name in ("new_share", "new_share_without")}
        return {**vars(self), "estimates": estimates, **shares}


class NewItemsEvaluation:
    """Lists of a placement without its share of new items, while they are collected."""

    def __init__(self, lists: ListRecommender, queries: Queries, share: float, k: int) -> None:
        self._bundle, self._placement = lists.recommender.bundle.id, lists.query.placement
        self._queries, self._share, self._k = queries, share, k
        self._items = np.zeros((len(queries), lists.k), dtype=np.int64)
        self._n_slots, self._n_new = (np.zeros((len(queries), 2), dtype=np.int64) for _ in range(2))

    def ask(
        self,
        lists: ListRecommender,
        recalled: Mapping[str, TopK],
        encoded: EncodedBatch,
        allowed: CandidateMask,
        served: NDArray[np.int64],
        span: slice,
    ) -> None:
        """Record the lists without `min_new` beside those served, (B, K)."""
        fused = lists.recommender.order(recalled, encoded, replace(lists.settings, new=None), lists.k)
        self._items[span] = lists.lists(encoded, allowed, fused).items
        for column, items in enumerate((served[:, : self._k], self._items[span, : self._k])):
            self._n_slots[span, column] = np.count_nonzero(items, axis=1)
            self._n_new[span, column] = np.count_nonzero((items > 0) & ~seen_items(encoded, items), axis=1)

    def result(
        self, lists: ListRecommender, served: NDArray[np.int64], repeat: NDArray[np.bool_], seed: int
    ) -> NewItemsResult:
        """Return the paired cost.

        ``served`` are the lists (Q, K); ``repeat`` marks targets that the user had.
        """
        numbers = lists.numbers(self._queries.targets)
        columns = {}
        for name, keep in (("NDCG", np.ones(len(repeat), dtype=bool)), ("explore", ~repeat)):
            targets, offsets = metrics.keep_targets(numbers, self._queries.offsets, keep)
            for key, items in ((name, served), (f"{name}_without", self._items)):
                columns[key] = metrics.ranking(items, targets, offsets, self._k)["NDCG"]
        columns["cost"] = columns["NDCG"] - columns["NDCG_without"]
        estimates = bootstrap.estimates_of(columns, self._queries.users, seed)
        shares = self._n_new.sum(axis=0) / np.maximum(1, self._n_slots.sum(axis=0))
        return NewItemsResult(self._bundle, self._placement, self._share, estimates, *shares.tolist())


def lines(results: Sequence[NewItemsResult], k: int) -> list[str]:
    """Describe the cost of each placement in one line."""
    return [_line(result, k) for result in results]


def _line(result: NewItemsResult, k: int) -> str:
    values = {name: estimate.value for name, estimate in result.estimates.items()}
    explore = f"on targets new to the user {values['explore']:.4f}, {values['explore_without']:.4f} without"
    if isnan(values["explore"]):
        explore = "the test has no targets new to the user"
    return (
        f"placement {result.placement}, min_new {result.share:g}: NDCG@{k} {values['NDCG']:.4f}, "
        f"{values['NDCG_without']:.4f} without ({result.estimates['cost'].signed_text()}); {explore}; {result.new_share:.0%} of the slots are "
        f"new to the user, {result.new_share_without:.0%} without"
    )
