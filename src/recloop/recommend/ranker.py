"""Ranker: the second stage, which orders the items that the sources recall."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from recloop import jit
from recloop.bundle import Bundle
from recloop.bundle.checks import RANKER_GRAPH
from recloop.errors import BundleError
from recloop.features.encode import EncodedBatch
from recloop.features.item_statistics import ItemStatistics
from recloop.features.ranking import Candidates, FeatureSpace
from recloop.features.user_profile import MAX_QUERIES, MISSING
from recloop.policy import RankerSpec
from recloop.recommend.fusion import FusedTopK
from recloop.recommend.sources import open_session
from recloop.recommend.top_k import TopK
from recloop.recommend.trees import read_trees
from recloop.records import source_names


class Ranker:
    """Trees or network of a bundle over the features of the recalled items.

    A network scores each query alone: a product of matrices depends in its last bits on the number of rows.
    """

    def __init__(self, bundle: Bundle, spec: RankerSpec) -> None:
        self.sources = tuple(spec.depths)
        self.depths = spec.depths
        self._space = feature_space(bundle, spec)
        graph = bundle.graphs[RANKER_GRAPH]
        self._score = network_scores(graph) if spec.model == "mlp" else tree_scores(graph, len(self._space.names))
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
        scores = self._score(matrix, candidates.offsets)
        if not np.isfinite(scores).all():
            raise BundleError(RANKER_GRAPH, "NaN or infinite", "finite scores", "recloop train")
        best, offsets = _best(scores, candidates.offsets, ranked.items.shape[1])
        numbers = np.array([ranked.names.index(source) for source in self.sources], dtype=np.int8)
        values = 1.0 / (1.0 + np.exp(-scores[best].astype(np.float64)))
        write_lists(
            ranked.items[queries], ranked.scores[queries], ranked.sources[queries],
            best, offsets, values, candidates.items, candidates.ranks, numbers,
        )  # fmt: skip
        rows = matrix[best]
        return [rows[first:stop] for first, stop in pairwise(offsets.tolist())]


Scores = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Function of features (C, F) and the offsets (B+1,) of the queries, with the scores (C,)."""


def tree_scores(graph: bytes, n_features: int) -> Scores:
    """Return the function that scores candidates by trees."""
    trees = read_trees(graph, n_features)
    return lambda matrix, _: trees.scores(matrix)


def network_scores(graph: bytes) -> Scores:
    """Return the function that scores candidates by a network, query by query."""
    session = open_session(graph)  # one thread: the rows of a query are few

    def scores(matrix: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        parts = np.split(matrix, offsets[1:-1])
        return np.concatenate([session.run(None, {"features": part})[0][:, 0] for part in parts if len(part)])

    return scores


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
    for name, n_rows in (("codes", len(spec.fields)), ("amounts", len(spec.numbers))):
        array = bundle.arrays[f"ranking.{name}"]
        if len(array) != n_rows:  # the loops of the features would write outside their rows
            raise BundleError(f"ranking.{name}", f"{len(array)} rows", f"{n_rows} rows", "recloop update --full")
    space = FeatureSpace(statistics, tuple(spec.depths), bundle.spec.timezone)
    if check and space.names != spec.features:
        unknown = [name for name in spec.features if name not in space.names] or [*spec.features]
        expected = f"the {len(space.names)} features of this version, in their order"
        raise BundleError("policy.json.ranker.features", ", ".join(unknown), expected, "recloop update --full")
    return space


def candidates_of(recalled: Mapping[str, TopK], depths: Mapping[str, int], queries: slice) -> Candidates:
    """Return the union of the first items of each source for some queries."""
    lists = [recalled[source].items[queries, :depth] for source, depth in depths.items()]
    columns = _columns(tuple(listed.shape[1] for listed in lists))
    pairs = np.concatenate(lists, axis=1).astype(np.int64)
    pairs <<= columns.bits
    pairs |= columns.numbers
    pairs.sort(axis=1)  # numpy sorts integers faster than a loop
    offsets, items = np.empty(len(pairs) + 1, dtype=np.int64), np.empty(pairs.size, dtype=np.int32)
    n_candidates = write_union(offsets, items, pairs, columns.bits)
    listed_scores = np.concatenate(
        [recalled[source].scores[queries, :depth] for source, depth in depths.items()], axis=1
    )
    ranks = np.empty((len(lists), n_candidates), dtype=np.float32)
    scores = np.empty((len(lists), n_candidates), dtype=np.float32)
    write_sources(ranks, scores, pairs, columns.bits, columns.source, columns.rank, listed_scores)
    return Candidates(offsets, items[:n_candidates], ranks, scores)


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


@jit.compiled(jit.INTEGER, jit.written(jit.INT64), jit.written(jit.INT32), jit.INT64_2D, jit.INTEGER)
def write_union(offsets: np.ndarray, items: np.ndarray, pairs: np.ndarray, bits: int) -> int:
    """Write the distinct items of each query, ascending; return their number.

    Args:
        pairs: (B, W) item_ix above ``bits`` of its column, ascending; item 0 is an empty slot.
    """
    n_items = 0
    offsets[0] = 0
    for query in range(len(pairs)):
        last = 0
        for column in range(pairs.shape[1]):
            item = pairs[query, column] >> bits
            if item != last:
                items[n_items] = last = item
                n_items += 1
        offsets[query + 1] = n_items
    return n_items


@jit.compiled(
    None, jit.written(jit.FLOAT32_2D), jit.written(jit.FLOAT32_2D), jit.INT64_2D, jit.INTEGER, jit.INT64, jit.FLOAT32,
    jit.FLOAT32_2D,
)  # fmt: skip
def write_sources(
    ranks: np.ndarray, scores: np.ndarray, pairs: np.ndarray, bits: int, source: np.ndarray, rank: np.ndarray,
    listed_scores: np.ndarray,
) -> None:  # fmt: skip
    """Write rank and score (S, C) of each candidate in each source.

    Args:
        pairs, bits: As for `write_union`. source, rank: (W,) of each column. listed_scores: (B, W).
    """
    ranks[:], scores[:] = MISSING, 0.0
    candidate = -1
    for query in range(len(pairs)):
        last = 0
        for entry in range(pairs.shape[1]):
            item, column = pairs[query, entry] >> bits, pairs[query, entry] & (1 << bits) - 1
            if item != last:
                candidate, last = candidate + 1, item
            if item:
                ranks[source[column], candidate] = rank[column]
                scores[source[column], candidate] = listed_scores[query, column]


def _best(scores: np.ndarray, offsets: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best ``k`` candidates of each query, and their offsets (B+1,).

    Ties are ordered by item_ix.
    """
    best, best_offsets = np.empty(min(len(scores), k * (len(offsets) - 1)), dtype=np.int64), np.empty_like(offsets)
    n_best = write_best(best, best_offsets, scores, offsets, k)
    return best[:n_best], best_offsets


@jit.compiled(jit.INTEGER, jit.written(jit.INT64), jit.written(jit.INT64), jit.FLOAT32, jit.INT64, jit.INTEGER)
def write_best(best: np.ndarray, best_offsets: np.ndarray, scores: np.ndarray, offsets: np.ndarray, k: int) -> int:
    """Write the result of `_best`; return its length."""
    n_best = best_offsets[0] = 0
    for query in range(len(offsets) - 1):
        first = n_best
        for candidate in range(offsets[query], offsets[query + 1]):
            if n_best == first + k and scores[candidate] <= scores[best[n_best - 1]]:
                continue
            n_best = min(n_best + 1, first + k)
            slot = n_best - 1
            while slot > first and scores[best[slot - 1]] < scores[candidate]:
                best[slot] = best[slot - 1]
                slot -= 1
            best[slot] = candidate
        best_offsets[query + 1] = n_best
    return n_best


@jit.compiled(
    None, jit.written(jit.INT32_2D), jit.written(jit.FLOAT32_2D), jit.written(jit.INT8_2D), jit.INT64, jit.INT64, jit.FLOAT64,
    jit.INT32, jit.FLOAT32_2D, jit.INT8,
)  # fmt: skip
def write_lists(
    items: np.ndarray, scores: np.ndarray, sources: np.ndarray, best: np.ndarray, offsets: np.ndarray, values: np.ndarray,
    candidates: np.ndarray, ranks: np.ndarray, numbers: np.ndarray,
) -> None:  # fmt: skip
    """Write the lists (B, k) from the best candidates and their values (n,).

    The source of a slot is the one with its best rank (S, C); the first one wins a tie. Its number is in ``numbers`` (S,).
    """
    for query in range(len(offsets) - 1):
        for slot in range(offsets[query + 1] - offsets[query]):
            place = offsets[query] + slot
            candidate, first = best[place], -1
            for source in range(len(ranks)):
                rank = ranks[source, candidate]
                if rank != MISSING and (first < 0 or rank < ranks[first, candidate]):
                    first = source
            items[query, slot], scores[query, slot] = candidates[candidate], values[place]
            sources[query, slot] = numbers[max(first, 0)]


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
