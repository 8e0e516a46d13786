"""Recommender of serving, evaluation and verification: from states to lists.

The steps on a batch are encode, filter, recall, fuse and fill; a request is a batch of one. An answer is a function of
(bundle, state as of a seq, catalog as of that seq, now, query). This module reads no clock and draws no random numbers.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec
import numpy as np
import polars as pl

from recloop.bundle import Bundle
from recloop.errors import UserError
from recloop.features.attribute_affinity import AttributeAffinity
from recloop.features.encode import EncodedBatch, digest, encode
from recloop.features.state import StateBatch
from recloop.policy import AGAIN, Placement
from recloop.recommend import similar_items
from recloop.recommend.attribute_columns import ColumnTypes, fixed_types
from recloop.recommend.attribute_lists import AttributeLists
from recloop.recommend.attribute_towers import AttributeTowers
from recloop.recommend.catalog import Catalog
from recloop.recommend.fallback import (
    AttributeRanking,
    AttributesStage,
    FallbackQuery,
    FallbackStage,
    LatestStage,
    PopularStage,
    SegmentStage,
    fill_fallback,
)
from recloop.recommend.filters import NO_IDS, NO_ITEMS, CandidateMask, candidate_mask, joined
from recloop.recommend.fusion import FusedTopK, fuse
from recloop.recommend.new_items import with_new_items
from recloop.recommend.partial import DEADLINE, RANKER, SOURCES, finite, is_fallback_only, working
from recloop.recommend.ranker import Ranker, append_rest
from recloop.recommend.sources import make_sources
from recloop.recommend.top_k import DEPTH, TopK
from recloop.records import Query, Slot

LOGGER = logging.getLogger(__name__)
COLD_SOURCE = "attributes"
"""Source of the slots of `Placement.cold_share`."""
LIST_STAGES: Mapping[str, tuple[str, ...]] = {"latest": ("latest",), AGAIN: ()}
"""Stages that fill free slots by kind of list; others have those of the policy."""
SCORE_TOLERANCE = 1e-5
"""Scores closer than this are equal; their items may change order."""


@dataclass(frozen=True)
class RankedList:
    """Ranked list; ``inputs`` holds 8 hex per named input, in the order of comparison."""

    slots: list[Slot]
    inputs: dict[str, str]
    positives: int
    n: int = 0  # maximum length, from the query or the placement
    empty_reason: str = ""  # cause of a list without slots
    degraded: tuple[str, ...] = ()  # parts that failed: ``filter`` and those of `recloop.recommend.partial`

    @property
    def items(self) -> list[str]:
        return [slot.item_id for slot in self.slots]

    @property
    def scores(self) -> list[float]:
        return [slot.score for slot in self.slots]

    @property
    def sources(self) -> list[str]:
        return [slot.source for slot in self.slots]


class Recommender:
    """Recommender of a bundle over a catalog; the user graph uses ``threads``."""

    def __init__(self, bundle: Bundle, catalog: Catalog, threads: int = 1) -> None:
        self.bundle = bundle
        self.catalog = catalog
        self.scorers = make_sources(bundle, threads)
        self.towers = AttributeTowers(bundle) if "item.onnx" in bundle.graphs else None
        affinity = None if self.towers is not None else AttributeAffinity.from_arrays(bundle.arrays)
        self.attribute_lists = None if affinity is None else AttributeLists(bundle, affinity)
        self._by_attributes: AttributeRanking | None = self.attribute_lists or self.towers
        ranker = bundle.policy.ranker
        self.ranker = None if ranker is None else Ranker(bundle, ranker)
        self._similar = similar_items.SimilarItems(bundle, self.towers)
        self._stages: dict[str, FallbackStage] = {
            "attributes": AttributesStage(catalog, self._by_attributes, self._similar),
            "segment": SegmentStage(bundle),
            "popular": PopularStage(bundle),
            "latest": LatestStage(bundle, catalog),
        }

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

    def normalize(self, query: Query) -> Query:
        """Normalize a query for its placement; only lists of similar items keep the item.

        Raises:
            UserError: the bundle has no such placement, or the placement needs an item and the query has none.
        """
        is_item_list = self.placement(query.placement).list == similar_items.LIST_KIND
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

        Queries that share placement, n, filter and filter_seen are processed together. A ranker or source that fails, and
        a placement's own filter that cannot be evaluated, are left out and named in ``degraded``, and so are the parts
        ``without`` (`recloop.recommend.partial`).
        """
        if len(queries) == 1 or len({_group(query) for query in queries}) == 1:
            return self._recommend_batch(states, queries, with_inputs, without)
        answers: dict[int, RankedList] = {}
        for b, query in enumerate(queries):
            answers[b] = self._recommend_batch(states.select(b), [query], with_inputs, without)[0]
        return [answers[b] for b in range(len(queries))]

    def _recommend_batch(
        self, states: StateBatch, queries: Sequence[Query], with_inputs: bool, without: frozenset[str]
    ) -> list[RankedList]:
        placement = self.placement(queries[0].placement)
        encoded = self.encode(states, [query.now for query in queries])
        allowed = self.candidate_mask(encoded, queries, placement)
        k = queries[0].n or placement.n
        fused, missing = self._fuse_partly(encoded, allowed, queries, placement, k, without)
        degraded = (*allowed.degraded, *missing)
        answers = self.assemble(encoded, allowed, fused, queries, placement)
        if not with_inputs:
            return [dataclasses.replace(answer, degraded=degraded) for answer in answers] if degraded else answers
        return [
            RankedList(
                answer.slots, self.inputs(encoded, allowed, b, fused), answer.positives, answer.n, answer.empty_reason,
                degraded,
            )
            for b, answer in enumerate(answers)
        ]  # fmt: skip

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
                if RANKER not in without:
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
        self._similar.warm_up()
        snapshot.use_types(self.field_types)
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
        return candidate_mask(self.catalog, self.bundle.items.ids, encoded, queries, conditions, filter_seen)

    def is_ranked(self, placement: Placement) -> bool:
        """Return True if the ranker orders the lists of a placement."""
        return placement.ranked and self.ranker is not None

    def rank_sources(self, encoded: EncodedBatch, allowed: CandidateMask, placement: Placement, k: int) -> FusedTopK:
        """Return the best n of the ranker per query; the fusion fills free slots."""
        return self.rank_recalled(
            self.recall(encoded, allowed, self.sources_of(placement, ranked=True)), encoded, placement, k
        )

    def sources_of(self, placement: Placement, ranked: bool) -> list[str]:
        """Return the sources behind the lists of a placement."""
        sources = list(self.ranker.sources) if ranked and self.ranker is not None else _used(placement.weights)
        return [*dict.fromkeys([*sources, *_used({} if placement.new is None else placement.new.weights)])]

    def rank_recalled(
        self, recalled: Mapping[str, TopK], encoded: EncodedBatch, placement: Placement, k: int
    ) -> FusedTopK:
        """Return the result of `rank_sources` for recalled lists."""
        assert self.ranker is not None
        ranked = self.ranker.rank(encoded, recalled, k if placement.new is None else k + DEPTH)
        if placement.new is not None:
            ranked = with_new_items(ranked, encoded, recalled, placement.new, k)
        if not ranked.items[:, -1].all():
            append_rest(ranked, fuse(recalled, placement.weights, k, placement.fusion_constant))
        return ranked

    def fuse_recalled(
        self, recalled: Mapping[str, TopK], encoded: EncodedBatch, placement: Placement, k: int
    ) -> FusedTopK:
        """Return the best n of the fusion of recalled lists per query."""
        fused = fuse(recalled, placement.weights, k, placement.fusion_constant)
        return fused if placement.new is None else with_new_items(fused, encoded, recalled, placement.new, k)

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
            recalled = self._similar.recall([query.item_id for query in queries], allowed, weights)
            return fuse(recalled, {source: weights.get(source) or 1.0 for source in recalled}, k)
        recalled = self.recall(encoded, allowed, self.sources_of(placement, ranked=False))
        return self.fuse_recalled(recalled, encoded, placement, k)

    def recall(
        self,
        encoded: EncodedBatch,
        allowed: CandidateMask,
        sources: Sequence[str] | Mapping[str, float],
        depth: int = DEPTH,
    ) -> dict[str, TopK]:
        """Return the top ``depth`` of each source, of a mapping those above 0; NaN raises."""
        selected = _used(sources) if isinstance(sources, Mapping) else sources
        recalled = {
            source: self.scorers[source].best(encoded, allowed, depth) for source in selected if source in self.scorers
        }
        if any(np.isnan(top_k.scores).any() for top_k in recalled.values()):
            raise FloatingPointError("a source gave scores that are not numbers")
        return recalled or {"popular": self.scorers["popular"].best(encoded, allowed, depth)}

    def assemble(
        self,
        encoded: EncodedBatch,
        allowed: CandidateMask,
        fused: FusedTopK,
        queries: Sequence[Query],
        placement: Placement,
        stage_names: Sequence[str] | None = None,
    ) -> list[RankedList]:
        """Build the slots: fused items, then fallback and cold items.

        The latter have the scores -1, -2, ...
        """
        ids = self.bundle.items.ids.ids
        answers = []
        for b, query in enumerate(queries):
            k = query.n or placement.n
            n_found = int(np.count_nonzero(fused.items[b, :k]))
            if stage_names is None and self.is_cold(encoded, b, placement):
                n_found = 0
            cold = self.cold_items(encoded, allowed, b, placement, k) if stage_names is None else []
            k_warm = k - len(cold)
            n_found = min(n_found, k_warm)
            slots = [
                Slot(ids[item_ix - 1], score, fused.names[source])
                for item_ix, score, source in zip(
                    fused.items[b, :n_found].tolist(),
                    fused.scores[b, :n_found].tolist(),
                    fused.sources[b, :n_found].tolist(),
                    strict=True,
                )
            ]
            more = []
            if n_found < k_warm:
                used = [*(slot.item_id for slot in slots), *cold]
                more = self.fallback(encoded, allowed, b, query, placement, used, k_warm - n_found, stage_names)
            more += [(item_id, COLD_SOURCE) for item_id in cold]
            slots += [Slot(item_id, -float(n), source) for n, (item_id, source) in enumerate(more, start=1)]
            empty_reason = "" if slots else self._empty_reason(allowed, b)
            answers.append(RankedList(slots, {}, int(encoded.states.positives[b]), k, empty_reason))
        return answers

    def cold_items(
        self, encoded: EncodedBatch, allowed: CandidateMask, b: int, placement: Placement, k: int
    ) -> list[str]:
        """Return the items without a row that end the list of query b.

        They are at most the placement's share.
        """
        n_slots = placement.cold_slots(k)
        if not n_slots or self._by_attributes is None:
            return []
        banned_ids = allowed.banned_ids[b]
        ranking = self._by_attributes.cold_items(self.catalog, encoded, allowed, b)
        return [*islice((item_id for item_id in ranking if item_id not in banned_ids), n_slots)]

    def is_cold(self, encoded: EncodedBatch, b: int, placement: Placement) -> bool:
        """Return True if the attribute list replaces the fused list.

        The query has no history and its user has a field with an affinity. A placement with Popular as its only source keeps it.
        """
        if (
            self.attribute_lists is None
            or placement.list != "for_you"
            or "attributes" not in self.bundle.policy.fallback
        ):
            return False
        is_personal = any(weight > 0 for source, weight in placement.weights.items() if source != "popular")
        return is_personal and self.attribute_lists.is_first(encoded, b)

    def fallback(
        self,
        encoded: EncodedBatch,
        allowed: CandidateMask,
        b: int,
        query: Query,
        placement: Placement,
        used_ids: Sequence[str],
        n_free: int,
        stage_names: Sequence[str] | None = None,
    ) -> list[tuple[str, str]]:
        """Return (item_id, source) of the free slots of query b.

        ``stage_names``: stages of the fallback; None: those of the placement.
        """
        if stage_names is None:
            stage_names = LIST_STAGES.get(placement.list, self.bundle.policy.fallback)
        stages = [(name, self._stages[name]) for name in stage_names]
        return fill_fallback(
            stages, FallbackQuery(encoded, allowed, b, query.item_id, placement.list), used_ids, n_free
        )

    def _empty_reason(self, allowed: CandidateMask, b: int) -> str:
        """Name the cause of an empty list: the filter, the excluded items or the sources."""
        outside = self.catalog.latest(allowed.text, self.bundle.items.ids)
        newest = next(outside, None)
        if newest is None and not allowed.n_allowed:
            return f"no shown item passes the filter {allowed.text}" if allowed.text else "all items are hidden"
        banned_ids = allowed.banned_ids[b]
        has_outside = newest is not None and (newest not in banned_ids or any(i not in banned_ids for i in outside))
        if np.count_nonzero(allowed.mask[allowed.banned[b]]) == allowed.n_allowed and not has_outside:
            return "every remaining item is excluded: seen, disliked or in exclude"
        return "the placement has no source for the remaining items"

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


def _group(query: Query) -> tuple[str, int, str, bool | None]:
    """Return what the queries of a batch share."""
    return query.placement, query.n, query.filter, query.filter_seen
