"""Recall of the validation moments, from which half-lives and weights are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from recloop.bundle import Bundle
from recloop.evaluation.parallel import each_span, spans
from recloop.features.encode import EncodedBatch
from recloop.features.state_history import StateHistory
from recloop.models.base import TrainData, ValidationQueries
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import CandidateMask
from recloop.recommend.recommender import Recommender
from recloop.recommend.top_k import TopK
from recloop.records import Query


class ValidationRecall:
    """Validation queries as encoded batches, for the bundles of one choice.

    These bundles differ in scorers and arrays only, so that all share items, features and filters.
    """

    def __init__(
        self,
        bundle: Bundle,
        validation: ValidationQueries,
        data: TrainData,
        past: StateHistory,
        placement: str = "",
        threads: int = 1,
    ) -> None:
        table = bundle.items
        self._catalog = Catalog.from_table(table.ids.ids, table.attributes)
        self._threads = threads
        self._recommender = Recommender(bundle, self._catalog)
        self._validation = validation
        self._data = data
        self._past = past
        self._placement = placement or bundle.default_placement
        self._kept: dict[int, tuple[EncodedBatch, CandidateMask]] | None = None

    def keep(self) -> ValidationRecall:
        """Keep the encoded batches in memory for further calls of `recall`."""
        self._kept = {span.start: self._batch(self._recommender, span) for span in spans(len(self._validation))}
        return self

    def recall(self, bundle: Bundle, sources: Sequence[str]) -> dict[str, TopK]:
        """Return the top 200 of each source for every query, answered in threads."""
        catalogs = [self._catalog, *(self._catalog.copy() for _ in range(self._threads - 1))]
        workers = [Recommender(bundle, catalog) for catalog in catalogs]
        answers: dict[int, Mapping[str, TopK]] = {}

        def answer(recommender: Recommender, span: slice) -> None:
            encoded, allowed = self._batch(recommender, span) if self._kept is None else self._kept[span.start]
            answers[span.start] = recommender.recall(encoded, allowed, sources)

        batches = [answers[span.start] for span in each_span(workers, len(self._validation), answer)]
        return {
            source: TopK(
                np.concatenate([batch[source].items for batch in batches]),
                np.concatenate([batch[source].scores for batch in batches]),
            )
            for source in sources
        }

    def new_targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the targets that the placement may show, (T,), and their offsets (Q+1,)."""
        offsets = self._validation.offsets
        banned = [
            items for span in spans(len(self._validation)) for items in self._batch(self._recommender, span)[1].banned
        ]
        is_new = [
            ~np.isin(self._validation.items[offsets[q] : offsets[q + 1]], items) for q, items in enumerate(banned)
        ]
        sizes = [int(np.count_nonzero(mask)) for mask in is_new]
        return self._validation.items[np.concatenate(is_new)], np.concatenate([[0], np.cumsum(sizes)])

    def _batch(self, recommender: Recommender, span: slice) -> tuple[EncodedBatch, CandidateMask]:
        """Return the encoded states of some queries and their filters."""
        placement = recommender.placement(self._placement)
        query = Query(user_id="", now=0, placement=self._placement)
        now = self._validation.now[span]
        users = [self._data.user_ids[ix] for ix in self._validation.user_ix[span]]
        states = self._past.states(users, self._validation.as_of[span].tolist(), now.tolist())
        encoded = recommender.encode(states, now)
        return encoded, recommender.candidate_mask(encoded, [query] * len(users), placement)
