"""Choose fusion weights by grid search on the validation moments.

Fusion is weighted reciprocal rank fusion, score(i) = sum over sources of w_s / (constant + rank_s(i))
(docs/definitions/fusion.md). Scaling all weights does not change lists, so only grid points with a largest weight of
1 are scored.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recloop.evaluation import bootstrap, metrics
from recloop.evaluation.bootstrap import Estimate
from recloop.policy import RRF
from recloop.records import source_names

WEIGHT_GRID = (0.0, 0.25, 0.5, 1.0)
MAX_SOURCES = 4
"""Sources in the grid: those with the best lists alone; a further source has weight 0."""
CHUNK_QUERIES = 128  # queries per pass: about 100 MiB with four sources of 200
FUSION_CONSTANTS = (60, 20, 5, 1)
"""Fusion constants to try; the first one wins a tie."""
NDCG_TOLERANCE = 1e-12  # two NDCG values closer than this are a tie


def choose_weights(
    recalled: Mapping[str, NDArray[Any]],
    targets: NDArray[Any],
    offsets: NDArray[Any],
    k: int = 10,
    constant: float = RRF,
) -> tuple[dict[str, float], float]:
    """Return the weights with the best NDCG@k over the queries, and that NDCG.

    The grid is {0, 0.25, 0.5, 1} for each source. Ties prefer fewer sources, then larger weights in the order of
    `source_names`. Without queries with a target the weights are 1 and the NDCG is NaN.

    Args:
        recalled: source -> (Q, R) item_ix, best first, 0 after the end of a list; the same queries for all.
        targets: flat distinct item_ix, 0 for items outside the table (they count in the ideal).
        offsets: (Q+1,) query q owns ``targets[offsets[q]:offsets[q + 1]]``.
        k: Number of evaluated ranks. constant: Fusion constant.
    """
    sources = [source for source in source_names(recalled) if source in recalled]
    with_target = np.flatnonzero(np.diff(offsets) > 0)
    if not len(with_target) or not sources:
        return dict.fromkeys(sources, 1.0), float("nan")
    points = grid(len(sources))
    means = _ndcg([recalled[source] for source in sources], targets, offsets, points, k, constant).mean(axis=1)
    best = int(np.flatnonzero(means >= means.max() - NDCG_TOLERANCE)[0])  # the grid's order breaks ties
    return dict(zip(sources, points[best].tolist(), strict=True)), float(means[best])


@dataclass(frozen=True)
class FusionChoice:
    """Chosen fusion weights and the numbers of the choice.

    Attributes:
        weights: Weight of every source. constant: Fusion constant. ndcg: Their NDCG on validation.
        best: Weights with the best NDCG of the grid. alone: NDCG of each source. single: The best source.
        gain: NDCG of ``best`` minus that of ``single``, paired over users; None if ``best`` has one source.
    """

    weights: dict[str, float]
    constant: float
    ndcg: float
    best: dict[str, float]
    alone: dict[str, float]
    single: str
    gain: Estimate | None


def fusion_or_single(
    recalled: Mapping[str, NDArray[Any]],
    targets: NDArray[Any],
    offsets: NDArray[Any],
    seed: int,
    sample: NDArray[np.int64] | None = None,
    k: int = 10,
) -> FusionChoice:
    """Return the best fusion if it is significantly better than the best source.

    Otherwise the best source is returned. Significant means that the lower end of the paired 95 % CI over users is above 0. Each user has one query.

    Args:
        recalled, targets, offsets, k: As in `choose_weights`. seed: Seed of the interval.
        sample: Queries of the grid search; None means all. The interval always covers all queries.
    """
    rows = np.arange(len(offsets) - 1) if sample is None else sample
    sampled_lists = {source: items[rows] for source, items in recalled.items()}
    query_targets = [targets[offsets[q] : offsets[q + 1]] for q in rows]
    sampled_targets = np.concatenate(query_targets) if query_targets else targets[:0]
    sampled_offsets = np.concatenate([[0], np.cumsum([len(entry) for entry in query_targets], dtype=np.int64)])
    alone = {
        source: choose_weights({source: sampled_lists[source]}, sampled_targets, sampled_offsets, k)[1]
        for source in source_names(sampled_lists)
        if source in sampled_lists
    }
    by_value = sorted(alone, key=lambda source: -alone[source])  # the first of `source_names` wins a tie
    sampled_lists = {source: sampled_lists[source] for source in by_value[:MAX_SOURCES]}
    results = [
        (*choose_weights(sampled_lists, sampled_targets, sampled_offsets, k, constant), constant)
        for constant in FUSION_CONSTANTS
    ]
    best, ndcg, constant = max(results, key=lambda entry: entry[1])  # the first one wins a tie; NaN without a query
    best = dict.fromkeys(alone, 0.0) | best
    if not alone or np.isnan(ndcg):
        return FusionChoice(best, RRF, ndcg, best, alone, "", None)
    single = by_value[0]
    single_weights = {source: float(source == single) for source in best}
    if sum(weight > 0 for weight in best.values()) == 1:
        return FusionChoice(best, RRF, ndcg, best, alone, single, None)
    points = np.array([list(best.values()), list(single_weights.values())])
    values = _ndcg([recalled[source] for source in best], targets, offsets, points, k, constant)  # (2, Q)
    gain = bootstrap.difference(values[0], values[1], seed).absolute
    if gain.low > 0:
        return FusionChoice(best, constant, ndcg, best, alone, single, gain)
    return FusionChoice(single_weights, RRF, alone[single], best, alone, single, gain)


def grid(sources: int) -> NDArray[np.float64]:
    """Return (G, sources) weights with a largest weight of 1, in tie-breaking order."""
    points = [
        point for point in itertools.product(sorted(WEIGHT_GRID, reverse=True), repeat=sources) if max(point) == 1.0
    ]
    points.sort(key=lambda point: (sum(w > 0 for w in point), [-w for w in point]))
    return np.array(points)


def _ndcg(
    lists: Sequence[NDArray[Any]],
    targets: NDArray[Any],
    offsets: NDArray[Any],
    points: NDArray[np.float64],
    k: int,
    constant: float,
) -> NDArray[np.float64]:
    """Return (G, Q) NDCG@k at each grid point, for the queries with a target."""
    with_target = np.flatnonzero(np.diff(offsets) > 0)
    chunks = []
    for start in range(0, len(with_target), CHUNK_QUERIES):
        rows = with_target[start : start + CHUNK_QUERIES]
        query_targets = [targets[offsets[q] : offsets[q + 1]] for q in rows]
        chunks.append(_ndcg_of([source_lists[rows] for source_lists in lists], query_targets, points, k, constant))
    return np.concatenate(chunks, axis=1)


def _ndcg_of(
    lists: Sequence[NDArray[Any]],
    targets: Sequence[NDArray[Any]],
    points: NDArray[np.float64],
    k: int,
    constant: float,
) -> NDArray[np.float64]:
    """Return (G, Q) NDCG@k of one chunk of queries at each grid point."""
    candidates, shares = _union(lists, constant)  # (Q, C) ascending, (S, Q, C)
    owner = np.repeat(np.arange(len(targets)), [len(query_targets) for query_targets in targets])
    target_items = np.concatenate(targets)
    target_slot = (candidates[owner] < target_items[:, None]).sum(axis=1)
    is_recalled = (target_items > 0) & (
        candidates[owner, np.minimum(target_slot, candidates.shape[1] - 1)] == target_items
    )
    # targets that no source recalled count only in the ideal
    rows, target_slot = owner[is_recalled], target_slot[is_recalled]
    earlier = np.arange(candidates.shape[1]) < target_slot[:, None]  # (T, C) a smaller index wins a tie
    ideal = metrics.ideal_gain(np.array([len(query_targets) for query_targets in targets]), k)
    values = np.empty((len(points), len(targets)))
    for number, weights in enumerate(points):
        total = sum(weight * share for weight, share in zip(weights, shares, strict=True) if weight)
        # (Q, C) float32, so that ties equal those of `recloop.recommend.fusion.fuse`
        score = np.asarray(total, dtype=np.float32)
        rivals = score[rows]  # (T, C)
        target_score = rivals[np.arange(len(rows)), target_slot][:, None]
        above = (rivals > target_score).sum(axis=1) + ((rivals == target_score) & earlier).sum(axis=1)
        is_hit = (above < k) & (target_score[:, 0] > 0)  # a source of weight 0 recalls nothing
        gain = is_hit / np.log2(above + 2.0) / ideal[rows]
        values[number] = np.bincount(rows, weights=gain, minlength=len(targets))
    return values


def _union(lists: Sequence[NDArray[Any]], constant: float) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Merge each query's lists and return 1 / (constant + rank) of each item per list.

    Returns:
        (Q, C) items ascending, padded with the largest integer; (S, Q, C) shares, 0 outside a list.
    """
    stacked = np.concatenate(lists, axis=1).astype(np.int64)  # (Q, S * R)
    order = np.argsort(stacked, axis=1, kind="stable")
    ascending = np.take_along_axis(stacked, order, axis=1)
    is_new = np.ones_like(ascending, dtype=bool)
    is_new[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    slot = np.cumsum(is_new, axis=1) - 1  # (Q, S * R) candidate index of each entry
    row = np.arange(len(stacked))[:, None]
    candidates = np.full((len(stacked), int(slot.max(initial=0)) + 1), np.iinfo(np.int64).max)
    candidates[row, slot] = ascending
    starts = np.cumsum([0, *(source_lists.shape[1] for source_lists in lists)])
    source = np.searchsorted(starts, order, side="right") - 1
    shares = np.zeros((len(lists), *candidates.shape))
    shares[source, row, slot] = np.where(ascending > 0, 1.0 / (constant + 1 + order - starts[source]), 0.0)
    return candidates, shares
