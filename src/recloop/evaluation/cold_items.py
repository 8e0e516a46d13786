"""Cost and gain of `cold_share` and `cold_own`: lists with and without cold items."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from recloop.evaluation import bootstrap, metrics
from recloop.evaluation.bootstrap import Estimate
from recloop.evaluation.lists import ListRecommender
from recloop.evaluation.queries import Queries
from recloop.features.encode import EncodedBatch
from recloop.files import JsonTree
from recloop.recommend.filters import CandidateMask
from recloop.recommend.fusion import FusedTopK


@dataclass(frozen=True)
class ColdItemsResult:
    """Lists of a placement with slots for cold items against those without them.

    Attributes:
        share, own: `cold_share` and `cold_own` of the placement. moments: Queries with a cold target, which has no row in the bundle.
        estimates: Mean over users at the first k: ``warm`` and ``warm_without``, NDCG over the targets with a row, and ``cost``,
            their paired difference; ``cold`` and ``cold_without``, HR over the cold targets.
    """

    bundle: str
    placement: str
    share: float
    own: int
    moments: int
    estimates: Mapping[str, Estimate]

    def to_json(self) -> JsonTree:
        return {**vars(self), "estimates": {name: estimate.to_json() for name, estimate in self.estimates.items()}}


class ColdItemsEvaluation:
    """Lists of a placement without slots for cold items, while they are collected."""

    def __init__(self, lists: ListRecommender, queries: Queries, k: int) -> None:
        self._bundle, self._placement = lists.recommender.bundle.id, lists.query.placement
        self._queries, self._k = queries, k
        self._items = np.zeros((len(queries), lists.k), dtype=np.int64)

    def ask(
        self, lists: ListRecommender, encoded: EncodedBatch, allowed: CandidateMask, fused: FusedTopK, span: slice
    ) -> None:
        """Record the lists without slots for cold items."""
        plain = copy.copy(lists)  # with the same numbers of items outside the table
        plain.settings = replace(lists.settings, cold_share=0.0, cold_own=0)
        self._items[span] = plain.lists(encoded, allowed, fused).items

    def result(self, lists: ListRecommender, served: NDArray[np.int64], seed: int) -> ColdItemsResult:
        """Return cost and gain; ``served`` are the lists (Q, K)."""
        numbers = lists.numbers(self._queries.targets)
        is_warm = (numbers > 0) & (numbers <= len(lists.recommender.bundle.items))
        columns: dict[str, NDArray[np.float64]] = {}
        for name, metric, keep in (("warm", "NDCG", is_warm), ("cold", "HR", ~is_warm)):
            targets, offsets = metrics.keep_targets(numbers, self._queries.offsets, keep)
            for key, items in ((name, served), (f"{name}_without", self._items)):
                columns[key] = metrics.ranking(items, targets, offsets, self._k)[metric]
        columns["cost"] = columns["warm"] - columns["warm_without"]
        moments = int(np.count_nonzero(~np.isnan(columns["cold"])))
        estimates = bootstrap.estimates_of(columns, self._queries.users, seed)
        settings = lists.settings
        return ColdItemsResult(
            self._bundle, self._placement, settings.cold_share, settings.cold_own, moments, estimates
        )


def lines(results: Sequence[ColdItemsResult], k: int) -> list[str]:
    """Describe cost and gain of each placement in one line."""
    return [_line(result, k) for result in results]


def _line(result: ColdItemsResult, k: int) -> str:
    values = {name: estimate.value for name, estimate in result.estimates.items()}
    warm = f"NDCG@{k} {values['warm']:.4f}, {values['warm_without']:.4f} without"
    head = f"placement {result.placement}, {_rules(result)}: on targets with a row {warm}"
    if not result.moments:
        return f"{head} ({result.estimates['cost'].signed_text()}); the test has no cold target"
    cold = f"HR@{k} {values['cold']:.4f}, {values['cold_without']:.4f} without"
    return f"{head} ({result.estimates['cost'].signed_text()}); on cold targets ({result.moments:,} moments) {cold}"


def _rules(result: ColdItemsResult) -> str:
    """Name the rules of a placement that are on."""
    rules = {"cold_share": result.share, "cold_own": result.own}
    return ", ".join(f"{name} {value:g}" for name, value in rules.items() if value)
