"""Paired evaluation of two bundles on the same queries, used by the update gate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from recloop.bundle import Bundle
from recloop.evaluation import metrics
from recloop.evaluation.lists import ListRecommender
from recloop.evaluation.parallel import each_span
from recloop.evaluation.queries import Queries, codes_of_targets, concatenate, is_repeat, states_of
from recloop.features.state_history import StateHistory
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import Recommender
from recloop.records import COLD_POSITIVES, Query
from recloop.storage.data_manifest import WindowLoss


class LossEstimate(NamedTuple):
    """Loss of live over the queries of one window.

    Attributes:
        loss: -ln of the mean NDCG@10, in nats.
        queries: Number of queries with a target.
        spread: Standard deviation of a query's NDCG@10 divided by the mean; the standard error of the loss is
            spread / sqrt(queries).
    """

    loss: float
    queries: int
    spread: float

    @classmethod
    def from_window(cls, record: WindowLoss) -> LossEstimate:
        """Read a ``windows`` entry of ``data/manifest.json``; empty for earlier versions."""
        return cls(record.loss, record.queries or 0, record.spread or 0.0)


LIST_LENGTH = 10
MAX_QUERIES = 4_000
"""Maximum queries of a comparison, spread evenly over all of them."""
MIN_WINDOWS = 10
"""Minimum number of windows of earlier queries; with fewer the band is too wide to detect a change."""
TIMED_QUERIES = 200
FIRST_TIMED_QUERIES = 20
"""Timed queries that suffice for a candidate whose lists are fast enough."""
MIN_NDCG = 1e-4
"""Lower bound of NDCG in the loss."""


@dataclass(frozen=True)
class QueryResults:
    """Answers of one bundle to Q queries.

    Attributes:
        lists: Raw ids, at most 10 per query; empty if they were not asked for.
        ndcg, repeat, explore: (Q,) NDCG@10 over all targets, over repeated ones and over the others; NaN without
            targets.
        cold: (Q,) True for fewer than 5 positives in the state. covering: (Q,) share of slots with a personal source.
    """

    users: NDArray[np.object_]  # ids of any length
    lists: list[list[str]]
    ndcg: NDArray[np.float64]
    repeat: NDArray[np.float64]
    explore: NDArray[np.float64]
    cold: NDArray[np.bool_]
    covering: NDArray[np.float64]

    def select(self, span: slice) -> QueryResults:
        """Return the results of some consecutive queries."""
        return QueryResults(**{name: values[span] for name, values in vars(self).items()})

    def __add__(self, other: QueryResults) -> QueryResults:
        names = [name for name in vars(self) if name != "lists"]
        joined = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names}
        return QueryResults(lists=[*self.lists, *other.lists], **joined)

    @property
    def cold_coverage(self) -> float:
        """Return the share of cold users with a personal list; NaN without cold users."""
        _, numbers = np.unique(self.users, return_inverse=True)
        return metrics.cold_coverage(numbers, self.cold, self.covering)


def take(queries: Queries, selected: NDArray[np.int64]) -> Queries:
    """Select queries in the given order."""
    spans = [range(queries.offsets[q], queries.offsets[q + 1]) for q in selected]
    return Queries(
        users=[queries.users[q] for q in selected],
        as_of=queries.as_of[selected],
        now=queries.now[selected],
        offsets=np.concatenate([[0], np.cumsum([len(span) for span in spans])]).astype(np.int64),
        targets=[queries.targets[t] for span in spans for t in span],
    )


def subsample(queries: Queries, max_queries: int = MAX_QUERIES) -> Queries:
    """Subsample the queries evenly to a maximum."""
    return split_sample(queries, max_queries)[0]


def split_sample(queries: Queries, max_queries: int) -> tuple[Queries, Queries]:
    """Return an even subsample of the queries, and the other ones."""
    sampled = np.arange(len(queries))
    if len(queries) > max_queries:
        sampled = np.linspace(0, len(queries) - 1, max_queries).astype(np.int64)
    is_other = np.ones(len(queries), dtype=bool)
    is_other[sampled] = False
    sample = queries if len(sampled) == len(queries) else take(queries, sampled)
    return sample, take(queries, np.flatnonzero(is_other))


def answer(
    bundle: Bundle, queries: Queries, timeline: StateHistory, catalog: Catalog, threads: int = 1
) -> QueryResults:
    """Recommend with the first user placement, from the state just before each moment."""
    return answer_each([bundle], queries, timeline, catalog, threads)[0]


def answer_each(
    bundles: Sequence[Bundle], queries: Queries, timeline: StateHistory, catalog: Catalog, threads: int = 1,
    with_lists: bool = True,
) -> list[QueryResults]:  # fmt: skip
    """Answer the queries with each bundle as `answer` does; all use the same states."""
    recommenders = [ListRecommender(bundle, catalog, _placement(bundle), LIST_LENGTH) for bundle in bundles]
    lists = [np.zeros((len(queries), LIST_LENGTH), dtype=np.int64) for _ in bundles]
    covering = np.zeros((len(bundles), len(queries)))
    cold = np.zeros(len(queries), dtype=bool)
    target_codes = codes_of_targets(timeline, queries)
    repeat = np.zeros(len(target_codes), dtype=bool)

    def ask(recommenders: Sequence[ListRecommender], span: slice) -> None:
        states = states_of(timeline, queries, span)
        cold[span] = states.positives < COLD_POSITIVES
        flat = slice(queries.offsets[span.start], queries.offsets[span.stop])
        repeat[flat] = is_repeat(states, target_codes[flat], queries.offsets[span.start : span.stop + 1] - flat.start)
        for number, recommender in enumerate(recommenders):
            answers = recommender.recommend(states, queries.now[span])
            lists[number][span] = answers.items
            covering[number, span] = answers.covering_share

    workers = [recommenders, *([one.for_thread() for one in recommenders] for _ in range(threads - 1))]
    for _ in each_span(workers, len(queries), ask):
        pass
    return [
        _results(recommender, queries, lists[number], repeat, cold, covering[number], with_lists)
        for number, recommender in enumerate(recommenders)
    ]


def _results(
    recommender: ListRecommender,
    queries: Queries,
    lists: NDArray[np.int64],
    repeat: NDArray[np.bool_],
    cold: NDArray[np.bool_],
    covering: NDArray[np.float64],
    with_lists: bool,
) -> QueryResults:
    numbers = recommender.numbers(queries.targets)

    def ndcg(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        targets, offsets = metrics.keep_targets(numbers, queries.offsets, mask)
        return metrics.ranking(lists, targets, offsets, LIST_LENGTH)["NDCG"]

    return QueryResults(
        users=np.array(queries.users, dtype=object),
        lists=recommender.ids(lists) if with_lists else [],
        ndcg=ndcg(np.ones(len(numbers), dtype=bool)),
        repeat=ndcg(repeat),
        explore=ndcg(~repeat),
        cold=cold,
        covering=covering,
    )


def latency(
    bundles: tuple[Bundle, Bundle],
    queries: Queries,
    timeline: StateHistory,
    catalog: Catalog,
    fast_seconds: float = 0.0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Measure each bundle's seconds per query, alternating between bundles.

    The fastest of three runs is used, to exclude the load of other processes.

    Args:
        fast_seconds: `FIRST_TIMED_QUERIES` suffice if the median of the first bundle is below it.
    """
    timed = subsample(queries, TIMED_QUERIES)
    states = states_of(timeline, timed, slice(0, len(timed)))
    recommenders = [Recommender(bundle, catalog) for bundle in bundles]
    seconds = np.full((2, len(timed)), np.inf)
    order = np.argsort(np.arange(len(timed)) % max(1, len(timed) // FIRST_TIMED_QUERIES), kind="stable")
    for count, q in enumerate(order.tolist()):
        if count == FIRST_TIMED_QUERIES and float(np.median(seconds[0, order[:count]])) < fast_seconds:
            order = order[:count]
            break
        state = states.select(q)
        for side in (0, 1, 1, 0, 0, 1):
            query = Query(
                user_id=timed.users[q], now=int(timed.now[q]), placement=_placement(bundles[side]), n=LIST_LENGTH
            )
            begin = time.perf_counter()
            recommenders[side].recommend(state, [query], with_inputs=False)
            seconds[side, q] = min(seconds[side, q], time.perf_counter() - begin)
    return seconds[0, order], seconds[1, order]


def windows(queries: Queries, count: int, size: int) -> list[Queries]:
    """Return the newest ``count`` windows of ``size`` queries, oldest first.

    Few queries give fewer and smaller windows.
    """
    _, user_codes = np.unique(np.array(queries.users, dtype=object), return_inverse=True)
    order = np.lexsort((user_codes, queries.now))
    size = max(1, min(size, len(order) // MIN_WINDOWS))
    starts = range(len(order) - size, -1, -size)
    return [take(queries, order[start : start + size]) for start in [*starts][:count][::-1]]


def window_losses(
    bundle: Bundle, windows: Sequence[Queries], timeline: StateHistory, catalog: Catalog, threads: int = 1
) -> list[LossEstimate]:
    """Return the loss of a bundle over each window; all are answered in one pass."""
    ndcg = answer(bundle, concatenate(windows), timeline, catalog, threads).ndcg
    borders = np.cumsum([len(queries) for queries in windows])[:-1]
    return [window_loss(part) for part in np.split(ndcg, borders)]


def window_loss(ndcg: NDArray[np.float64]) -> LossEstimate:
    """Return a bundle's loss over a window: -ln of mean NDCG@10; NaN without a query."""
    valid = ndcg[~np.isnan(ndcg)]
    if not len(valid):
        return LossEstimate(float("nan"), 0, 0.0)
    mean = max(MIN_NDCG, float(valid.mean()))
    return LossEstimate(float(-np.log(mean)), len(valid), float(valid.std()) / mean)


def _placement(bundle: Bundle) -> str:
    placements = bundle.policy.placements
    names = (bundle.default_placement, *placements)
    return next((name for name in names if placements[name].list == "for_you"), bundle.default_placement)
