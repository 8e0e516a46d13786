"""Slots of a list: fused items, then fallback and items without a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, islice

import numpy as np

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
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.similar_items import SimilarItems
from recloop.recommend.variants import Variants
from recloop.records import Query, Slot

COLD_SOURCE = "attributes"
"""Source of the slots of `Placement.cold_share`."""
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
        """Make what the first list of a cold user needs."""
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
                cold = self._variants.first_of_groups(self._catalog, cold, fused_ids)
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
        ranking = self._by_attributes.cold_items(self._catalog, encoded, allowed, b)
        return [*islice((item_id for item_id in ranking if allowed.allows_id(b, item_id)), n_slots)]

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
