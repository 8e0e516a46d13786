"""Ranker: the second stage, which orders the items that the sources recall."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from recloop.bundle import Bundle
from recloop.bundle.checks import RANKER_GRAPH
from recloop.errors import BundleError
from recloop.features.encode import EncodedBatch
from recloop.features.item_statistics import ItemStatistics
from recloop.features.ranking import Candidates, FeatureSpace
from recloop.features.user_profile import MAX_QUERIES, MISSING
from recloop.policy import RankerSpec
from recloop.recommend import count_batches
from recloop.recommend.fusion import FusedTopK
from recloop.recommend.sources import open_session
from recloop.recommend.top_k import TopK
from recloop.records import source_names


class Ranker:
    """Trees or network of a bundle over the features of the recalled items.

    A network scores each query alone: a product of matrices depends in its last bits on the number of rows.
    """

    def __init__(self, bundle: Bundle, spec: RankerSpec) -> None:
        self.sources = tuple(spec.depths)
        self.depths = spec.depths
        self._space = feature_space(bundle, spec)
        self._session = open_session(bundle.graphs[RANKER_GRAPH])  # one thread: the rows of a query are few
        self._is_network = spec.model == "mlp"
        self._key = ("ranker", bundle.items.ids.serial, bundle.cut)

    def rank(self, encoded: EncodedBatch, recalled: Mapping[str, TopK], k: int) -> FusedTopK:
        """Return the best ``k`` candidates of each query by score.

        A score is the logistic function of the output of the graph; ties are ordered by item_ix. The source of a slot is the
        one with its best rank.

        Args:
            recalled: Lists of the ranker's sources.
        """
        names = source_names(recalled)
        ranked = FusedTopK.empty(len(encoded), k, names)
        features: list[np.ndarray] = []
        for start in range(0, len(encoded), MAX_QUERIES):
            queries = slice(start, min(start + MAX_QUERIES, len(encoded)))
            features += self._rank_some(ranked, encoded, queries, candidates_of(recalled, self.depths, queries))
        return FusedTopK(ranked.items, ranked.scores, ranked.sources, features, names)

    def _rank_some(
        self, ranked: FusedTopK, encoded: EncodedBatch, queries: slice, candidates: Candidates
    ) -> list[np.ndarray]:
        """Write the lists of some queries; return the features of each list (n, F)."""
        n_queries = queries.stop - queries.start
        matrix = self._space.matrix(encoded, queries, candidates, self._key)
        if not len(matrix):
            return [matrix] * n_queries
        scores = self._scores(matrix, candidates.offsets)
        if not np.isfinite(scores).all():
            raise BundleError(RANKER_GRAPH, "NaN or infinite", "finite scores", "recloop train")
        if len(encoded) == 1:
            best = _best_of_one(scores, ranked.items.shape[1])
            self._put(ranked, 0, slice(len(best)), candidates, scores, best)
            return [matrix[best]]
        best, offsets = _best_columns(scores, candidates, ranked.items.shape[1])
        lengths = np.diff(offsets)
        rows = np.repeat(np.arange(queries.start, queries.stop), lengths)
        columns = np.arange(len(best)) - np.repeat(offsets[:-1], lengths)
        self._put(ranked, rows, columns, candidates, scores, best)
        return np.split(matrix[best], offsets[1:-1])

    def _scores(self, matrix: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Return the output (C,) of the graph for features (C, F)."""
        parts = np.split(matrix, offsets[1:-1]) if self._is_network else [matrix]
        return np.concatenate([self._session.run(None, {"features": part})[0][:, 0] for part in parts if len(part)])

    def _put(
        self,
        ranked: FusedTopK,
        rows: np.ndarray | int,
        columns: np.ndarray | slice,
        candidates: Candidates,
        scores: np.ndarray,
        best: np.ndarray,
    ) -> None:
        """Write the best candidates to some slots."""
        ranked.items[rows, columns] = candidates.items[best]
        ranked.scores[rows, columns] = 1.0 / (1.0 + np.exp(-scores[best].astype(np.float64)))
        ranked.sources[rows, columns] = self._best_sources(candidates.ranks[:, best], ranked.names)

    def _best_sources(self, ranks: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """Return the number (n,) of the source with the best rank of each item."""
        best = np.where(ranks == MISSING, np.inf, ranks).argmin(axis=0)
        numbers = np.array([names.index(source) for source in self.sources], dtype=np.int8)
        best_numbers: np.ndarray = numbers[best]
        return best_numbers


def feature_space(bundle: Bundle, spec: RankerSpec, check: bool = True) -> FeatureSpace:
    """Return the features of a bundle's ranker.

    Args:
        check: Compare their names with the spec.

    Raises:
        BundleError: the bundle lacks its arrays, one of its sources, or one of its features.
    """
    missing = [source for source in spec.depths if source not in bundle.scorers]
    if missing:
        expected = f"sources of the bundle ({', '.join(bundle.scorers)})"
        raise BundleError("policy.json.ranker.depths", ", ".join(missing), expected, "recloop update --full")
    try:
        statistics = ItemStatistics.from_arrays(bundle.arrays, spec.fields, spec.numbers)
    except KeyError as error:
        raise BundleError("serve.safetensors", "missing", f"the array {error}", "recloop update --full") from None
    space = FeatureSpace(statistics, tuple(spec.depths), bundle.spec.timezone)
    if check and space.names != spec.features:
        unknown = [name for name in spec.features if name not in space.names] or [*spec.features]
        expected = f"the {len(space.names)} features of this version, in their order"
        raise BundleError("policy.json.ranker.features", ", ".join(unknown), expected, "recloop update --full")
    return space


def candidates_of(recalled: Mapping[str, TopK], depths: Mapping[str, int], queries: slice) -> Candidates:
    """Return the union of the first items of each source for some queries."""
    if queries.stop - queries.start == 1:
        return _candidates_of_one(recalled, depths, queries.start)
    lists = [recalled[source].items[queries, :depth] for source, depth in depths.items()]
    widths = tuple(listed.shape[1] for listed in lists)
    numbers, source, rank, bits = _columns(widths)
    items = np.concatenate(lists, axis=1).astype(np.int64)
    pairs = np.sort(items << bits | numbers, axis=1)  # (item, column), item 0 first
    items, columns = pairs >> bits, pairs & (1 << bits) - 1
    is_first = items > 0
    is_first[:, 1:] &= items[:, 1:] != items[:, :-1]
    is_item = items > 0
    slot = (np.cumsum(is_first) - 1)[is_item.ravel()]  # candidate of each entry
    columns = columns[is_item]
    n_candidates = np.count_nonzero(is_first, axis=1)
    ranks = np.full((len(lists), int(n_candidates.sum())), MISSING, dtype=np.float32)
    scores = np.zeros(ranks.shape, dtype=np.float32)
    ranks[source[columns], slot] = rank[columns]
    listed_scores = [recalled[name].scores[queries, :width] for name, width in zip(depths, widths, strict=True)]
    of_entry = np.concatenate(listed_scores, axis=1)[np.nonzero(is_item)[0], columns]
    scores[source[columns], slot] = of_entry
    offsets = np.concatenate([[0], np.cumsum(n_candidates)])
    return Candidates(offsets, items[is_first].astype(np.int32), ranks, scores)


def _candidates_of_one(recalled: Mapping[str, TopK], depths: Mapping[str, int], b: int) -> Candidates:
    """Return `candidates_of` for query b, in fewer steps."""
    lists = [recalled[source].items[b, :depth] for source, depth in depths.items()]
    columns = _columns(tuple(map(len, lists)))
    pairs = np.left_shift(np.concatenate(lists), columns.bits, dtype=np.int64)  # (item, column)
    pairs |= columns.numbers
    pairs.sort()
    pairs = pairs[pairs.searchsorted(1 << columns.bits) :]  # without empty slots
    items, column = pairs >> columns.bits, pairs & (1 << columns.bits) - 1
    is_first = np.empty(len(items), dtype=bool)
    is_first[:1] = True
    np.not_equal(items[1:], items[:-1], out=is_first[1:])
    items = items[is_first]
    entries = columns.source.take(column) * len(items) + (is_first.cumsum() - 1)
    ranks = np.full((len(lists), len(items)), MISSING, dtype=np.float32)
    scores = np.zeros((len(lists), len(items)), dtype=np.float32)
    listed_scores = [recalled[source].scores[b, :depth] for source, depth in depths.items()]
    ranks.put(entries, columns.rank.take(column))
    scores.put(entries, np.concatenate(listed_scores).take(column))
    return Candidates(np.array([0, len(items)]), items.astype(np.int32), ranks, scores)


class _Columns(NamedTuple):
    """Number, source and rank of positions in lists side by side; ``bits`` hold one."""

    numbers: np.ndarray  # (W,) int64
    source: np.ndarray  # (W,) int64
    rank: np.ndarray  # (W,) float32
    bits: int


@lru_cache(maxsize=256)
def _columns(widths: tuple[int, ...]) -> _Columns:
    """Return the positions of lists of these widths."""
    numbers = np.arange(sum(widths))
    rank = np.concatenate([np.arange(width, dtype=np.float32) for width in widths])
    return _Columns(numbers, np.repeat(np.arange(len(widths)), widths), rank, len(numbers).bit_length())


def _best_columns(scores: np.ndarray, candidates: Candidates, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the columns of the ``k`` best of each query, and their offsets (B+1,).

    Ties are ordered by item_ix.
    """
    order = np.lexsort((-scores, candidates.queries))
    lengths = np.minimum(np.diff(candidates.offsets), k)
    return order[count_batches.spread(candidates.offsets[:-1], lengths)], np.concatenate([[0], np.cumsum(lengths)])


def _best_of_one(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the columns of the ``k`` best of one query."""
    return np.argsort(-scores, kind="stable")[:k]


def append_rest(ranked: FusedTopK, rest: FusedTopK) -> None:
    """Fill free slots with the further items of ``rest`` (B, k), with lower scores."""
    for b in np.flatnonzero(ranked.items[:, -1] == 0).tolist():
        _append(ranked, b, int(np.count_nonzero(ranked.items[b])), rest)


def _append(ranked: FusedTopK, b: int, n_items: int, rest: FusedTopK) -> None:
    n_free = ranked.items.shape[1] - n_items
    is_further = (rest.items[b] > 0) & ~np.isin(rest.items[b], ranked.items[b, :n_items])
    columns = np.flatnonzero(is_further)[:n_free]
    span = slice(n_items, n_items + len(columns))
    last_score = ranked.scores[b, n_items - 1] if n_items else np.float32(1)
    ranked.items[b, span] = rest.items[b, columns]
    ranked.scores[b, span] = last_score * rest.scores[b, columns]
    ranked.sources[b, span] = rest.sources[b, columns]
