"""Recommend response and the decision record of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from recloop.files import JsonTree
from recloop.recommend.catalog import Catalog
from recloop.recommend.ranked_list import RankedList
from recloop.records import Decision, Query
from recloop.release.assignment import Arm
from recloop.serve.schemas import RecommendResponse, SlotResponse

REASONS: Mapping[str, str] = {
    "model": "fits what you chose lately",
    "history": "you chose or viewed it before",
    "neighbours": "often chosen after what you chose lately",
    "attributes": "like what you chose lately",
    "segment": "popular with people like you",
    "popular": "popular with everybody",
    "latest": "new here",
    "buy_again": "time to buy it again",
}
"""Reason shown to users, per source of a slot."""
OTHER_REASON = REASONS["model"]
"""Reason of a source without its own."""
SIMILAR_REASONS: Mapping[str, str] = {
    **REASONS,
    "model": "goes with this item",
    "neighbours": "often chosen after this item",
    "attributes": "described like this item",
}
"""Reasons in a list of similar items."""


def build_response(
    query: Query,
    ranked: RankedList,
    catalog: Catalog,
    bundle: str,
    variant: str,
    degraded: list[str],
    aliases: Mapping[str, str],
) -> RecommendResponse:
    """Build the response of ``GET /v1/recommend`` from a ranked list.

    Args:
        aliases: Attributes of ``[catalog]`` by the name of their key.
    """
    reasons = SIMILAR_REASONS if query.item_id else REASONS
    slots = [
        SlotResponse(slot.item_id, slot.score, slot.source, reasons.get(slot.source, OTHER_REASON))
        for slot in ranked.slots
    ]
    items: list[Any] = _with_properties(slots, query.properties, catalog, aliases) if query.properties else slots
    return RecommendResponse(query.request_id, bundle, variant, query.placement, degraded, items, ranked.empty_reason)


def _with_properties(
    slots: list[SlotResponse], properties: tuple[str, ...], catalog: Catalog, aliases: Mapping[str, str]
) -> list[JsonTree]:
    """Add item attributes to slots, except names of a slot's own fields."""
    added = [name for name in properties if name not in SlotResponse.__struct_fields__]
    rows = []
    for slot in slots:
        item = catalog.get(slot.item_id)
        attributes = {} if item is None else item.attributes
        rows.append(msgspec.structs.asdict(slot) | {name: _property(attributes, name, aliases) for name in added})
    return rows


def _property(attributes: Mapping[str, Any], name: str, aliases: Mapping[str, str]) -> Any:
    """Value of an attribute, or of the one that ``[catalog]`` names."""
    return attributes[name] if name in attributes else attributes.get(aliases.get(name, name))


def build_decision(
    query: Query,
    ranked: RankedList,
    arm: Arm,
    *,
    as_of_seq: int,
    degraded: list[str],
    assigned: str,
    latency_us: int,
    session_id: str | None,
    anonymous_id: str | None,
    client_request_id: str | None,
) -> Decision:
    """Build the decision of role ``answer`` that records an answered query.

    Args:
        arm: The arm that answered; ``assigned`` is the variant that the user was assigned to.
        as_of_seq: Newest seq that the response includes.
    """
    parameters: JsonTree = {
        "exclude": list(query.exclude),
        "filter": query.filter,
        "properties": list(query.properties),
        "context": {},
    }
    if query.item_id:
        parameters["item"] = query.item_id
    if query.filter_seen is not None:
        parameters["filter_seen"] = query.filter_seen
    if query.min_new is not None:
        parameters["min_new"] = query.min_new
    return Decision(
        request_id=query.request_id,
        role="answer",
        user_id=query.user_id,
        served_at=query.now,
        as_of_seq=as_of_seq,
        bundle=arm.bundle,
        generation=arm.generation,
        variant=arm.variant,
        placement=query.placement,
        n=ranked.n,
        query=parameters,
        items=ranked.items,
        scores=ranked.scores,
        sources=ranked.sources,
        degraded=degraded,
        session_id=session_id,
        anonymous_id=anonymous_id,
        client_request_id=client_request_id,
        assigned=assigned,
        positives=ranked.positives,
        inputs=ranked.inputs,
        latency_us=latency_us,
    )
