"""Fit fusion weights on the validation moments.

Fusion is weighted reciprocal rank fusion, score(i) = sum over sources of w_s / (constant + rank_s(i))
(docs/definitions/fusion.md). A listwise softmax regression fits the weights. Moments that did not fit them judge them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from recloop.evaluation import bootstrap, metrics
from recloop.evaluation.bootstrap import Estimate
from recloop.features.ranking import Candidates
from recloop.features.user_profile import MISSING
from recloop.policy import RRF
from recloop.recommend.fusion import fuse
from recloop.recommend.ranker import candidates_of
from recloop.recommend.top_k import TopK
from recloop.records import source_names

FUSION_CONSTANTS: Final = (60, 20, 5, 1)
"""Fusion constants to try; the first one wins a tie."""
MINOR_FACTORS: Final = (1.0, 0.5)
"""Factors of all weights but the largest to try; with a large constant the likelihood makes the weights too equal."""
N_FOLDS: Final = 5
"""Parts of the validation moments; each part is judged by weights of the others."""
FIT_DEPTH: Final = 50
"""First items of each source that the regression reads."""
FIT_MOMENTS: Final = 8_192
"""Validation moments that fit the weights, at most; a fit of so many takes seconds."""
L2: Final = 1e-3
"""L2 of the regression, whose loss is a mean over moments."""
MIN_WEIGHT: Final = 0.05
"""Smallest weight relative to the largest; a source below it is not worth its recall."""
LIST_LENGTH: Final = 10


@dataclass(frozen=True)
class FusionChoice:
    """Chosen fusion weights and the numbers of the choice.

    Attributes:
        weights: Weight of every source. constant: Fusion constant.
        ndcg: NDCG@10 of the choice on validation; for a fusion, of moments that did not fit its weights.
        best: Weights of the best fusion. alone: NDCG@10 of each source. single: The best source.
        gain: NDCG@10 of the best fusion minus that of ``single``, paired over users; None without a fusion.
    """

    weights: dict[str, float]
    constant: float
    ndcg: float
    best: dict[str, float]
    alone: dict[str, float]
    single: str
    gain: Estimate | None


def fusion_or_single(
    recalled: Mapping[str, TopK],
    targets: NDArray[Any],
    offsets: NDArray[Any],
    seed: int,
    sample: NDArray[np.int64] | None = None,
) -> FusionChoice:
    """Return the best fusion if it is significantly better than the best source.

    Otherwise the best source is returned. Significant means that the lower end of the paired 95 % CI over users is above 0.
    Each user has one query. Without queries with a target all weights are 1.

    Args:
        recalled: Lists of Q queries by source.
        targets: flat distinct item_ix, 0 for items outside the table (they count in the ideal).
        offsets: (Q+1,) query q owns ``targets[offsets[q]:offsets[q + 1]]``.
        seed: Seed of the interval.
        sample: Queries that fit weights; None means all. The interval covers all queries.
    """
    recalled = {source: recalled[source] for source in source_names(recalled) if source in recalled}
    values = {source: ndcg(top.items, targets, offsets) for source, top in recalled.items()}
    if not recalled or not (np.diff(offsets) > 0).any():
        equal = dict.fromkeys(recalled, 1.0)
        return FusionChoice(equal, RRF, float("nan"), equal, dict.fromkeys(recalled, float("nan")), "", None)
    alone = {source: float(np.nanmean(value)) for source, value in values.items()}
    single = max(alone, key=lambda source: alone[source])  # the first of `source_names` wins a tie
    single_weights = {source: float(source == single) for source in recalled}
    learner = _Learner(recalled, targets, offsets, sample)
    held_out = {}
    for constant in FUSION_CONSTANTS:
        by_fold = [learner.weights(constant, fold) for fold in range(N_FOLDS)]
        for factor in MINOR_FACTORS:
            held_out[constant, factor] = learner.held_out_ndcg(constant, [_scaled(one, factor) for one in by_fold])
    constant, factor = max(held_out, key=lambda key: float(np.nanmean(held_out[key])))  # the first one wins a tie
    fused = held_out[constant, factor]
    best = _scaled(learner.weights(constant), factor)
    if sum(weight > 0 for weight in best.values()) < 2:
        return FusionChoice(single_weights, RRF, alone[single], single_weights, alone, single, None)
    gain = bootstrap.difference(fused, values[single], seed).absolute
    if gain.low > 0:
        return FusionChoice(best, constant, float(np.nanmean(fused)), best, alone, single, gain)
    return FusionChoice(single_weights, RRF, alone[single], best, alone, single, gain)


def ndcg(items: NDArray[Any], targets: NDArray[Any], offsets: NDArray[Any]) -> NDArray[np.float64]:
    """Return (Q,) NDCG@10 of lists; NaN for a query without a target."""
    return metrics.ranking(items, targets, offsets, LIST_LENGTH)["NDCG"]


class _Learner:
    """Weights of sources, fitted on some queries and judged on others."""

    def __init__(
        self,
        recalled: Mapping[str, TopK],
        targets: NDArray[Any],
        offsets: NDArray[Any],
        sample: NDArray[np.int64] | None,
    ) -> None:
        self._recalled, self._targets, self._offsets = recalled, targets, offsets
        self._n_queries = len(offsets) - 1
        self._fold = np.arange(self._n_queries) % N_FOLDS
        self._may_fit = np.ones(self._n_queries, dtype=bool)
        if sample is not None:
            self._may_fit[:] = False
            self._may_fit[sample] = True
        self._candidates = candidates_of(recalled, dict.fromkeys(recalled, FIT_DEPTH), slice(0, self._n_queries))
        self._is_target = self._candidates.are_targets(targets, offsets)

    def weights(self, constant: float, without: int | None = None) -> dict[str, float]:
        """Fit the weights, at most 1, on the queries outside a fold."""
        may_fit = self._may_fit & (self._fold != without)
        columns = np.flatnonzero(may_fit[self._candidates.queries])
        fitted = fit_weights(self._candidates.take(columns), self._is_target[columns], constant)
        largest = fitted.max(initial=0.0)
        relative = np.round(fitted / largest, 2) if largest > 0 else fitted
        relative[relative < MIN_WEIGHT] = 0.0
        return dict(zip(self._recalled, relative.tolist(), strict=True))

    def held_out_ndcg(self, constant: float, by_fold: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
        """Return (Q,) NDCG@10, each query with the weights for its fold."""
        lists = np.zeros((self._n_queries, LIST_LENGTH), dtype=np.int64)
        for fold, weights in enumerate(by_fold):
            rows = self._fold == fold
            part = {source: TopK(top.items[rows], top.scores[rows]) for source, top in self._recalled.items()}
            lists[rows] = fuse(part, weights, LIST_LENGTH, constant).items
        return ndcg(lists, self._targets, self._offsets)


def _scaled(weights: Mapping[str, float], factor: float) -> dict[str, float]:
    """Multiply all weights but the largest, which are 1."""
    return {source: weight if weight == 1.0 else round(weight * factor, 3) for source, weight in weights.items()}


def fit_weights(candidates: Candidates, is_target: NDArray[np.bool_], constant: float) -> NDArray[np.float64]:
    """Return the weights (S,), at least 0, with the largest likelihood of the targets.

    The probability of a candidate is the softmax, over the candidates of its query, of its weighted reciprocal ranks
    (constant + 1) / (constant + rank). A query counts once, whatever the number of its targets.
    """
    from scipy.optimize import minimize

    n_sources = len(candidates.ranks)
    has_target = np.bincount(candidates.queries, weights=is_target, minlength=len(candidates.offsets) - 1) > 0
    columns = np.flatnonzero(has_target[candidates.queries])
    if not len(columns):
        return np.zeros(n_sources)
    ranks = candidates.ranks[:, columns].astype(np.float64)  # (S, C), from 0
    shares = np.where(ranks == MISSING, 0.0, (constant + 1) / (constant + 1 + ranks))
    lengths = np.diff(candidates.offsets)[has_target]
    starts = np.cumsum(lengths) - lengths
    n_targets = np.add.reduceat(is_target[columns].astype(np.float64), starts)
    wanted = is_target[columns] / np.repeat(n_targets, lengths)  # (C,) sums to 1 for each query

    def loss_and_gradient(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = weights @ shares
        scores -= np.repeat(np.maximum.reduceat(scores, starts), lengths)
        powers = np.exp(scores)
        totals = np.add.reduceat(powers, starts)
        loss = (np.log(totals).sum() - wanted @ scores) / len(starts) + L2 / 2 * (weights @ weights)
        gradient = shares @ (powers / np.repeat(totals, lengths) - wanted) / len(starts) + L2 * weights
        return float(loss), gradient

    result = minimize(
        loss_and_gradient, np.ones(n_sources), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * n_sources
    )
    return np.asarray(result.x)
