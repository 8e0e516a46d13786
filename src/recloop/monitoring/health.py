"""Health of what is shown, over logged decisions: by variant, placement and window, and at equal n between groups.

The formulas are those of `recloop.evaluation.metrics` (definitions, section 3). An exposure is one slot of one answered decision;
what a shadow or a twin answered was shown to nobody and is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from recloop.bundle import Bundle
from recloop.evaluation import bootstrap, metrics
from recloop.records import COLD_POSITIVES, COVERING, DAY, ITEM_ID, LABEL, SECOND, SOURCES, STAMP, Decision

WINDOWS: Final = {"hour": 3_600 * SECOND, "day": DAY, "week": 7 * DAY}
REFERENCE_DAYS: Final = 90
Group = tuple[str, str]
"""Variant and placement."""
Received = tuple[int, str | None]
"""When an event was received, and the request that it names."""
HISTORIES: Final = {"0": (0, 0), "1-2": (1, 2), "3-4": (3, 4)}
"""Cold users by believed positives at the request; their sources are shown beside the coverage."""


@dataclass(frozen=True)
class HealthReference:
    """What a number is measured against: the items that could be shown, and how popular they were before the cut.

    Attributes:
        ids: raw id -> number; the bundle's table first, from 1.
        n_items: N: items of the table and items posted since, hidden ones left out.
        tail: (numbers + 1,) of the table; an item behind it is tail.
        reference: (numbers + 1,) positive events of each item in the 90 days before the cut; None: not known.
    """

    ids: Mapping[str, int]
    n_items: int
    tail: NDArray[np.bool_]
    reference: NDArray[np.int64] | None = None


def reference(
    bundle: Bundle,
    posted: Iterable[str] = (),
    hidden: Collection[str] = (),
    events: pl.DataFrame | None = None,
) -> HealthReference:
    """The facts of a bundle at a window's end.

    Args:
        bundle: Its table, its tail, its cut.
        posted: Items posted since the cut; those of the table count once.
        hidden: Items that may not be shown at the window's end.
        events: Labelled rows, those of the reference window among them; without: no novelty, no tail ratio.
    """
    ids = {raw: number for number, raw in enumerate(bundle.items.ids.ids, start=1)}
    shown = (set(ids) | set(posted)) - set(hidden)
    reference = None
    if events is not None:
        window = (pl.col(STAMP) >= bundle.cut - REFERENCE_DAYS * DAY) & (pl.col(STAMP) < bundle.cut)
        counts = events.filter((pl.col(LABEL) > 0) & window).group_by(ITEM_ID).len()
        reference = np.zeros(len(ids) + 1, dtype=np.int64)
        for raw, count in counts.iter_rows():
            reference[ids.get(raw, 0)] += count
        reference[0] = 0
    return HealthReference(ids, len(shown), np.concatenate([[False], bundle.items.tail]), reference)


@dataclass(frozen=True)
class Exposures:
    """Answered decisions as flat arrays: Q decisions, S slots; decision q owns the slots ``offsets[q]:offsets[q+1]``."""

    at: NDArray[np.int64]  # (Q,)
    users: NDArray[np.int64]  # (Q,) a number for each user
    positives: NDArray[np.int64]  # (Q,)
    variant: NDArray[Any]  # (Q,) object
    placement: NDArray[Any]  # (Q,) object
    offsets: NDArray[np.int64]  # (Q+1,)
    items: NDArray[np.int64]  # (S,) numbers of `HealthReference.ids`, items behind the table numbered after it
    sources: NDArray[np.int64]  # (S,) places in SOURCES
    micros: NDArray[np.int64]  # (Q,) from the request to its list
    bundles: NDArray[np.object_]  # (Q,) who answered

    def __len__(self) -> int:
        return len(self.at)

    @classmethod
    def of(cls, decisions: Sequence[Decision], against: HealthReference) -> Exposures:
        """Flatten the decisions of role ``answer``; a list for nobody in particular was shown, but to no cold user."""
        answered = [one for one in decisions if one.role == "answer"]
        users: dict[str, int] = {}
        numbers: dict[str, int] = {}
        place = {source: number for number, source in enumerate(SOURCES)}

        def number(raw: str) -> int:
            return against.ids.get(raw) or numbers.setdefault(raw, len(against.tail) + len(numbers))

        return cls(
            at=np.array([one.at for one in answered], dtype=np.int64),
            users=np.array([users.setdefault(one.user_id, len(users)) for one in answered], dtype=np.int64),
            positives=np.array([one.positives if one.user_id else COLD_POSITIVES for one in answered], dtype=np.int64),
            variant=np.array([one.variant for one in answered], dtype=object),
            placement=np.array([one.placement for one in answered], dtype=object),
            offsets=np.concatenate([[0], np.cumsum([len(one.items) for one in answered])]).astype(np.int64),
            items=np.array([number(raw) for one in answered for raw in one.items], dtype=np.int64),
            sources=np.array([place[source] for one in answered for source in one.sources], dtype=np.int64),
            micros=np.array([one.micros for one in answered], dtype=np.int64),
            bundles=np.array([one.bundle for one in answered], dtype=object),
        )

    def where(self, mask: NDArray[np.bool_]) -> Exposures:
        """The decisions under a mask, with their slots."""
        lengths = np.diff(self.offsets)
        slots = np.repeat(mask, lengths)
        return Exposures(
            self.at[mask], self.users[mask], self.positives[mask], self.variant[mask], self.placement[mask],
            np.concatenate([[0], np.cumsum(lengths[mask])]).astype(np.int64), self.items[slots], self.sources[slots],
            self.micros[mask], self.bundles[mask],
        )  # fmt: skip

    def covering(self) -> NDArray[np.float64]:
        """(Q,) share of a decision's slots with a source that counts as personal; 0 for an empty list."""
        personal = np.array([source in COVERING for source in SOURCES])
        total = np.concatenate([[0], np.cumsum(personal[self.sources])])
        lengths = np.diff(self.offsets)
        share: NDArray[np.float64] = np.diff(total[self.offsets]) / np.maximum(lengths, 1)
        return share


def compute(shown: Exposures, against: HealthReference) -> dict[str, Any]:
    """Every health number of these decisions; what cannot be computed is None.

    ``coverage`` d/N, ``entropy`` H / log2 N, ``effective_items`` 2^H, ``gini``; ``long_tail_share`` with
    ``reference_tail_share`` (of the reference window's events) and ``tail_ratio``; ``new_item_share`` (slots of items
    behind the table); ``novelty``; ``cold_coverage`` of ``cold_users``; ``sources`` (share of slots) and
    ``cold_sources`` (the same for users of 0, 1-2, 3-4 believed positives); ``latency_ms`` {p50, p99}; ``bundles``
    {the bundle that answered: requests}.
    """
    width = max(len(against.tail), int(shown.items.max(initial=0)) + 1)
    counts = np.bincount(shown.items, minlength=width)
    behind = np.arange(width) >= len(against.tail)
    tail = np.concatenate([against.tail, np.ones(width - len(against.tail), dtype=bool)])
    cold = shown.positives < COLD_POSITIVES
    tail_share = metrics.long_tail_share(counts, tail)
    usual = novelty = float("nan")
    if against.reference is not None:
        reference = np.concatenate([against.reference, np.zeros(width - len(against.reference), dtype=np.int64)])
        usual = metrics.long_tail_share(reference, tail)
        novelty = metrics.novelty(counts, reference, against.n_items)
    numbers = {
        "entropy": metrics.entropy(counts, against.n_items),
        "effective_items": metrics.effective_items(counts),
        "coverage": metrics.coverage(counts, against.n_items),
        "gini": metrics.gini(counts, against.n_items),
        "long_tail_share": tail_share,
        "reference_tail_share": usual,
        "tail_ratio": tail_share / usual if usual > 0 else float("nan"),
        "new_item_share": metrics.long_tail_share(counts, behind),
        "novelty": novelty,
        "cold_coverage": metrics.cold_coverage(shown.users, cold, shown.covering()),
    }
    return {
        "requests": len(shown),
        "bundles": {str(name): int((shown.bundles == name).sum()) for name in dict.fromkeys(shown.bundles.tolist())},
        "slots": len(shown.items),
        "users": len(np.unique(shown.users)),
        "cold_users": len(np.unique(shown.users[cold])),
        **{name: bootstrap.plain(value) for name, value in numbers.items()},
        "latency_ms": latency(shown),
        "sources": source_shares(shown),
        "cold_sources": {
            name: source_shares(shown.where((shown.positives >= low) & (shown.positives <= high)))
            for name, (low, high) in HISTORIES.items()
        },
    }


def latency(shown: Exposures) -> dict[str, float | None]:
    """Milliseconds from a request to its list: the median and the slowest of a hundred."""
    if not len(shown):
        return {"p50": None, "p99": None}
    p50, p99 = np.quantile(shown.micros, (0.5, 0.99)) / 1_000
    return {"p50": bootstrap.plain(float(p50)), "p99": bootstrap.plain(float(p99))}


def source_shares(shown: Exposures) -> dict[str, float]:
    """Share of slots by source, those that gave any."""
    counts = np.bincount(shown.sources, minlength=len(SOURCES))
    total = max(1, int(counts.sum()))
    return {source: round(int(count) / total, 6) for source, count in zip(SOURCES, counts, strict=True) if count}


def health(
    decisions: Sequence[Decision], against: HealthReference, until: int | None = None, received: Sequence[Received] = ()
) -> dict[str, Any]:
    """Numbers of the whole, and of the last hour, day and week, each by variant and placement.

    Args:
        decisions: In any order; only answers count.
        against: See `facts`.
        until: End of the windows (int64 microseconds, itself included); None: the newest decision.
        received: The believed events that came meanwhile.

    Returns:
        ``whole`` and ``groups`` {variant: {placement: numbers}} over all decisions, and ``hour`` / ``day`` / ``week``
        {variant: {placement: numbers}} over (until - length, until]: those of `measure` and ``events``, the events
        received in that time which name an answer of the group.
    """
    shown = Exposures.of(decisions, against)
    end = until if until is not None else int(shown.at.max(initial=0))
    group = {one.request_id: (one.variant, one.placement) for one in decisions if one.role == "answer"}

    def events(since: int) -> Counter[Group]:
        return Counter(group[request] for at, request in received if request in group and since < at <= end)

    ever = events(-(2**63))
    out: dict[str, Any] = {
        "whole": {**compute(shown, against), "events": ever.total()}, "groups": by_variant_and_placement(shown, against, ever),
    }  # fmt: skip
    for name, length in WINDOWS.items():
        mine = shown.where((shown.at > end - length) & (shown.at <= end))
        out[name] = by_variant_and_placement(mine, against, events(end - length))
    return out


def by_variant_and_placement(
    shown: Exposures, against: HealthReference, events: Mapping[Group, int]
) -> dict[str, dict[str, dict[str, Any]]]:
    """{variant: {placement: numbers}}, of every group with a request or an event."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for pair in sorted({*zip(shown.variant.tolist(), shown.placement.tolist(), strict=True), *events}):
        variant, placement = pair
        mine = shown.where((shown.variant == variant) & (shown.placement == placement))
        groups.setdefault(variant, {})[placement] = {**compute(mine, against), "events": events.get(pair, 0)}
    return groups


def compare(
    groups: Mapping[str, Exposures], against: HealthReference, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Entropy, coverage, gini, long-tail share of groups at equal n: the smallest n, 20 draws, their mean."""
    slots = {name: shown.items for name, shown in groups.items()}

    def tail_share(counts: NDArray[Any]) -> float:
        tail = np.ones(len(counts), dtype=bool)
        known = min(len(counts), len(against.tail))
        tail[:known] = against.tail[:known]
        return metrics.long_tail_share(counts, tail)

    numbers: dict[str, Callable[[NDArray[Any]], float]] = {
        "entropy": lambda counts: metrics.entropy(counts, against.n_items),
        "coverage": lambda counts: metrics.coverage(counts, against.n_items),
        "gini": lambda counts: metrics.gini(counts, against.n_items),
        "long_tail_share": tail_share,
    }
    found = {name: metrics.equal_n(slots, number, seed) for name, number in numbers.items()}
    return {group: {name: bootstrap.plain(value[group]) for name, value in found.items()} for group in groups}
