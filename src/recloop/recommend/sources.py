"""Scorers of a bundle: recall of each source for a batch of queries.

They use numpy and onnxruntime only. There are four kinds: ``vectors`` (a user graph or a user table over an item
table), ``neighbours`` (stored rows summed over the newest moments), ``counts`` (counts of the state, popular lists) and
``rank`` (scores for the items that other sources recalled).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import onnxruntime as ort
import scipy.sparse as sp

from recloop.bundle import Bundle
from recloop.errors import BundleError
from recloop.features.encode import EncodedBatch, window
from recloop.models.als import base_gram, confidence, solve_rows
from recloop.recommend.filters import CandidateMask
from recloop.recommend.top_k import DEPTH, TopK, best_dense, best_listed, best_sparse
from recloop.records import DAY

MAX_HALVINGS = 1000.0
"""Maximum age of an act in half-lives; its weight 2^-1000 is still above 0."""
INPUT_WEIGHT = 0.2
"""Weight in ``history`` of a moment with only inputs, relative to one with a target."""
WINDOWS_PER_RUN = 32
"""Windows per run of the user graph."""


class Source(Protocol):
    """Protocol of a source: recall the best items of each query after the filters."""

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        """Return (B, depth) items and scores, descending."""
        ...


class PopularSource:
    """Source ``popular``: one list for all users."""

    def __init__(self, bundle: Bundle) -> None:
        self._order = bundle.arrays["popular"]

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        return best_listed(self._order, len(encoded), allowed, depth)


class HistorySource:
    """Source ``history``: items of the user's history, weighted by age.

    A moment with the item as a target counts 1; a moment with it only as an input counts `INPUT_WEIGHT`. Age is measured
    at the user's newest moment. The order is the same as by the age now, and weights stay above 0.
    """

    def __init__(self, bundle: Bundle, half_life: float | None) -> None:
        self._size = len(bundle.items) + 1
        self._rank = popularity_rank(bundle.arrays["popular"])
        self._half_life = half_life

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        moment_query = np.repeat(np.arange(len(encoded)), np.diff(encoded.moment_offsets))
        newest = encoded.stamps[encoded.moment_offsets[1:][moment_query] - 1]
        moment_weights = age_weights(newest - encoded.stamps, self._half_life)
        row_weights = moment_weights[encoded.row_moment] * np.where(encoded.targets, 1.0, INPUT_WEIGHT)
        scores = sp.csr_array((row_weights, encoded.items, encoded.row_offsets), shape=(len(encoded), self._size))
        scores.sum_duplicates()
        mantissa, exponent = np.frexp(scores.data)  # scores equal in 24 bits tie at any magnitude, as in float32
        scores.data = np.ldexp(mantissa.astype(np.float32).astype(np.float64), exponent)
        return best_sparse(scores, allowed, self._rank, depth)


class CoVisitationSource:
    """Source ``neighbours``: the summed stored rows of the newest moments' items."""

    def __init__(self, bundle: Bundle, recent: tuple[float, ...]) -> None:
        size = len(bundle.items) + 1
        arrays = bundle.arrays
        self._rank = popularity_rank(arrays["popular"])
        self._recent = np.array(recent)
        self._rows = sp.csr_array(
            (arrays["neighbours.weights"].astype(np.float64), arrays["neighbours.ids"], arrays["neighbours.indptr"]),
            shape=(size, size),
        )

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        moment_query = np.repeat(np.arange(len(encoded)), np.diff(encoded.moment_offsets))
        age = encoded.moment_offsets[1:][moment_query] - 1 - np.arange(len(encoded.stamps))  # 0 = newest
        moment_weights = np.where(age < len(self._recent), self._recent[np.minimum(age, len(self._recent) - 1)], 0.0)
        row_weights = moment_weights[encoded.row_moment]
        is_recent = row_weights > 0
        history = sp.csr_array(
            (row_weights[is_recent], (encoded.row_query[is_recent], encoded.items[is_recent])),
            shape=(len(encoded), self._rows.shape[0]),
        )
        scores = sp.csr_array(history @ self._rows)
        scores.data = scores.data.astype(np.float32)
        return best_sparse(scores, allowed, self._rank, depth)


class EmbeddingSource:
    """Source ``model``: user-graph vectors over the item table; empty without history."""

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        self._items = bundle.arrays["item_vectors"]
        self._history = bundle.spec.history
        self._session = open_session(bundle.graphs["user.onnx"], threads)
        self._inputs = {node.name for node in self._session.get_inputs()}

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        owners, users = self.user_vectors(encoded)
        return best_dense(self._items, users, owners, len(encoded), allowed, depth)

    def user_vectors(self, encoded: EncodedBatch) -> tuple[np.ndarray, np.ndarray]:
        """Return the queries with a history, (b,), and their vectors, (b, D) float32.

        Windows of similar length run together, `WINDOWS_PER_RUN` at a time, for little padding and attention that fits the cache.
        """
        items, moments, mask = window(encoded, self._history).padded()
        lengths = mask.sum(axis=1)
        owners = np.flatnonzero(lengths)
        order = owners[np.argsort(lengths[owners], kind="stable")]
        vectors = np.zeros((len(encoded), self._items.shape[1]), dtype=np.float32)
        for start in range(0, len(order), WINDOWS_PER_RUN):
            rows = order[start : start + WINDOWS_PER_RUN]
            width = slice(0, lengths[rows[-1]])
            feeds = {
                "history": self._items[items[rows, width]],
                "moments": moments[rows, width],
                "mask": mask[rows, width],
                "context": encoded.context[rows].astype(np.int64),
            }
            vectors[rows] = self._session.run(None, {name: feeds[name] for name in self._inputs})[0]
        if not np.isfinite(vectors).all():
            raise BundleError(
                "user.onnx", "NaN or infinite", "finite user vectors", "recloop train, with a smaller train.lr"
            )
        return owners, vectors[owners]


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

    def best(self, encoded: EncodedBatch, allowed: CandidateMask, depth: int = DEPTH) -> TopK:
        owners, users = self.user_vectors(encoded)
        return best_dense(self._items, users, owners, len(encoded), allowed, depth)

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
        items, moments, mask = window(encoded, self._history).padded()
        recalled = TopK.empty(len(encoded), depth)
        for b in np.flatnonzero(mask.any(axis=1)).tolist():
            candidates = np.unique(np.concatenate([source[b] for source in source_items]))
            candidates = candidates[candidates > 0]
            if not len(candidates):
                continue
            width = slice(0, int(mask[b].sum()))
            feeds = {
                "history": self._items[items[b : b + 1, width]],
                "moments": moments[b : b + 1, width],
                "mask": mask[b : b + 1, width],
                "context": encoded.context[b : b + 1].astype(np.int64),
                "candidates": self._items[candidates][None],
            }
            scores = self._session.run(None, {name: feeds[name] for name in self._inputs})[0][0]
            if not np.isfinite(scores).all():
                raise BundleError(
                    "rank.onnx", "NaN or infinite", "finite scores", "recloop train, with a smaller train.lr"
                )
            order = np.lexsort((candidates, -scores))[: recalled.items.shape[1]]
            recalled.items[b, : len(order)], recalled.scores[b, : len(order)] = candidates[order], scores[order]
        return recalled


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
    for source, spec in bundle.scorers.items():
        if source == "popular":
            sources[source] = PopularSource(bundle)
        elif source == "history":
            sources[source] = HistorySource(bundle, spec.half_life)
        elif source == "neighbours":
            sources[source] = CoVisitationSource(bundle, spec.recent or ())
        elif bundle.users is not None:
            options = spec.config or {}
            sources[source] = FactorSource(bundle, options["l2"], options["unseen"])
        elif spec.kind != "rank":
            sources[source] = EmbeddingSource(bundle, threads)
    for source, spec in bundle.scorers.items():
        if spec.kind == "rank":
            sources[source] = RerankSource(bundle, {name: sources[name] for name in spec.of or ()}, threads)
    return sources


def popularity_rank(order: np.ndarray) -> np.ndarray:
    """Return the rank (N+1,) of each item in the popular list; row 0 is last."""
    rank = np.full(len(order) + 1, len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    return rank


def age_weights(age: np.ndarray, half_life: float | None) -> np.ndarray:
    """Return the weight (M,) float64 of each moment, above 0.

    ``age`` is in microseconds, ``half_life`` in days; None gives weight 1.
    """
    if half_life is None:
        return np.ones(len(age))
    halvings = np.minimum(np.maximum(age, 0) / (half_life * DAY), MAX_HALVINGS)
    return np.asarray(np.exp2(-halvings))
