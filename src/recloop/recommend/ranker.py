"""Ranker: the second stage, which orders the items that the sources recall."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from recloop.bundle import RANKER_GRAPH, Bundle
from recloop.errors import BundleError
from recloop.features.encode import EncodedBatch
from recloop.features.item_statistics import ItemStatistics
from recloop.features.ranking import Candidates, FeatureSpace
from recloop.features.user_profile import MISSING
from recloop.policy import RankerSpec
from recloop.recommend.fusion import FusedTopK
from recloop.recommend.sources import open_session
from recloop.recommend.top_k import TopK
from recloop.records import FUSED_SOURCES


class Ranker:
    """Trees of a bundle over the features of the recalled items."""

    def __init__(self, bundle: Bundle, spec: RankerSpec) -> None:
        self.sources = tuple(spec.depths)
        self._depths = spec.depths
        self._space = feature_space(bundle, spec)
        self._session = open_session(bundle.graphs[RANKER_GRAPH])  # one thread: the rows of a query are few
        self._key = ("ranker", bundle.items.ids.serial, bundle.cut)

    def rank(self, encoded: EncodedBatch, recalled: Mapping[str, TopK], k: int) -> FusedTopK:
        """Return the best ``k`` candidates of each query by score.

        A score is the logistic function of the sum of the leaves; ties are ordered by item_ix. The source of a slot is the
        one with its best rank.

        Args:
            recalled: Lists of the ranker's sources.
        """
        ranked = FusedTopK.empty(len(encoded), k)
        features: list[np.ndarray] = []
        for b in range(len(encoded)):
            candidates = candidates_of(recalled, self._depths, b)
            if not len(candidates.items):
                features.append(np.zeros((0, len(self._space.names)), dtype=np.float32))
                continue
            matrix = self._space.matrix(encoded, b, candidates, self._key)
            scores = self._session.run(None, {"features": matrix})[0][:, 0]
            if not np.isfinite(scores).all():
                raise BundleError(RANKER_GRAPH, "NaN or infinite", "finite scores", "recloop train")
            order = np.argsort(-scores, kind="stable")[:k]
            n_items = len(order)
            ranked.items[b, :n_items] = candidates.items[order]
            ranked.scores[b, :n_items] = 1.0 / (1.0 + np.exp(-scores[order].astype(np.float64)))
            ranked.sources[b, :n_items] = self._best_sources(candidates.ranks[:, order])
            features.append(matrix[order])
        return FusedTopK(ranked.items, ranked.scores, ranked.sources, features)

    def _best_sources(self, ranks: np.ndarray) -> np.ndarray:
        """Return the number (n,) of the source with the best rank of each item."""
        best = np.where(ranks == MISSING, np.inf, ranks).argmin(axis=0)
        numbers = np.array([FUSED_SOURCES.index(source) for source in self.sources], dtype=np.int8)
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


def candidates_of(recalled: Mapping[str, TopK], depths: Mapping[str, int], b: int) -> Candidates:
    """Return the union of the first items of each source for query b."""
    lists: list[np.ndarray] = []
    for source, depth in depths.items():
        items = recalled[source].items[b, :depth]
        lists.append(items[: np.count_nonzero(items)])
    items = np.unique(np.concatenate(lists))
    ranks = np.full((len(lists), len(items)), MISSING, dtype=np.float32)
    scores = np.zeros((len(lists), len(items)), dtype=np.float32)
    for number, (source, listed) in enumerate(zip(depths, lists, strict=True)):
        position = np.searchsorted(items, listed)
        ranks[number, position] = np.arange(len(listed))
        scores[number, position] = recalled[source].scores[b, : len(listed)]
    return Candidates(items, ranks, scores)


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
