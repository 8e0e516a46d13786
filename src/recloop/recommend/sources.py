"""Scorers of a bundle: recall of each source for a batch of queries.

There are four kinds: ``vectors`` (a user graph or a user table over an item
table), ``neighbours`` (stored rows summed over the newest moments), ``counts`` (counts of the state, popular lists) and
``rank`` (scores for the items that other sources recalled). The queries of a batch are answered one at a time, so a list
does not depend on its batch. A source belongs to one thread, because it reuses its arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from itertools import pairwise
from typing import Protocol

import numpy as np
import onnxruntime as ort
import scipy.sparse as sp

from recloop.bundle import Bundle
from recloop.errors import BundleError
from recloop.features.encode import EncodedBatch, window
from recloop.models.als import base_gram, confidence, solve_rows
from recloop.recommend.filters import CandidateMask
from recloop.recommend.mask_cache import MaskCache
from recloop.recommend.search import ScanTable, VectorSearch
from recloop.recommend.table_mask import TableMask
from recloop.recommend.top_k import DEPTH, TopK, Workspace, best_ranked
from recloop.records import DAY

MAX_HALVINGS = 1000.0
"""Maximum age of an act in half-lives; its weight 2^-1000 is still above 0."""
INPUT_WEIGHT = 0.2
"""Weight in ``history`` of a moment with only inputs, relative to one with a target."""
WINDOWS_PER_RUN = 32
"""Windows per run of the user graph."""
POPULAR_PREFIX = 4 * DEPTH
"""Popular items that are kept for each of the last `CACHED_PREFIXES` masks."""
CACHED_PREFIXES = 1_000


class Source(Protocol):
    """Protocol of a source: recall the best items of each query after the filters."""

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        """Return (B, depth) items and scores, descending."""
        ...


Ranked = tuple[np.ndarray, np.ndarray]
"""Items (item_ix) and scores of one query, descending, before the filters."""


def kept(encoded: EncodedBatch, key: Hashable, compute: Callable[[EncodedBatch], Ranked]) -> Ranked:
    """Return the ranking of a batch of one, which its state keeps until the user's next event."""
    ranked: Ranked | None = encoded.states.derived.get(key)
    if ranked is None:
        items, scores = compute(encoded)
        ranked = encoded.states.derived[key] = items.astype(np.int32), scores
    return ranked


def put_ranked(recalled: TopK, ranked: Ranked, allowed: CandidateMask, workspace: Workspace) -> None:
    """Store the first allowed items of a ranking as the list of a batch of one."""
    items, scores = ranked
    if len(items) and not (allowed.is_all and not len(allowed.banned[0])):
        is_allowed = workspace.is_allowed(items, allowed, 0)
        items, scores = items[is_allowed], scores[is_allowed]
    depth = recalled.items.shape[1]
    recalled.put(0, items[:depth], scores[:depth])


class PopularSource:
    """Source ``popular``: one list for all users, scored by 1 / rank."""

    def __init__(self, bundle: Bundle, workspace: Workspace) -> None:
        self._order = bundle.arrays["popular"]
        self._workspace = workspace
        self._prefixes: MaskCache[np.ndarray] = MaskCache(self._prefix, CACHED_PREFIXES)

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        recalled = TopK.empty(len(encoded), depth)
        prefix = self._prefixes.get(allowed.table)
        for b, banned in enumerate(allowed.banned):
            n_first = depth + len(banned)
            items = prefix[:n_first] if n_first <= POPULAR_PREFIX else self._first_allowed(allowed.mask, n_first)
            if len(banned):
                items = items[self._workspace.is_allowed(items, allowed, b)][:depth]
            recalled.put(b, items, 1.0 / np.arange(1, len(items) + 1))
        return recalled

    def _prefix(self, table: TableMask) -> np.ndarray:
        return self._first_allowed(table.mask, POPULAR_PREFIX)

    def _first_allowed(self, mask: np.ndarray, n_items: int) -> np.ndarray:
        """Return the first items of the list that a mask (N+1,) allows."""
        blocks: list[np.ndarray] = []
        n_found = start = 0
        stop = 2 * n_items
        while n_found < n_items and start < len(self._order):
            block = self._order[start:stop]
            blocks.append(block[mask[block]])
            n_found += len(blocks[-1])
            start, stop = stop, 2 * stop
        return np.concatenate(blocks)[:n_items] if blocks else self._order[:0]


class HistorySource:
    """Source ``history``: items of the user's history, weighted by age.

    A moment with the item as a target counts 1; a moment with it only as an input counts `INPUT_WEIGHT`. Age is measured
    at the user's newest moment. The order is the same as by the age now, and weights stay above 0.
    """

    def __init__(self, bundle: Bundle, half_life: float | None, workspace: Workspace) -> None:
        self._rank = popularity_rank(bundle)
        self._key = ("own items", bundle.items.ids.serial, half_life)
        self._half_life = half_life
        self._workspace = workspace

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        recalled = TopK.empty(len(encoded), depth)
        if not len(encoded.items):
            return recalled
        if len(encoded) == 1:
            put_ranked(recalled, kept(encoded, self._key, self._ranked), allowed, self._workspace)
            return recalled
        weights = self._row_weights(encoded)
        offsets = encoded.row_offsets.tolist()
        for b, (low, high) in enumerate(pairwise(offsets)):
            if low < high:
                items, scores = self._workspace.totals(encoded.items[low:high], weights[low:high])
                is_allowed = self._workspace.is_allowed(items, allowed, b)
                recalled.put(b, *best_ranked(items[is_allowed], _in_24_bits(scores[is_allowed]), self._rank, depth))
        return recalled

    def _ranked(self, encoded: EncodedBatch) -> Ranked:
        """Rank all items of a batch of one."""
        items, scores = self._workspace.totals(encoded.items, self._row_weights(encoded))
        return best_ranked(items, _in_24_bits(scores), self._rank, len(items))

    def _row_weights(self, encoded: EncodedBatch) -> np.ndarray:
        """Return the weight (E,) float64 of each row."""
        newest = np.repeat(encoded.stamps[encoded.moment_offsets[1:] - 1], np.diff(encoded.moment_offsets))
        moment_weights = age_weights(newest - encoded.stamps, self._half_life)
        row_weights: np.ndarray = np.repeat(moment_weights, np.diff(encoded.item_offsets))
        row_weights *= np.where(encoded.targets, 1.0, INPUT_WEIGHT)
        return row_weights


class CoVisitationSource:
    """Source ``neighbours``: the summed stored rows of the newest moments' items."""

    def __init__(self, bundle: Bundle, recent: tuple[float, ...], workspace: Workspace) -> None:
        arrays = bundle.arrays
        self._rank = popularity_rank(bundle)
        self._key = ("neighbours", bundle.items.ids.serial, recent)
        self._oldest_first = np.array(recent[::-1])
        self._indptr = arrays["neighbours.indptr"]
        self._ids = arrays["neighbours.ids"]
        self._weights = arrays["neighbours.weights"]
        self._workspace = workspace

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        recalled = TopK.empty(len(encoded), depth)
        if len(encoded) == 1:
            put_ranked(recalled, kept(encoded, self._key, self._ranked), allowed, self._workspace)
            return recalled
        for b in range(len(encoded)):
            items, weights = self._recent_items(encoded, b)
            if len(items):
                neighbours, scores = self._summed_rows(items, weights)
                is_kept = self._workspace.is_allowed(neighbours, allowed, b) & (scores > 0)
                recalled.put(b, *best_ranked(neighbours[is_kept], scores[is_kept], self._rank, depth))
        return recalled

    def _ranked(self, encoded: EncodedBatch) -> Ranked:
        """Rank all neighbours of a batch of one."""
        items, weights = self._recent_items(encoded, 0)
        if not len(items):
            return items, weights
        neighbours, scores = self._summed_rows(items, weights)
        is_positive = scores > 0
        neighbours, scores = neighbours[is_positive], scores[is_positive]
        return best_ranked(neighbours, scores, self._rank, len(neighbours))

    def _recent_items(self, encoded: EncodedBatch, b: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ascending items of the newest moments and their summed weights."""
        low, high = encoded.moment_offsets[b : b + 2].tolist()
        first = max(low, high - len(self._oldest_first))
        offsets = encoded.item_offsets[first : high + 1]
        weights = np.repeat(self._oldest_first[len(self._oldest_first) - (high - first) :], np.diff(offsets))
        items, slots = np.unique(encoded.items[offsets[0] : offsets[-1]], return_inverse=True)
        return items, np.bincount(slots, weights=weights, minlength=len(items))

    def _summed_rows(self, items: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the neighbours and their scores, float32.

        A score is summed in float64 in the order of ``items``.
        """
        starts = self._indptr[items]
        lengths = self._indptr[items + 1] - starts
        ends = np.cumsum(lengths)
        entries = np.arange(ends[-1]) + np.repeat(starts - ends + lengths, lengths)
        values = self._weights[entries] * np.repeat(weights, lengths)
        neighbours, sums = self._workspace.totals(self._ids[entries], values)
        return neighbours, sums.astype(np.float32)


class EmbeddingSource:
    """Source ``model``: user-graph vectors over the item table; empty without history."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self._items = bundle.arrays["item_vectors"]
        self._history = bundle.spec.history
        self._session = open_session(bundle.graphs["user.onnx"], threads)
        self._inputs = {node.name for node in self._session.get_inputs()}
        self._search = VectorSearch(scan_table(bundle))

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        owners, users = self.user_vectors(encoded)
        return _nearest(self._search, users, owners, len(encoded), allowed, depth)

    def user_vectors(self, encoded: EncodedBatch) -> tuple[np.ndarray, np.ndarray]:
        """Return the queries with a history, (b,), and their vectors, (b, D) float32.

        Windows of similar length run together, `WINDOWS_PER_RUN` at a time, for little padding and attention that fits the cache.
        """
        if len(encoded) == 1:
            return self._one_vector(encoded)
        items, moments, mask = window(encoded, self._history).padded()
        lengths = mask.sum(axis=1)
        owners = np.flatnonzero(lengths)
        newest_sizes = (mask & (moments == 0)).sum(axis=1)
        order = owners[np.lexsort((newest_sizes[owners], lengths[owners]))]
        vectors = np.zeros((len(encoded), self._items.shape[1]), dtype=np.float32)
        for start in range(0, len(order), WINDOWS_PER_RUN):
            rows = order[start : start + WINDOWS_PER_RUN]
            width = slice(0, lengths[rows[-1]])
            vectors[rows] = self._run(
                items[rows, width], moments[rows, width], mask[rows, width], encoded.context[rows]
            )
        return owners, vectors[owners]

    def _one_vector(self, encoded: EncodedBatch) -> tuple[np.ndarray, np.ndarray]:
        """Return `user_vectors` of a batch of one without its grouping."""
        items, moments = newest_window(encoded, 0, self._history)
        if not len(items):
            return np.zeros(0, dtype=np.int64), np.zeros((0, self._items.shape[1]), dtype=np.float32)
        mask = np.ones((1, len(items)), dtype=bool)
        return np.zeros(1, dtype=np.int64), self._run(items[None], moments[None], mask, encoded.context)

    def _run(self, items: np.ndarray, moments: np.ndarray, mask: np.ndarray, context: np.ndarray) -> np.ndarray:
        """Run the user graph on windows (b, T); returns (b, D) float32."""
        feeds = {
            "history": self._items[items],
            "moments": moments,
            "mask": mask,
            "context": context.astype(np.int64),
        }
        vectors: np.ndarray = self._session.run(None, {name: feeds[name] for name in self._inputs})[0]
        if not np.isfinite(vectors).all():
            raise BundleError(
                "user.onnx", "NaN or infinite", "finite user vectors", "recloop train, with a smaller train.lr"
            )
        return vectors


class FactorSource:
    """Source ``model`` of a factorization: the learned user vector, or fold-in.

    A user is folded in if the state changed since training, or if it holds rejected items. Fold-in is the exact
    half-step of training (`recloop.models.als`) on the item counts of the history and on the rejected items.
    """

    def __init__(self, bundle: Bundle, l2: float, unseen: float) -> None:
        assert bundle.users is not None
        self._items = bundle.arrays["item_vectors"]
        self._users = bundle.arrays["user_vectors"]
        self._known = bundle.users
        self._cut = bundle.cut
        self._l2 = l2
        self._unseen = unseen
        self._gram = base_gram(self._items, unseen)
        self._search = VectorSearch(scan_table(bundle))

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        owners, users = self.user_vectors(encoded)
        return _nearest(self._search, users, owners, len(encoded), allowed, depth)

    def user_vectors(self, encoded: EncodedBatch) -> tuple[np.ndarray, np.ndarray]:
        """Return the queries with a history, (b,), and their vectors, (b, D) float32."""
        sizes = np.diff(encoded.row_offsets)
        owners = np.flatnonzero(sizes)
        user_ix = self._known.ids.lookup(encoded.states.users, len(encoded))[owners]
        newest = encoded.stamps[encoded.moment_offsets[1:][owners] - 1]
        is_current = (user_ix > 0) & (newest < self._cut) & (self._known.count[user_ix - 1] == sizes[owners])
        # the table does not record when items were rejected
        is_current &= np.diff(encoded.negative_offsets)[owners] == 0
        vectors = self._users[np.where(is_current, user_ix, 0)]
        if not is_current.all():
            row_counts = np.ones(len(encoded.items))
            shape = (len(encoded), len(self._items))
            history = sp.csr_array((row_counts, encoded.items, encoded.row_offsets), shape=shape)[owners[~is_current]]
            history.sum_duplicates()
            history.data = confidence(history.data)
            negative_counts = np.ones(len(encoded.negatives))
            rejected = sp.csr_array((negative_counts, encoded.negatives, encoded.negative_offsets), shape=shape)[
                owners[~is_current]
            ]
            vectors[~is_current] = solve_rows(self._items, self._gram, history, self._l2, self._unseen, rejected)
        return owners, vectors


class RerankSource:
    """Source ``model`` of a reranking network: reorders the other sources' items.

    Each query is scored alone, so its list does not depend on the batch.
    """

    def __init__(self, bundle: Bundle, others: Mapping[str, Source], threads: int = 1) -> None:
        self._items = bundle.arrays["item_vectors"]
        self._history = bundle.spec.history
        self._others = others
        self._session = open_session(bundle.graphs["rank.onnx"], threads)
        self._inputs = {node.name for node in self._session.get_inputs()}

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        source_items = [scorer.best(encoded, allowed, depth).items for scorer in self._others.values()]
        recalled = TopK.empty(len(encoded), depth)
        for b in np.flatnonzero(np.diff(encoded.row_offsets)).tolist():
            candidates = np.unique(np.concatenate([source[b] for source in source_items]))
            candidates = candidates[candidates > 0]
            if not len(candidates):
                continue
            items, moments = newest_window(encoded, b, self._history)
            feeds = {
                "history": self._items[items][None],
                "moments": moments[None],
                "mask": np.ones((1, len(items)), dtype=bool),
                "context": encoded.context[b : b + 1].astype(np.int64),
                "candidates": self._items[candidates][None],
            }
            scores = self._session.run(None, {name: feeds[name] for name in self._inputs})[0][0]
            if not np.isfinite(scores).all():
                raise BundleError(
                    "rank.onnx", "NaN or infinite", "finite scores", "recloop train, with a smaller train.lr"
                )
            order = np.argsort(-scores, kind="stable")[:depth]  # candidates ascend
            recalled.put(b, candidates[order], scores[order])
        return recalled


class RepeatedSource:
    """Source that keeps its last answer, because a reranking source asks for it again."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._question: tuple[EncodedBatch, CandidateMask, int] | None = None
        self._answer = TopK.empty(0)

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        last = self._question
        if last is None or last[0] is not encoded or last[1] is not allowed or last[2] != depth:
            self._answer = self._source.best(encoded, allowed, depth)
            self._question = (encoded, allowed, depth)
        return self._answer


def open_session(graph: bytes, threads: int = 1) -> ort.InferenceSession:
    """Open an ONNX graph for a number of threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def make_sources(bundle: Bundle, threads: int = 1) -> dict[str, Source]:
    """Return a bundle's scorers by source."""
    sources: dict[str, Source] = {}
    workspace = Workspace(len(bundle.items) + 1)
    for source, spec in bundle.scorers.items():
        if source == "popular":
            sources[source] = PopularSource(bundle, workspace)
        elif source == "history":
            sources[source] = HistorySource(bundle, spec.half_life, workspace)
        elif source == "neighbours":
            sources[source] = CoVisitationSource(bundle, spec.recent or (), workspace)
        elif bundle.users is not None:
            options = spec.config or {}
            sources[source] = FactorSource(bundle, options["l2"], options["unseen"])
        elif spec.kind != "rank":
            sources[source] = EmbeddingSource(bundle, threads)
    for source, spec in bundle.scorers.items():
        if spec.kind == "rank":
            sources |= {name: RepeatedSource(sources[name]) for name in spec.of or ()}
            sources[source] = RerankSource(bundle, {name: sources[name] for name in spec.of or ()}, threads)
    return sources


def _nearest(
    search: VectorSearch, users: np.ndarray, owners: np.ndarray, size: int, allowed: CandidateMask, depth: int
) -> TopK:
    """Return the best items by the vectors (b, D) of the queries ``owners`` (b,).

    Other queries have empty lists.
    """
    recalled = TopK.empty(size, depth)
    for user, b in zip(users, owners.tolist(), strict=True):
        recalled.put(b, *search.best(user, allowed, b, depth))
    return recalled


def newest_window(encoded: EncodedBatch, b: int, history: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the items (T,) and ages (T,) int64 of query b's window.

    It equals that of `recloop.features.encode.window`.
    """
    low, high = encoded.moment_offsets[b : b + 2].tolist()
    offsets = encoded.item_offsets[low : high + 1]
    if low == high:
        return encoded.items[:0], np.zeros(0, dtype=np.int64)
    end = int(offsets[-1])
    first = min(int(np.searchsorted(offsets, end - history)), high - low - 1)
    start = int(offsets[first])
    stop = min(end, start + history)
    ages = np.repeat(np.arange(high - low - 1 - first, -1, -1), np.diff(offsets[first:]))
    return encoded.items[start:stop], ages[: stop - start]


def scan_table(bundle: Bundle) -> ScanTable:
    """Return the codes of a bundle's item vectors; its recommenders share them."""
    table: ScanTable = bundle.shared("scan_table", lambda: ScanTable.build(bundle.arrays["item_vectors"]))
    return table


def popularity_rank(bundle: Bundle) -> np.ndarray:
    """Return the rank (N+1,) int32 of each item in the popular list; row 0 is last."""
    rank: np.ndarray = bundle.shared("popularity_rank", lambda: _rank_of(bundle.arrays["popular"]))
    return rank


def _rank_of(order: np.ndarray) -> np.ndarray:
    rank = np.full(len(order) + 1, len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    return rank


def _in_24_bits(scores: np.ndarray) -> np.ndarray:
    """Round float64 scores to 24 bits: equal ones tie at any magnitude, as in float32."""
    mantissa, exponent = np.frexp(scores)
    return np.asarray(np.ldexp(mantissa.astype(np.float32).astype(np.float64), exponent))


def age_weights(age: np.ndarray, half_life: float | None) -> np.ndarray:
    """Return the weight (M,) float64 of each moment, above 0.

    ``age`` is in microseconds, ``half_life`` in days; None gives weight 1.
    """
    if half_life is None:
        return np.ones(len(age))
    halvings = np.minimum(np.maximum(age, 0) / (half_life * DAY), MAX_HALVINGS)
    return np.asarray(np.exp2(-halvings))
