"""Recall of the validation moments, from which half-lives and weights are chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from recloop.bundle import Bundle
from recloop.features.encode import EncodedBatch
from recloop.features.state_history import StateHistory
from recloop.models.base import TrainData, ValidationQueries
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import CandidateMask
from recloop.recommend.recommender import Recommender
from recloop.recommend.top_k import TopK
from recloop.records import Query

CHUNK_QUERIES = 256
"""Queries per batch, which bounds the memory."""


class ValidationRecall:
    """Validation queries as encoded batches, for the bundles of one choice.

    These bundles differ in scorers and arrays only, so that all share items, features and filters.
    """

    def __init__(
        self, bundle: Bundle, validation: ValidationQueries, data: TrainData, past: StateHistory, placement: str = ""
    ) -> None:
        table = bundle.items
        self._catalog = Catalog.from_table(table.ids.ids, table.attributes)
        self._recommender = Recommender(bundle, self._catalog)
        self._validation = validation
        self._data = data
        self._past = past
        self._placement = placement or bundle.default_placement
        self._kept: list[tuple[EncodedBatch, CandidateMask]] | None = None

    def keep(self) -> ValidationRecall:
        """Keep the encoded batches in memory for further calls of `recall`."""
        self._kept = list(self._batches())
        return self

    def recall(self, bundle: Bundle, sources: Sequence[str], threads: int = 1) -> dict[str, TopK]:
        """Return the top 200 of each source for every query."""
        recommender = Recommender(bundle, self._catalog, threads)
        batches = [
            recommender.recall(encoded, allowed, sources)
            for encoded, allowed in (self._batches() if self._kept is None else self._kept)
        ]
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
        banned = [items for _, allowed in self._batches() for items in allowed.banned]
        is_new = [
            ~np.isin(self._validation.items[offsets[q] : offsets[q + 1]], items) for q, items in enumerate(banned)
        ]
        sizes = [int(np.count_nonzero(mask)) for mask in is_new]
        return self._validation.items[np.concatenate(is_new)], np.concatenate([[0], np.cumsum(sizes)])

    def _batches(self) -> Iterator[tuple[EncodedBatch, CandidateMask]]:
        placement = self._recommender.placement(self._placement)
        query = Query(user_id="", now=0, placement=self._placement)
        for start in range(0, len(self._validation), CHUNK_QUERIES):
            span = slice(start, start + CHUNK_QUERIES)
            now = self._validation.now[span]
            users = [self._data.user_ids[ix] for ix in self._validation.user_ix[span]]
            states = self._past.states(users, self._validation.as_of[span].tolist(), now.tolist())
            encoded = self._recommender.encode(states, now)
            yield encoded, self._recommender.candidate_mask(encoded, [query] * len(users), placement)
