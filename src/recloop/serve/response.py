"""An answer as the client gets it: each slot with its reason, and the properties asked for."""

from __future__ import annotations

from collections.abc import Mapping

from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import RankedList
from recloop.records import Query
from recloop.serve.schemas import RecommendResponse

REASONS: Mapping[str, str] = {
    "model": "fits what you chose lately",
    "history": "you chose or viewed it before",
    "neighbours": "often chosen after what you chose lately",
    "attributes": "like what you chose lately",
    "segment": "popular with people like you",
    "popular": "popular with everybody",
    "latest": "new here",
    "pin": "chosen by the shop",
    "explore": "something to try",
}
"""A short sentence for each source of a slot."""
ABOUT: Mapping[str, str] = {
    **REASONS,
    "model": "goes with this item",
    "neighbours": "often chosen after this item",
    "attributes": "described like this item",
}
"""The same in a list about an item."""


def build_response(
    query: Query, answer: RankedList, catalogue: Catalog, bundle: str, variant: str, degraded: list[str]
) -> RecommendResponse:
    """An answer as ``GET /v1/recommend`` gives it: each slot with its reason and the properties asked for."""
    items, reasons = [], ABOUT if query.item_id else REASONS
    for slot in answer.slots:
        item = catalogue.get(slot.item_id)
        attributes = {} if item is None else item.attributes
        own = {"item_id": slot.item_id, "score": slot.score, "source": slot.source, "reason": reasons[slot.source]}
        items.append({**own, **{name: attributes.get(name) for name in query.properties if name not in own}})
    return RecommendResponse(query.request_id, bundle, variant, query.placement, degraded, items)
