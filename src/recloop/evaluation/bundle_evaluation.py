"""Evaluation of one bundle: the lists of its rows, and their metrics."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recloop.bundle import Bundle
from recloop.config import LEAVE_ONE_OUT, Config
from recloop.errors import UserError
from recloop.evaluation import metrics
from recloop.evaluation.cold_items import ColdItemsEvaluation, ColdItemsResult
from recloop.evaluation.given_candidates import GivenCandidates
from recloop.evaluation.leave_one_out import TargetRanks
from recloop.evaluation.lists import ListRecommender
from recloop.evaluation.new_items import NewItemsEvaluation, NewItemsResult
from recloop.evaluation.queries import Queries
from recloop.evaluation.table_rows import SLICES, QueryMetrics, TrainingNote
from recloop.features.encode import EncodedBatch
from recloop.features.state import StateBatch
from recloop.models.base import SOURCE_OF
from recloop.policy import RRF
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import CandidateMask
from recloop.recommend.fusion import fuse
from recloop.recommend.ranker import Ranker
from recloop.recommend.top_k import DEPTH, TopK
from recloop.records import FUSED_SOURCES

SINGLE_SOURCE_FALLBACK = ("popular",)
"""Fallback order of a single-source row: its list, then Popular (docs/definitions/ranking-metrics.md)."""
RowKind = Literal["baseline", "network", "served"]


@dataclass
class _EvaluatedRow:
    """Row of the table while its lists are collected: a single source or served lists.

    Attributes:
        fallback: Stages that fill free slots; None: those of the bundle.
        lists: (Q, K) item_ix; items outside the table have numbers after its end.
        ranks: Ranks of the targets under leave-one-out; None under another protocol.
        ranker: Ranker that orders the lists; None for the fusion.
        further: Sources of further new items.
        seconds: Time spent on the lists by one thread.
    """

    name: str
    kind: RowKind
    weights: Mapping[str, float]
    fallback: Sequence[str] | None
    fusion_constant: float
    lists: NDArray[np.int64]
    ranks: TargetRanks | None
    ranker: Ranker | None = None
    further: Collection[str] = ()
    seconds: float = 0.0

    def uses(self, source: str) -> bool:
        """Return True if the lists depend on a source."""
        if self.ranker is not None and source in self.ranker.sources:
            return True
        return self.weights.get(source, 0.0) > 0 or source in self.further

    def values(
        self, k: int, mask: NDArray[np.bool_], targets: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> Mapping[str, NDArray[np.float64]]:
        """(Q,) each metric at k over the targets of one slice.

        The slice is given as a mask and as the kept targets.
        """
        if self.ranks is not None:
            return self.ranks.values(k, mask)
        return metrics.ranking(self.lists, targets, offsets, k)


class BundleEvaluation:
    """Bundle under test and its rows."""

    def __init__(
        self,
        bundle: Bundle,
        catalog: Catalog,
        config: Config,
        queries: Queries,
        with_baselines: bool,
        candidates: pl.DataFrame | None = None,
    ) -> None:
        _finite(bundle)
        self.bundle = bundle
        self.queries = queries
        self.ks = list(config.evaluate.k)
        placement = bundle.default_placement
        self.placement = placement
        self.lists = ListRecommender(bundle, catalog, placement, max(self.ks))
        self.recommender = self.lists.recommender
        network = {"model": bundle.manifest.model.name} if "model" in self.recommender.scorers else {}
        sources = [SOURCE_OF[model] for model in config.evaluate.baselines] if with_baselines else []
        sources += sorted(set(bundle.scorers) - set(FUSED_SOURCES))
        names = {source: bundle.scorers[source].model for source in sources}
        self.names = {source: name for source, name in (names | network).items() if source in self.recommender.scorers}
        settings = self.lists.settings
        served = settings.weights
        new = bundle.policy.new_items(settings)
        self.new_items = None if new is None else NewItemsEvaluation(self.lists, queries, new.share, self.ks[0])
        self.cold_items: ColdItemsEvaluation | None = None
        if settings.cold_share > 0 or settings.cold_own > 0:
            self.cold_items = ColdItemsEvaluation(self.lists, queries, self.ks[0])
        ranker = self.recommender.ranker if self.recommender.is_ranked(settings) else None
        used = (source for source, weight in served.items() if weight > 0)
        self.sources = sorted({*self.names, *used, *self.recommender.sources_of(settings, ranker is not None)})
        self.one_target = config.split.protocol == LEAVE_ONE_OUT
        self.given = None if candidates is None else GivenCandidates.from_frame(candidates, queries, bundle.items.ids)
        self.depth = DEPTH if self.one_target else max(self.ks)
        self.evaluated = [
            self._row(name, "network" if source == "model" else "baseline", {source: 1.0}, SINGLE_SOURCE_FALLBACK, RRF)
            for source, name in self.names.items()
        ]
        if ranker is not None:
            self.evaluated.append(self._row("fusion", "served", served, None, settings.fusion_constant))
        row = self._row("served", "served", served, None, settings.fusion_constant, ranker)
        row.further = () if new is None else [source for source, weight in new.weights.items() if weight > 0]
        self.evaluated.append(row)
        read = self.recommender.depths_of(settings, ranker is not None)
        fused = {source for row in self.evaluated[len(self.names) :] for source, one in row.weights.items() if one > 0}
        self.depths = {
            source: DEPTH if source in fused else max(self.depth, read.get(source, 0)) for source in self.sources
        }
        self._threads = [self.evaluated]  # the rows of each thread, which share their lists

    def for_thread(self) -> BundleEvaluation:
        """Return an evaluation for another thread that writes into the same lists."""
        other = copy.copy(self)
        other.lists = self.lists.for_thread()
        other.recommender = other.lists.recommender
        other.evaluated = [replace(row, seconds=0.0) for row in self.evaluated]
        self._threads.append(other.evaluated)
        return other

    def _row(
        self,
        name: str,
        kind: RowKind,
        weights: Mapping[str, float],
        fallback: Sequence[str] | None,
        fusion_constant: float,
        ranker: Ranker | None = None,
    ) -> _EvaluatedRow:
        ranks = TargetRanks.empty(len(self.queries)) if self.one_target else None
        lists = np.zeros((len(self.queries), max(self.ks)), dtype=np.int64)
        return _EvaluatedRow(name, kind, weights, fallback, fusion_constant, lists, ranks, ranker)

    def ask(self, states: StateBatch, span: slice) -> None:
        """Answer these queries for every row."""
        clock = _Clock()
        encoded, allowed = self.lists.encode(states, self.queries.now[span])
        if self.given is not None:
            allowed = self.given.restrict(allowed, span)
        shared = clock.lap()
        recalled: dict[str, TopK] = {}
        recall_seconds: dict[str, float] = {}
        for source in self.sources:
            recalled |= self.recommender.recall(encoded, allowed, [source], self.depths)
            recall_seconds[source] = clock.lap()
        if "model" in recalled:
            _scored(self.bundle, encoded, allowed, recalled["model"])
        for row in self.evaluated:
            row_sources = {source: top_k for source, top_k in recalled.items() if row.uses(source)}
            if row is self.served:
                fused = self.recommender.order(recalled, encoded, self.lists.settings, self.depth)
            else:
                fused = fuse(row_sources or recalled, row.weights, self.depth, row.fusion_constant)
            row.lists[span] = self.lists.lists(encoded, allowed, fused, row.fallback).items
            if row.ranks is not None:
                scored = recalled["model"] if row.kind == "network" else fused
                targets = self.lists.numbers(self.queries.targets[span])
                row.ranks.record(span, targets, scored, row.lists[span], row.kind == "baseline")
            row.seconds += shared + sum(recall_seconds[source] for source in row_sources) + clock.lap()
        if self.cold_items is not None:
            self.cold_items.ask(self.lists, encoded, allowed, fused, span)
        if self.new_items is not None:
            self.new_items.ask(self.lists, recalled, encoded, allowed, self.served.lists[span], span)

    @property
    def served(self) -> _EvaluatedRow:
        """Row of the lists as served."""
        return self.evaluated[-1]

    def new_items_result(self, repeat: NDArray[np.bool_], seed: int) -> NewItemsResult | None:
        """Return the cost of `min_new`; None for a placement without it."""
        return None if self.new_items is None else self.new_items.result(self.lists, self.served.lists, repeat, seed)

    def rows(self, repeat: NDArray[np.bool_]) -> list[QueryMetrics]:
        """Return the rows of this bundle: every value of every query, by slice."""
        numbers = self.lists.numbers(self.queries.targets)
        is_warm = (numbers > 0) & (numbers <= len(self.bundle.items))
        everything = np.ones(len(numbers), dtype=bool)
        masks = {"all": everything, "warm": is_warm, "cold": ~is_warm, "repeat": repeat, "explore": ~repeat}
        slices = {name: metrics.keep_targets(numbers, self.queries.offsets, masks[name]) for name in SLICES}
        tail = np.concatenate([[False], self.bundle.items.tail, np.ones(self.lists.n_beyond, dtype=bool)])
        table_rows = []
        for number, row in enumerate(self.evaluated):
            values = {
                (slice_name, f"{metric}@{k}"): value
                for slice_name, (targets, offsets) in slices.items()
                for k in self.ks
                for metric, value in row.values(k, masks[slice_name], targets, offsets).items()
            }
            counts = np.bincount(row.lists[:, : self.ks[0]].ravel(), minlength=len(tail))
            counts[0] = 0
            table_rows.append(
                QueryMetrics(
                    model=row.name,
                    bundle=self.bundle.id,
                    kind=row.kind,
                    values=values,
                    coverage=metrics.coverage(counts, len(self.bundle.items)),
                    entropy=metrics.entropy(counts, len(self.bundle.items)),
                    long_tail_share=metrics.long_tail_share(counts, tail),
                    seconds=sum(rows[number].seconds for rows in self._threads),
                    trained=self._trained(row),
                )
            )
        return table_rows

    def _trained(self, row: _EvaluatedRow) -> TrainingNote | None:
        """Training of the network behind a row; None for other rows."""
        return TrainingNote.from_training(self.bundle.manifest.train) if row.uses("model") else None

    def cold_items_result(self, seed: int) -> ColdItemsResult | None:
        """Return cost and gain of slots for cold items; None for a placement without them."""
        return None if self.cold_items is None else self.cold_items.result(self.lists, self.served.lists, seed)


class _Clock:
    """Timer of laps in seconds."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self) -> float:
        before, self._last = self._last, time.perf_counter()
        return self._last - before


def _finite(bundle: Bundle) -> None:
    for name, array in bundle.arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UserError(
                f"array {name}", "NaN or infinite", "finite numbers", "recloop train, with a smaller train.lr"
            )


def _scored(bundle: Bundle, encoded: EncodedBatch, allowed: CandidateMask, top_k: TopK) -> None:
    """Reject a network with NaN scores for a user with a history."""
    has_history = np.diff(encoded.row_offsets) > 0
    n_allowed = int(allowed.mask.sum())
    has_history &= np.array([len(banned) < n_allowed for banned in allowed.banned])
    if np.isnan(top_k.scores).any() or (has_history & (top_k.items[:, 0] == 0)).any():
        raise UserError(
            "scores", "NaN", f"a number for every item from {bundle.manifest.model.name}",
            "recloop train, with a smaller train.lr",
        )  # fmt: skip
