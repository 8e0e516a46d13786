"""Slots of a list: fused items, then fallback and items without a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, islice

import numpy as np

from recloop import jit
from recloop.bundle import Bundle
from recloop.features.attribute_affinity import AttributeAffinity
from recloop.features.encode import EncodedBatch
from recloop.policy import AGAIN, Placement
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
from recloop.recommend.filters import CandidateMask
from recloop.recommend.fusion import FusedTopK
from recloop.recommend.own_cold_items import own_cold_items
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.similar_items import SimilarItems
from recloop.recommend.variants import Variants
from recloop.records import Query, Slot

COLD_SOURCE = "attributes"
"""Source of the slots of `Placement.cold_share`."""
OWN_COLD_SOURCE = "history"
"""Source of the slots of `Placement.cold_own`."""
LIST_STAGES: Mapping[str, tuple[str, ...]] = {"latest": ("latest",), AGAIN: ()}
"""Stages that fill free slots by kind of list; others have those of the policy."""


class SlotBuilder:
    """Builds the slots of a bundle's lists; belongs to one thread."""

    def __init__(self, bundle: Bundle, catalog: Catalog, variants: Variants) -> None:
        self._bundle = bundle
        self._catalog = catalog
        self._variants = variants
        self.towers = AttributeTowers(bundle) if "item.onnx" in bundle.graphs else None
        affinity = None if self.towers is not None else AttributeAffinity.from_arrays(bundle.arrays)
        self._attribute_lists = None if affinity is None else AttributeLists(bundle, affinity)
        self._by_attributes: AttributeRanking | None = self._attribute_lists or self.towers
        self.similar = SimilarItems(bundle, self.towers)
        self._stages: dict[str, FallbackStage] = {
            "attributes": AttributesStage(catalog, self._by_attributes, self.similar),
            "segment": SegmentStage(bundle),
            "popular": PopularStage(bundle),
            "latest": LatestStage(bundle, catalog),
        }

    def warm_up(self) -> None:
        """Make what the first lists need: compiled loops, and the tables of a cold user."""
        jit.compile_all()
        if self._attribute_lists is not None:
            self._attribute_lists.warm_up()

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
        ids = self._bundle.items.ids.ids
        answers = []
        for b, query in enumerate(queries):
            k = query.n or placement.n
            n_found = int(np.count_nonzero(fused.items[b, :k]))
            if stage_names is None and self.is_cold(encoded, b, placement):
                n_found = 0
            cold = self.cold_items(encoded, allowed, b, placement, k) if stage_names is None else []
            if cold:
                fused_ids = [ids[item_ix - 1] for item_ix in fused.items[b, :n_found].tolist()]
                sources = dict(cold)
                ids_of_groups = self._variants.first_of_groups(self._catalog, list(sources), fused_ids)
                cold = [(item_id, sources[item_id]) for item_id in ids_of_groups]
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
                used = [*(slot.item_id for slot in slots), *(item_id for item_id, _ in cold)]
                more = self.fallback(encoded, allowed, b, query, placement, used, k_warm - n_found, stage_names)
            more += cold
            slots += [Slot(item_id, -float(n), source) for n, (item_id, source) in enumerate(more, start=1)]
            empty_reason = "" if slots else self._empty_reason(allowed, b)
            answers.append(RankedList(slots, {}, int(encoded.states.positives[b]), k, empty_reason))
        return answers

    def cold_items(
        self, encoded: EncodedBatch, allowed: CandidateMask, b: int, placement: Placement, k: int
    ) -> list[tuple[str, str]]:
        """Return (item_id, source) of the items without a row at the end of a list.

        First those that the user had, then others by attributes up to the placement's share.
        """
        n_own, n_slots = placement.own_cold_slots(k), placement.cold_slots(k)
        own = own_cold_items(self._catalog, self._bundle.items.ids, encoded, allowed, b, n_own) if n_own > 0 else []
        cold = [(item_id, OWN_COLD_SOURCE) for item_id in own]
        if n_slots <= len(own) or self._by_attributes is None:
            return cold
        ranking = self._by_attributes.cold_items(self._catalog, encoded, allowed, b)
        others = (item_id for item_id in ranking if item_id not in own and allowed.allows_id(b, item_id))
        return [*cold, *((item_id, COLD_SOURCE) for item_id in islice(others, n_slots - len(own)))]

    def is_cold(self, encoded: EncodedBatch, b: int, placement: Placement) -> bool:
        """Return True if the attribute list replaces the fused list.

        The query has no history and its user has a field with an affinity. A placement with Popular as its only source keeps it.
        """
        if (
            self._attribute_lists is None
            or placement.list != "for_you"
            or "attributes" not in self._bundle.policy.fallback
            or not self._attribute_lists.is_first(encoded, b)
        ):
            return False
        return any(weight > 0 for source, weight in placement.weights.items() if source != "popular")

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
            stage_names = LIST_STAGES.get(placement.list, self._bundle.policy.fallback)
        stages = [(name, self._stages[name]) for name in stage_names]
        return fill_fallback(
            stages, FallbackQuery(encoded, allowed, b, query.item_id, placement.list), used_ids, n_free,
            self._variants.tracker(self._catalog, used_ids),
        )  # fmt: skip

    def _empty_reason(self, allowed: CandidateMask, b: int) -> str:
        """Name the cause of an empty list: the filter, the excluded items or the sources."""
        outside = self._catalog.latest(allowed.text, self._bundle.items.ids)
        newest = next((item_id for item_id in outside if item_id not in allowed.unavailable), None)
        if newest is None and not allowed.n_allowed:
            return f"no shown item passes the filter {allowed.text}" if allowed.text else "all items are hidden"
        has_outside = newest is not None and any(allowed.allows_id(b, item_id) for item_id in chain((newest,), outside))
        if np.count_nonzero(allowed.mask[allowed.banned[b]]) == allowed.n_allowed and not has_outside:
            return "every remaining item is excluded: seen, disliked or in exclude"
        return "the placement has no source for the remaining items"
