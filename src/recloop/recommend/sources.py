"""Scorers of a bundle: recall of each source for a batch of queries.

There are four kinds: ``vectors`` (a user graph or a user table over an item
table), ``neighbours`` (stored rows summed over the newest moments or the whole history), ``counts`` (counts of the state,
popular lists) and ``rank`` (scores for the items that other sources recalled). A list does not depend on its batch. A
source belongs to one thread, because it reuses its arrays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary

import numpy as np
import onnxruntime as ort
import scipy.sparse as sp

from recloop.bundle import Bundle, array_name
from recloop.errors import BundleError
from recloop.features.encode import EncodedBatch, window
from recloop.models.als import base_gram, confidence, solve_rows
from recloop.recommend.count_sources import BuyAgainSource, HistorySource, NeighbourSource, PopularSource
from recloop.recommend.filters import CandidateMask
from recloop.recommend.search import ScanTable, VectorSearch
from recloop.recommend.top_k import DEPTH, TopK, Workspace

WINDOWS_PER_RUN = 8
"""Windows per run of the user graph."""
KEEP_VECTORS = True
"""True if a user without new events and with the same context is encoded once; a benchmark turns it off."""
SCAN_TABLES: WeakValueDictionary[int, ScanTable] = WeakValueDictionary()
"""Tables that bundles of this process keep, by the id of their array."""
SERIALS: Iterator[int] = count(1)
"""Numbers of the embedding sources of this process."""


class Source(Protocol):
    """Protocol of a source: recall the best items of each query after the filters."""

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        """Return (B, depth) items and scores, descending."""
        ...


class EmbeddingSource:
    """Source ``model``: user-graph vectors over the item table; empty without history."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self._items = bundle.arrays["item_vectors"]
        self._history = bundle.spec.history
        self._session = open_session(bundle.graphs["user.onnx"], threads)
        self._inputs = {node.name for node in self._session.get_inputs()}
        self._search = VectorSearch(scan_table(bundle))
        self._key = ("user vector", next(SERIALS))

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
        """Return `user_vectors` of a batch of one without its grouping.

        The state keeps the vector for the same history and context (`KEEP_VECTORS`).
        """
        if not len(encoded.items):
            return np.zeros(0, dtype=np.int64), np.zeros((0, self._items.shape[1]), dtype=np.float32)
        inputs = (encoded.items, encoded.context.tobytes())  # the history of a state is the same object until an event
        known = encoded.states.derived.get(self._key)
        if known is not None and known[0] is inputs[0] and known[1] == inputs[1] and KEEP_VECTORS:
            return np.zeros(1, dtype=np.int64), known[2]
        items, moments = newest_window(encoded, 0, self._history)
        mask = np.ones((1, len(items)), dtype=bool)
        vectors = self._run(items[None], moments[None], mask, encoded.context)
        encoded.states.derived[self._key] = (*inputs, vectors)
        return np.zeros(1, dtype=np.int64), vectors

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

    def __init__(self, bundle: Bundle, source: str, l2: float, unseen: float) -> None:
        assert bundle.users is not None
        until = bundle.scorers[source].until
        self._items = bundle.arrays[array_name(source, "item_vectors")]
        self._users = bundle.arrays[array_name(source, "user_vectors")]
        self._known = bundle.users
        self._cut = bundle.cut if until is None else until
        self._l2 = l2
        self._unseen = unseen
        self._gram = base_gram(self._items, unseen)
        self._search = VectorSearch(scan_table(bundle, array_name(source, "item_vectors")))

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

    Each query is scored alone, so its list does not depend on the batch. A network with ``user_vectors`` gets the row of the
    user, or 0 for a user without one, whom it folds in by the history.
    """

    def __init__(self, bundle: Bundle, others: Mapping[str, Source], threads: int = 1) -> None:
        self._items = bundle.arrays["item_vectors"]
        self._history = bundle.spec.history
        self._others = others
        self._session = open_session(bundle.graphs["rank.onnx"], threads)
        self._inputs = {node.name for node in self._session.get_inputs()}
        self._users = bundle.arrays["user_vectors"] if "user" in self._inputs else None
        self._known = bundle.users

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        source_items = [scorer.best(encoded, allowed, depth).items for scorer in self._others.values()]
        recalled = TopK.empty(len(encoded), depth)
        users = self._user_rows(encoded)
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
                "user": users[b : b + 1],
            }
            scores = self._session.run(None, {name: feeds[name] for name in self._inputs})[0][0]
            if not np.isfinite(scores).all():
                raise BundleError(
                    "rank.onnx", "NaN or infinite", "finite scores", "recloop train, with a smaller train.lr"
                )
            order = np.argsort(-scores, kind="stable")[:depth]  # candidates ascend
            recalled.put(b, candidates[order], scores[order])
        return recalled

    def _user_rows(self, encoded: EncodedBatch) -> np.ndarray:
        """Return the rows (B, D) of the queries' users; (B, 0) for a network without rows."""
        if self._users is None or self._known is None:
            return np.zeros((len(encoded), 0), dtype=np.float32)
        rows: np.ndarray = self._users[self._known.ids.lookup(encoded.states.users, len(encoded))]
        return rows


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
    """Open an ONNX graph for a number of threads.

    Raises:
        BundleError: onnxruntime cannot load it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a waiting thread leaves its core
    try:
        return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - onnxruntime has no common class of errors
        cause = f"{type(error).__name__}: {error}"[:300]
        raise BundleError(
            "graph", f"{len(graph):,} bytes", f"an ONNX graph that loads ({cause})", "recloop update --full"
        ) from None


def make_sources(bundle: Bundle, threads: int = 1) -> dict[str, Source]:
    """Return a bundle's scorers by source."""
    sources: dict[str, Source] = {}
    workspace = Workspace(len(bundle.items) + 1)
    for source, spec in bundle.scorers.items():
        if source == "popular":
            sources[source] = PopularSource(bundle, workspace)
        elif source == "history":
            sources[source] = HistorySource(bundle, spec.half_life, workspace)
        elif spec.kind == "neighbours":
            sources[source] = NeighbourSource(bundle, source, spec.recent, workspace)
        elif spec.kind == "due":
            sources[source] = BuyAgainSource(bundle, source, workspace)
        elif spec.kind == "rank":
            continue
        elif array_name(source, "user_vectors") in bundle.arrays:
            options = spec.config or {}
            sources[source] = FactorSource(bundle, source, options["l2"], options["unseen"])
        else:
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
    for b, (items, scores) in zip(owners.tolist(), search.best_each(users, owners, allowed, depth), strict=True):
        recalled.put(b, items, scores)
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


def scan_table(bundle: Bundle, name: str = "item_vectors") -> ScanTable:
    """Return the codes of an array of item vectors.

    All recommenders of the bundle share them, and so do other bundles with the same array.
    """
    table: ScanTable = bundle.shared(f"scan_table of {name}", lambda: _table_of(bundle.arrays[name]))
    return table


def _table_of(vectors: np.ndarray) -> ScanTable:
    """Return the table of an array, which a bundle keeps.

    A table keeps its array, so that the id of the array is unique.
    """
    table = SCAN_TABLES.get(id(vectors))
    if table is None:
        table = SCAN_TABLES[id(vectors)] = ScanTable.build(vectors)
    return table
