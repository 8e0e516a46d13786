"""Recommender of serving, evaluation and verification: from states to lists.

The steps on a batch are encode, filter, recall, fuse and fill; a request is a batch of one. An answer is a function of
(bundle, state as of a seq, catalog as of that seq, now, query). This module reads no clock and draws no random numbers.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import polars as pl

from recloop.bundle import Bundle
from recloop.errors import UserError
from recloop.features.encode import EncodedBatch, digest, encode
from recloop.features.state import StateBatch
from recloop.policy import FOR_YOU, RRF, Placement
from recloop.recommend import similar_items
from recloop.recommend.attribute_columns import ColumnTypes, fixed_types
from recloop.recommend.availability import Availability
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import NO_IDS, NO_ITEMS, CandidateMask, candidate_mask, joined
from recloop.recommend.fusion import FusedTopK, fuse
from recloop.recommend.new_items import with_new_items
from recloop.recommend.partial import DEADLINE, RANKER, SOURCES, finite, is_fallback_only, working
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.ranker import Ranker, append_rest
from recloop.recommend.slots import SlotBuilder
from recloop.recommend.sources import make_sources
from recloop.recommend.top_k import DEPTH, TopK
from recloop.recommend.variants import Variants, one_per_group
from recloop.records import Query

LOGGER = logging.getLogger(__name__)
SCORE_TOLERANCE = 1e-5
"""Scores closer than this are equal; their items may change order."""


class Recommender:
    """Recommender of a bundle over a catalog.

    Args:
        threads: Threads of the user graph.
        with_availability: Leave out items that are unavailable, unpublished or expired at the time of a query. The present
            availability says nothing about earlier queries, so the evaluation does not.
    """

    def __init__(self, bundle: Bundle, catalog: Catalog, threads: int = 1, with_availability: bool = False) -> None:
        self.bundle = bundle
        self.catalog = catalog
        rules = bundle.policy.catalog
        self._availability = Availability(bundle.items.ids, rules) if with_availability else None
        self._variants = Variants(bundle.items.ids, rules.group)
        self.scorers = make_sources(bundle, threads)
        ranker = bundle.policy.ranker
        self.ranker = None if ranker is None else Ranker(bundle, ranker)
        self.slots = SlotBuilder(bundle, catalog, self._variants)

    def placement(self, name: str) -> Placement:
        """Return the settings of a placement; every bundle has `similar`.

        Raises:
            UserError: the bundle has no such placement.
        """
        placements = self.bundle.policy.placements
        if name not in placements and name == similar_items.LIST_KIND:
            return similar_items.PLACEMENT
        if name not in placements:
            raise UserError("placement", name, f"one of {', '.join(placements)}", "add [placement.NAME], then update")
        return placements[name]

    def settings_of(self, query: Query) -> Placement:
        """Return the placement of a query with the share of new items that it asks for.

        Raises:
            UserError: the bundle has no such placement.
        """
        placement = self.placement(query.placement)
        if query.min_new is None or placement.list != FOR_YOU:
            return placement
        return self.bundle.policy.with_new_items(placement, query.min_new, self.scorers)

    def normalize(self, query: Query) -> Query:
        """Normalize a query for its placement; only lists of similar items keep the item.

        Raises:
            UserError: the bundle has no such placement, the placement needs an item and the query has none, or the query
                asks for new items in another list than ``for_you``.
        """
        kind = self.placement(query.placement).list
        is_item_list = kind == similar_items.LIST_KIND
        if query.min_new and kind != FOR_YOU:
            expected = f"0, because the placement {query.placement} has a list {kind}"
            raise UserError("min_new", query.min_new, expected, "another placement, or no min_new")
        if is_item_list and not query.item_id:
            expected = f"an item id, required by the placement {query.placement}"
            raise UserError("item", "", expected, "?item=ID (--item ID), or another placement")
        return query if is_item_list or not query.item_id else msgspec.structs.replace(query, item_id="")

    def recommend(
        self,
        states: StateBatch,
        queries: Sequence[Query],
        with_inputs: bool = True,
        without: frozenset[str] = frozenset(),
    ) -> list[RankedList]:
        """Recommend a list for each query from the state at the same index of ``states``.

        Queries that share placement, n, filter, filter_seen and min_new are processed together. A ranker or source that
        fails, and a placement's own filter that cannot be evaluated, are left out and named in ``degraded``, and so are the
        parts ``without`` (`recloop.recommend.partial`).
        """
        if len(queries) == 1 or len({self._group(query) for query in queries}) == 1:
            return self._recommend_batch(states, queries, with_inputs, without)
        answers: dict[int, RankedList] = {}
        for b, query in enumerate(queries):
            answers[b] = self._recommend_batch(states.select(b), [query], with_inputs, without)[0]
        return [answers[b] for b in range(len(queries))]

    def _group(self, query: Query) -> tuple[str, int, str, bool | None, float | None, int]:
        """Return what the queries of a batch share."""
        unavailable = 0 if self._availability is None else self._availability.at(self.catalog, query.now).version
        return query.placement, query.n, query.filter, query.filter_seen, query.min_new, unavailable

    def _recommend_batch(
        self, states: StateBatch, queries: Sequence[Query], with_inputs: bool, without: frozenset[str]
    ) -> list[RankedList]:
        placement = self.settings_of(queries[0])
        encoded = self.encode(states, [query.now for query in queries])
        allowed = self.candidate_mask(encoded, queries, placement)
        k = queries[0].n or placement.n
        fused, missing = self._fuse_partly(encoded, allowed, queries, placement, k, without)
        degraded = (*allowed.degraded, *missing)
        answers = self.slots.assemble(encoded, allowed, fused, queries, placement)
        if with_inputs:
            return [
                msgspec.structs.replace(answer, inputs=self.inputs(encoded, allowed, b, fused), degraded=degraded)
                for b, answer in enumerate(answers)
            ]
        return [msgspec.structs.replace(answer, degraded=degraded) for answer in answers] if degraded else answers

    def _fuse_partly(
        self,
        encoded: EncodedBatch,
        allowed: CandidateMask,
        queries: Sequence[Query],
        placement: Placement,
        k: int,
        without: frozenset[str],
    ) -> tuple[FusedTopK, tuple[str, ...]]:
        """Return the fused lists of the parts that work, and the names of the others."""
        missing: tuple[str, ...] = ()
        if is_fallback_only(without):
            return FusedTopK.empty(len(queries), k), tuple(name for name in (SOURCES, DEADLINE) if name in without)
        if self.is_ranked(placement):
            try:
                if RANKER not in without and without.isdisjoint(self.scorers):
                    return finite(self.rank_sources(encoded, allowed, placement, k)), ()
            except Exception as error:  # noqa: BLE001 - the fusion answers instead of a failing ranker
                LOGGER.warning("the ranker of bundle %s failed: %s", self.bundle.id, type(error).__name__)
            missing = (RANKER,)
        try:
            if without.isdisjoint(self.scorers):
                return self.fuse_sources(encoded, allowed, queries, placement, k, with_ranker=False), missing
        except (UserError, pl.exceptions.PolarsError):  # of a filter
            raise
        except Exception as error:  # noqa: BLE001 - the working sources answer
            LOGGER.warning("a source of bundle %s failed: %s", self.bundle.id, type(error).__name__)
        is_item_list = placement.list == similar_items.LIST_KIND
        names = [] if is_item_list else [name for name in self.sources_of(placement, False) if name in self.scorers]
        recalled = working(lambda name: self.scorers[name].best(encoded, allowed, DEPTH), names, without)
        missing = (*missing, *(name for name in names if name not in recalled))
        if not recalled:
            return FusedTopK.empty(len(queries), k), (*missing, SOURCES)
        return self.fuse_recalled(recalled, encoded, placement, k), missing

    @property
    def field_types(self) -> Mapping[str, ColumnTypes]:
        """Types in which conditions read the fields of the bundle's items."""
        types: Mapping[str, ColumnTypes] = self.bundle.shared(
            "field_types", lambda: fixed_types(self.bundle.items.attributes)
        )
        return types

    def check_filter(self, text: str) -> None:
        """Check the condition of a query.

        Raises:
            UserError: it does not parse, or names an unknown field.
        """
        if text.strip():
            self.catalog.use_types(self.field_types)
            self.catalog.check(text, "filter")

    def warm_up(self, states: StateBatch, query: Query, snapshot: Catalog) -> None:
        """Make the mask of each placement and one list with it, before the first answer.

        The catalog belongs to the thread that answers; another thread uses a snapshot, which the catalog then adopts.
        """
        encoded = self.encode(states, [query.now])
        self.slots.similar.warm_up()
        snapshot.use_types(self.field_types)
        if self._availability is not None:
            self._availability.catch_up(snapshot)
        self._variants.codes(snapshot)
        for placement in self.bundle.policy.placements.values():
            text = joined((placement.filter, ""))
            try:
                mask = snapshot.mask(text, self.bundle.items.ids)
            except (UserError, pl.exceptions.PolarsError) as error:  # the lists name it in `degraded`
                LOGGER.warning("bundle %s answers without a filter: %s", self.bundle.id, error)
                continue
            if placement.list != similar_items.LIST_KIND:
                allowed = CandidateMask(mask, [NO_ITEMS], [NO_IDS], text)
                self.fuse_sources(encoded, allowed, [query], placement, placement.n)

    def encode(self, states: StateBatch, now: Sequence[int] | np.ndarray) -> EncodedBatch:
        """Encode the states for this bundle at each query's now."""
        return encode(self.bundle.spec, self.bundle.fields, self.bundle.items.ids, states, now)

    def candidate_mask(self, encoded: EncodedBatch, queries: Sequence[Query], placement: Placement) -> CandidateMask:
        """Return the allowed items of queries with this placement and one filter."""
        conditions = (placement.filter, queries[0].filter)
        if any(map(str.strip, conditions)):
            self.catalog.use_types(self.field_types)
        filter_seen = self.bundle.policy.filters_seen(placement, queries[0].filter_seen)
        if placement.list == similar_items.LIST_KIND:  # never recommend the query item itself
            queries = [msgspec.structs.replace(query, exclude=(*query.exclude, query.item_id)) for query in queries]
        allowed = candidate_mask(self.catalog, self.bundle.items.ids, encoded, queries, conditions, filter_seen)
        if self._availability is None:
            return allowed
        unavailable = self._availability.at(self.catalog, queries[0].now)
        if not unavailable.version:
            return allowed
        table = self._availability.mask(allowed.table, unavailable)
        return dataclasses.replace(allowed, table=table, unavailable=unavailable.ids)

    def is_ranked(self, placement: Placement) -> bool:
        """Return True if the ranker orders the lists of a placement."""
        return placement.ranked and self.ranker is not None

    def rank_sources(self, encoded: EncodedBatch, allowed: CandidateMask, placement: Placement, k: int) -> FusedTopK:
        """Return the best n of the ranker per query; the fusion fills free slots."""
        recalled = self.recall(
            encoded, allowed, self.sources_of(placement, ranked=True), self.depths_of(placement, ranked=True)
        )
        return self.rank_recalled(recalled, encoded, placement, k)

    def sources_of(self, placement: Placement, ranked: bool) -> list[str]:
        """Return the sources behind the lists of a placement."""
        sources = list(self.ranker.sources) if ranked and self.ranker is not None else _used(placement.weights)
        return [*dict.fromkeys([*sources, *_used({} if placement.new is None else placement.new.weights)])]

    def depths_of(self, placement: Placement, ranked: bool) -> dict[str, int]:
        """Return the items of each source that the lists of a placement read.

        A source of the ranker alone is read to the depth of the ranker; fusions read `DEPTH` items.
        """
        sources = self.sources_of(placement, ranked)
        depths = dict.fromkeys(sources, DEPTH)
        if ranked and self.ranker is not None:
            of_new = {} if placement.new is None else placement.new.weights
            fused = {*_used(placement.weights), *_used(of_new)}
            depths |= {source: depth for source, depth in self.ranker.depths.items() if source not in fused}
        return depths

    def rank_recalled(
        self, recalled: Mapping[str, TopK], encoded: EncodedBatch, placement: Placement, k: int
    ) -> FusedTopK:
        """Return the result of `rank_sources` for recalled lists."""
        assert self.ranker is not None
        groups = self._variants.codes(self.catalog)
        width = k if placement.new is None and groups is None else k + DEPTH
        ranked = one_per_group(self.ranker.rank(encoded, recalled, width), groups, width)
        if placement.new is not None:
            ranked = with_new_items(ranked, encoded, recalled, placement.new, k)
        if not ranked.items[:, -1].all():
            append_rest(ranked, self._fuse(recalled, placement.weights, k, placement.fusion_constant))
        return one_per_group(ranked, groups, k)

    def fuse_recalled(
        self, recalled: Mapping[str, TopK], encoded: EncodedBatch, placement: Placement, k: int
    ) -> FusedTopK:
        """Return the best n of the fusion of recalled lists per query."""
        if placement.new is None:
            return self._fuse(recalled, placement.weights, k, placement.fusion_constant)
        groups = self._variants.codes(self.catalog)
        width = k if groups is None else k + DEPTH
        fused = self._fuse(recalled, placement.weights, width, placement.fusion_constant)
        return one_per_group(with_new_items(fused, encoded, recalled, placement.new, k), groups, k)

    def _fuse(
        self, recalled: Mapping[str, TopK], weights: Mapping[str, float], k: int, constant: float = RRF
    ) -> FusedTopK:
        """Return the best n of a fusion, with one item of each group of variants."""
        groups = self._variants.codes(self.catalog)
        return one_per_group(fuse(recalled, weights, k if groups is None else k + DEPTH, constant), groups, k)

    def order(self, recalled: Mapping[str, TopK], encoded: EncodedBatch, placement: Placement, k: int) -> FusedTopK:
        """Return the best n of recalled lists per query, by ranker or fusion."""
        order = self.rank_recalled if self.is_ranked(placement) else self.fuse_recalled
        return order(recalled, encoded, placement, k)

    def fuse_sources(
        self,
        encoded: EncodedBatch,
        allowed: CandidateMask,
        queries: Sequence[Query],
        placement: Placement,
        k: int,
        with_ranker: bool = True,
    ) -> FusedTopK:
        """Return the best n of ranker or fusion per query, by state or by the query item."""
        if with_ranker and self.is_ranked(placement):
            return self.rank_sources(encoded, allowed, placement, k)
        weights = placement.weights
        if placement.list == "latest":
            return FusedTopK.empty(len(queries), k)
        if placement.list == similar_items.LIST_KIND:
            recalled = self.slots.similar.recall([query.item_id for query in queries], allowed, weights)
            return self._fuse(recalled, {source: weights.get(source) or 1.0 for source in recalled}, k)
        sources = self.sources_of(placement, ranked=False)
        recalled = self.recall(encoded, allowed, sources, self._depth(sources, placement, k))
        return self.fuse_recalled(recalled, encoded, placement, k)

    def _depth(self, sources: Sequence[str], placement: Placement, k: int) -> int:
        """Return the items of a source that a list of ``k`` needs.

        The list of a single source begins with its first items.
        """
        is_single = len(sources) == 1 and placement.new is None and self._variants.codes(self.catalog) is None
        return min(k, DEPTH) if is_single and not self._is_reranking(sources[0]) else DEPTH

    def _is_reranking(self, source: str) -> bool:
        scorer = self.bundle.scorers.get(source)
        return scorer is not None and scorer.kind == "rank"

    def recall(
        self,
        encoded: EncodedBatch,
        allowed: CandidateMask,
        sources: Sequence[str] | Mapping[str, float],
        depth: int | Mapping[str, int] = DEPTH,
    ) -> dict[str, TopK]:
        """Return the top ``depth`` of each source, of a mapping those above 0; NaN raises.

        ``depth`` may differ between the sources. It is `DEPTH` with a reranking source, which reads the others.
        """
        selected = _used(sources) if isinstance(sources, Mapping) else sources
        depths = depth if isinstance(depth, Mapping) else dict.fromkeys([*selected, "popular"], depth)
        if isinstance(depth, Mapping) and any(map(self._is_reranking, self.bundle.scorers)):
            depths = dict.fromkeys(self.bundle.scorers, DEPTH)
        recalled = {
            source: self.scorers[source].best(encoded, allowed, depths[source])
            for source in selected
            if source in self.scorers
        }
        if any(math.isnan(np.vdot(top_k.scores, top_k.scores)) for top_k in recalled.values()):
            raise FloatingPointError("a source gave scores that are not numbers")
        return recalled or {"popular": self.scorers["popular"].best(encoded, allowed, depths.get("popular", DEPTH))}

    def inputs(
        self, encoded: EncodedBatch, allowed: CandidateMask, b: int, fused: FusedTopK | None = None
    ) -> dict[str, str]:
        """Return 8 hex per input: state, catalog, now, filters, then each feature.

        ``ranker`` is the digest of the ranker's features of the listed items.
        """
        ranker = {} if fused is None or not fused.features else {RANKER: digest(fused.features[b].tobytes())}
        return {
            "state": encoded.states.digest(b),
            "catalogue": self.catalog.version,
            "now": digest(int(encoded.now[b]).to_bytes(8, "little", signed=True)),
            "filters": allowed.input(b),
            **encoded.inputs(b),
            **ranker,
        }


def _used(weights: Mapping[str, float]) -> list[str]:
    """Return the sources with a weight above 0."""
    return [source for source, weight in weights.items() if weight > 0]
