"""The ladder: what fills the slots that the mix left free, so that no list is ever empty."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from recloop.bundle import Bundle
from recloop.features.vocabulary import as_text
from recloop.recommend.catalog import Catalog
from recloop.recommend.filters import CandidateMask

SEGMENT = "segment."
"""Prefix of the arrays that hold a segment's popular list: ``segment.VALUE``."""


def fill_fallback(
    bundle: Bundle,
    catalogue: Catalog,
    allowed: CandidateMask,
    b: int,
    taken: list[str],
    free: int,
    attributes: Mapping[str, Any] | None,
    rungs: Sequence[str],
    own: Mapping[str, Callable[[], Iterator[str]]],
) -> list[tuple[str, str]]:
    """(item_id, source) of the next ``free`` slots of query b: each rung after the same filters, nothing twice.

    Args:
        own: What a rung has for this query, best first, in place of the bundle's; asked only where it is reached.
    """
    slots: list[tuple[str, str]] = []
    shown = set(taken) | allowed.banned_ids[b]
    for rung in rungs:
        found = own[rung]() if rung in own else _stage(rung, bundle, catalogue, allowed, b, attributes)
        for item_id in found:
            if len(slots) == free:
                return slots
            if item_id not in shown:
                shown.add(item_id)
                slots.append((item_id, rung))
    return slots


def newest(bundle: Bundle, order: np.ndarray, catalogue: Catalog, allowed: CandidateMask, b: int) -> Iterator[str]:
    """All that query b may show, newest first: of the table by its first positive, else by the first version's seq.

    Ties: the table first, by item_ix, then id bytes.

    Args:
        order: (N,) places in the table by falling first seq, ties by item_ix.
    """
    first, mask = bundle.items.first_seq, allowed.mask
    banned = set(allowed.banned[b].tolist())
    table = (
        (-int(first[place]), 0, place, bundle.items.ids.ids[place])
        for place in map(int, order)
        if mask[place + 1] and place + 1 not in banned
    )
    fresh = (
        (-catalogue.first_seq(item_id), 1, place, item_id)
        for place, item_id in enumerate(catalogue.latest(allowed.text, bundle.items.ids))
    )
    for *_, item_id in heapq.merge(table, fresh):
        yield item_id


def _stage(
    rung: str, bundle: Bundle, catalogue: Catalog, allowed: CandidateMask, b: int, attributes: Mapping[str, Any] | None
) -> Iterator[str]:
    if rung == "latest":
        yield from catalogue.latest(allowed.text, bundle.items.ids)
        return
    if rung == "segment":
        value = (attributes or {}).get(bundle.spec.segment)
        order = None if value is None else bundle.arrays.get(SEGMENT + as_text(value))
    else:
        order = bundle.arrays["popular"]
    if order is None:
        return
    banned = set(allowed.banned[b].tolist())
    ids = bundle.items.ids.ids
    for item_ix in order[allowed.mask[order]] if not allowed.mask[1:].all() else order:
        if int(item_ix) not in banned:
            yield ids[item_ix - 1]


def segment_lists(
    users: Sequence[str | None], user_ix: np.ndarray, items: np.ndarray, weights: np.ndarray, size: int, length: int
) -> dict[str, np.ndarray]:
    """``segment.VALUE`` -> its most taken items, (length,) int32 at most; ties by item_ix.

    Args:
        users: The segment of each user, None without one.
        user_ix, items, weights: (E,) who took what, in training rows, and what each counts.
    """
    lists: dict[str, np.ndarray] = {}
    for value in sorted({value for value in users if value is not None}):
        members = np.array([user == value for user in users], dtype=bool)
        own = members[user_ix]
        counts = np.bincount(items[own], weights=weights[own], minlength=size)
        order = np.argsort(-counts[1:], kind="stable")[:length] + 1
        lists[SEGMENT + value] = order[counts[order] > 0].astype(np.int32)
    return lists
