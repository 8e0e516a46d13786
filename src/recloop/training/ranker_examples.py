"""Examples that teach the trees of a ranker, and the lists that judge them.

Batches of queries are answered in threads. What teaches are the candidates that a list scores, with the same features.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from recloop.bundle import Bundle
from recloop.errors import UserError
from recloop.evaluation import metrics
from recloop.evaluation.parallel import each_span
from recloop.features.encode import EncodedBatch
from recloop.features.ranking import FeatureSpace
from recloop.features.state_history import StateHistory
from recloop.features.user_profile import MAX_QUERIES
from recloop.models.base import ValidationQueries
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import CandidateMask
from recloop.recommend.ranker import candidates_of
from recloop.recommend.recommender import Recommender
from recloop.records import FUSED_SOURCES, Query, source_names

DEPTH: Final = 30
"""Candidates of a source that teach, and that a list scores.

Lists of more have as good slots and cost more (docs/decisions/2026-11-28-a-ranker-over-recalled-items.md).
"""
HISTORY_DEPTH: Final = 60
"""Candidates of the history."""
LIST_LENGTH: Final = 10

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Examples:
    """Rows that teach: features (R, F) float32, labels (R,), sizes of moments (Q,).

    ``targets`` counts the targets of all moments that were asked, ``recalled`` those among the candidates.
    """

    features: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    recalled: int
    targets: int

    @classmethod
    def join(cls, parts: Sequence[Examples]) -> Examples:
        """Return the examples of several parts, at least one, in their order."""
        return cls(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.sizes for part in parts]),
            sum(part.recalled for part in parts),
            sum(part.targets for part in parts),
        )

    @property
    def recall(self) -> float:
        return self.recalled / max(1, self.targets)

    def check(self) -> None:
        """Check that they can teach a ranker.

        Raises:
            UserError: they have one class only, or a feature that is not finite.
        """
        fix = '--set ranker.model="off"'
        if not len(self.labels) or self.labels.min() == self.labels.max():
            raise UserError("ranker", "one class", "recalled items with and without a target", fix)
        if not np.isfinite(self.features).all():
            raise UserError("ranker", "NaN or infinite", "finite features", fix)


def depths_of(bundle: Bundle) -> dict[str, int]:
    """Return the candidates of each source of a ranker.

    Its sources are those of every bundle, and further ones that the fusion of the default placement uses.
    """
    weights = bundle.policy.placements[bundle.default_placement].weights
    return {
        source: HISTORY_DEPTH if source == "history" else DEPTH
        for source in source_names(bundle.scorers)
        if source in bundle.scorers and (source in FUSED_SOURCES or weights.get(source, 0.0) > 0)
    }


class QueryBatches:
    """Queries of a bundle's default placement, answered in batches by threads."""

    def __init__(self, bundle: Bundle, user_ids: Sequence[str], past: StateHistory, threads: int) -> None:
        catalog = Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes)
        catalogs = [catalog, *(catalog.copy() for _ in range(threads - 1))]
        self._workers = [Recommender(bundle, one) for one in catalogs]
        self.placement = self._workers[0].placement(bundle.default_placement)
        self.query = Query(user_id="", now=0, placement=bundle.default_placement)
        self._user_ids = user_ids
        self._past = past

    def each(
        self, queries: ValidationQueries, answer: Callable[[Recommender, EncodedBatch, CandidateMask, slice], Answer]
    ) -> list[Answer]:
        """Return the answer to each batch: its states and filters, and its positions."""
        answers: dict[int, Answer] = {}

        def ask(recommender: Recommender, span: slice) -> None:
            users = [self._user_ids[ix] for ix in queries.user_ix[span]]
            now = queries.now[span]
            states = self._past.states(users, queries.as_of[span].tolist(), now.tolist())
            encoded = recommender.encode(states, now)
            allowed = recommender.candidate_mask(encoded, [self.query] * len(users), self.placement)
            answers[span.start] = answer(recommender, encoded, allowed, span)

        return [answers[span.start] for span in each_span(self._workers, len(queries), ask)]


class ExampleMaker:
    """Describes the candidates of moments by the features of a ranker.

    Args:
        depths: Candidates of each source.
    """

    def __init__(self, batches: QueryBatches, space: FeatureSpace, depths: Mapping[str, int]) -> None:
        self._batches = batches
        self._space = space
        self._depths = depths

    def examples(self, queries: ValidationQueries) -> Examples:
        """Describe the candidates of each moment with targets and other candidates."""

        def of_batch(
            recommender: Recommender, encoded: EncodedBatch, allowed: CandidateMask, span: slice
        ) -> list[Examples]:
            recalled = recommender.recall(encoded, allowed, list(self._depths), self._depths)
            parts = []
            for start in range(0, len(encoded), MAX_QUERIES):
                some = slice(start, min(start + MAX_QUERIES, len(encoded)))
                asked = queries.at(np.arange(span.start + some.start, span.start + some.stop))
                candidates = candidates_of(recalled, self._depths, some)
                is_target = candidates.are_targets(asked.items, asked.offsets)
                columns = columns_of_both_classes(is_target, candidates.offsets)
                taken = candidates.take(columns)
                sizes = np.diff(taken.offsets)
                parts.append(
                    Examples(
                        self._space.matrix(encoded, some, taken), is_target[columns].astype(np.int8), sizes[sizes > 0],
                        int(is_target.sum()), len(asked.items),
                    )
                )  # fmt: skip
            return parts

        n_features = len(self._space.names)
        nothing = Examples(np.zeros((0, n_features), np.float32), np.zeros(0, np.int8), np.zeros(0, np.int64), 0, 0)
        return Examples.join([nothing, *itertools.chain(*self._batches.each(queries, of_batch))])


def ndcg(
    bundle: Bundle, queries: ValidationQueries, user_ids: Sequence[str], past: StateHistory, threads: int = 1
) -> np.ndarray:
    """(Q,) NDCG@10 of the lists of a bundle's first placement, without fallback."""
    batches = QueryBatches(bundle, user_ids, past, threads)

    def items(recommender: Recommender, encoded: EncodedBatch, allowed: CandidateMask, _span: slice) -> np.ndarray:
        query = [batches.query] * len(encoded)
        return recommender.fuse_sources(encoded, allowed, query, batches.placement, LIST_LENGTH).items

    lists = np.zeros((len(queries), LIST_LENGTH), dtype=np.int64)
    if len(queries):
        lists[:] = np.concatenate(batches.each(queries, items))
    return metrics.ranking(lists, queries.items, queries.offsets, LIST_LENGTH)["NDCG"]


def columns_of_both_classes(is_target: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the columns of queries with targets and other candidates.

    Args:
        is_target: (C,) bool of the candidates. offsets: (Q+1,) of the candidates of each query.
    """
    n_targets = np.diff(np.concatenate([[0], np.cumsum(is_target)])[offsets])
    sizes = np.diff(offsets)
    return np.flatnonzero(np.repeat((n_targets > 0) & (n_targets < sizes), sizes))
