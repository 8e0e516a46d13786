"""List health over logged decisions, by variant, placement and window.

The formulas are those of `recloop.evaluation.metrics` (docs/definitions/diversity-and-coverage.md). An exposure is one
slot of a response; shadow lists and replicas are not shown to users and are ignored.
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
from recloop.records import COLD_POSITIVES, COVERING, DAY, ITEM_ID, LABEL, SECOND, SOURCES, STAMP, Decision, is_guest

WINDOWS: Final = {"hour": 3_600 * SECOND, "day": DAY, "week": 7 * DAY}
REFERENCE_DAYS: Final = 90
Group = tuple[str, str]
"""Variant and placement."""
Received = tuple[int, str | None]
"""Time of receipt and request id of an event."""
HISTORY_RANGES: Final = {"0": (0, 0), "1-2": (1, 2), "3-4": (3, 4)}
"""Ranges of valid positives at the request, for the sources of cold users."""


@dataclass(frozen=True)
class HealthReference:
    """Available items and their popularity before the cut, for the health numbers.

    Attributes:
        ids: Raw id -> number, from 1, for the bundle's table.
        n_items: N: items of the table and items posted since, without hidden ones.
        tail: (numbers + 1,) tail flags of the table; items after the table are tail.
        reference: (numbers + 1,) positive events of each item in the 90 days before the cut; None if unknown.
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
    """Build the reference of a bundle at the end of a window.

    Args:
        bundle: Source of the item table, the tail and the cut.
        posted: Items posted since the cut; items of the table count once.
        hidden: Items hidden at the end of the window.
        events: Labelled rows that include the reference window; without them novelty and tail ratio are unknown.
    """
    ids = {raw: number for number, raw in enumerate(bundle.items.ids.ids, start=1)}
    available = (set(ids) | set(posted)) - set(hidden)
    reference = None
    if events is not None:
        window = (pl.col(STAMP) >= bundle.cut - REFERENCE_DAYS * DAY) & (pl.col(STAMP) < bundle.cut)
        counts = events.filter((pl.col(LABEL) > 0) & window).group_by(ITEM_ID).len()
        reference = np.zeros(len(ids) + 1, dtype=np.int64)
        for raw, count in counts.iter_rows():
            reference[ids.get(raw, 0)] += count
        reference[0] = 0
    return HealthReference(ids, len(available), np.concatenate([[False], bundle.items.tail]), reference)


@dataclass(frozen=True)
class Exposures:
    """Responses as flat arrays of Q decisions and S slots.

    Decision q has the slots ``offsets[q]:offsets[q+1]``.
    """

    served_at: NDArray[np.int64]  # (Q,)
    users: NDArray[np.int64]  # (Q,) user numbers
    positives: NDArray[np.int64]  # (Q,)
    variant: NDArray[Any]  # (Q,) object
    placement: NDArray[Any]  # (Q,) object
    offsets: NDArray[np.int64]  # (Q+1,)
    items: NDArray[np.int64]  # (S,) numbers of `HealthReference.ids`; other items have higher numbers
    sources: NDArray[np.int64]  # (S,) indices in SOURCES
    latency_us: NDArray[np.int64]  # (Q,) microseconds from request to list
    bundles: NDArray[np.object_]  # (Q,) bundle that answered

    def __len__(self) -> int:
        return len(self.served_at)

    @classmethod
    def from_decisions(cls, decisions: Sequence[Decision], against: HealthReference) -> Exposures:
        """Flatten the decisions of role ``answer``.

        Requests without a user id or of a guest count as exposures but never as cold users.
        """
        answered = [decision for decision in decisions if decision.role == "answer"]
        users: dict[str, int] = {}
        numbers: dict[str, int] = {}
        source_numbers = {source: number for number, source in enumerate(SOURCES)}

        def number(raw: str) -> int:
            return against.ids.get(raw) or numbers.setdefault(raw, len(against.tail) + len(numbers))

        return cls(
            served_at=np.array([decision.served_at for decision in answered], dtype=np.int64),
            users=np.array([users.setdefault(decision.user_id, len(users)) for decision in answered], dtype=np.int64),
            positives=np.array(
                [
                    decision.positives if decision.user_id and not is_guest(decision.user_id) else COLD_POSITIVES
                    for decision in answered
                ],
                dtype=np.int64,
            ),
            variant=np.array([decision.variant for decision in answered], dtype=object),
            placement=np.array([decision.placement for decision in answered], dtype=object),
            offsets=np.concatenate([[0], np.cumsum([len(decision.items) for decision in answered])]).astype(np.int64),
            items=np.array([number(raw) for decision in answered for raw in decision.items], dtype=np.int64),
            sources=np.array(
                [source_numbers[source] for decision in answered for source in decision.sources], dtype=np.int64
            ),
            latency_us=np.array([decision.latency_us for decision in answered], dtype=np.int64),
            bundles=np.array([decision.bundle for decision in answered], dtype=object),
        )

    def select(self, mask: NDArray[np.bool_]) -> Exposures:
        """Select the decisions of a mask, with their slots."""
        lengths = np.diff(self.offsets)
        slots = np.repeat(mask, lengths)
        return Exposures(
            self.served_at[mask], self.users[mask], self.positives[mask], self.variant[mask], self.placement[mask],
            np.concatenate([[0], np.cumsum(lengths[mask])]).astype(np.int64), self.items[slots], self.sources[slots],
            self.latency_us[mask], self.bundles[mask],
        )  # fmt: skip

    def personal_shares(self) -> NDArray[np.float64]:
        """Share of each decision's slots with a personal source: (Q,); 0 if empty."""
        personal = np.array([source in COVERING for source in SOURCES])
        total = np.concatenate([[0], np.cumsum(personal[self.sources])])
        lengths = np.diff(self.offsets)
        share: NDArray[np.float64] = np.diff(total[self.offsets]) / np.maximum(lengths, 1)
        return share


def compute(exposures: Exposures, against: HealthReference) -> dict[str, Any]:
    """Compute all health numbers of these decisions; None if undefined.

    ``coverage`` d/N, ``entropy`` H / log2 N, ``effective_items`` 2^H, ``gini``; ``long_tail_share`` with
    ``reference_tail_share`` (of the reference window's events) and ``tail_ratio``; ``new_item_share`` (slots of items
    that are not in the table); ``novelty``; ``cold_coverage`` of ``cold_users``; ``sources`` (share of slots) and
    ``cold_sources`` (the same for users with 0, 1-2, 3-4 valid positives); ``latency_ms`` {p50, p99}; ``bundles``
    {bundle: requests that it answered}.
    """
    width = max(len(against.tail), int(exposures.items.max(initial=0)) + 1)
    counts = np.bincount(exposures.items, minlength=width)
    after_table = np.arange(width) >= len(against.tail)
    tail = np.concatenate([against.tail, np.ones(width - len(against.tail), dtype=bool)])
    cold = exposures.positives < COLD_POSITIVES
    tail_share = metrics.long_tail_share(counts, tail)
    reference_tail_share = novelty = float("nan")
    if against.reference is not None:
        reference = np.concatenate([against.reference, np.zeros(width - len(against.reference), dtype=np.int64)])
        reference_tail_share = metrics.long_tail_share(reference, tail)
        novelty = metrics.novelty(counts, reference, against.n_items)
    numbers = {
        "entropy": metrics.entropy(counts, against.n_items),
        "effective_items": metrics.effective_items(counts),
        "coverage": metrics.coverage(counts, against.n_items),
        "gini": metrics.gini(counts, against.n_items),
        "long_tail_share": tail_share,
        "reference_tail_share": reference_tail_share,
        "tail_ratio": tail_share / reference_tail_share if reference_tail_share > 0 else float("nan"),
        "new_item_share": metrics.long_tail_share(counts, after_table),
        "novelty": novelty,
        "cold_coverage": metrics.cold_coverage(exposures.users, cold, exposures.personal_shares()),
    }
    return {
        "requests": len(exposures),
        "bundles": {
            str(name): int((exposures.bundles == name).sum()) for name in dict.fromkeys(exposures.bundles.tolist())
        },
        "slots": len(exposures.items),
        "users": len(np.unique(exposures.users)),
        "cold_users": len(np.unique(exposures.users[cold])),
        **{name: bootstrap.plain(value) for name, value in numbers.items()},
        "latency_ms": latency(exposures),
        "sources": source_shares(exposures),
        "cold_sources": {
            name: source_shares(exposures.select((exposures.positives >= low) & (exposures.positives <= high)))
            for name, (low, high) in HISTORY_RANGES.items()
        },
    }


def latency(exposures: Exposures) -> dict[str, float | None]:
    """Milliseconds from request to list: median and 99th percentile."""
    if not len(exposures):
        return {"p50": None, "p99": None}
    p50, p99 = np.quantile(exposures.latency_us, (0.5, 0.99)) / 1_000
    return {"p50": bootstrap.plain(float(p50)), "p99": bootstrap.plain(float(p99))}


def source_shares(exposures: Exposures) -> dict[str, float]:
    """Share of slots by source; sources without a slot are omitted."""
    counts = np.bincount(exposures.sources, minlength=len(SOURCES))
    total = max(1, int(counts.sum()))
    return {source: round(int(count) / total, 6) for source, count in zip(SOURCES, counts, strict=True) if count}


def health(
    decisions: Sequence[Decision], against: HealthReference, until: int | None = None, received: Sequence[Received] = ()
) -> dict[str, Any]:
    """Health over all decisions and the last hour, day and week, per group.

    Args:
        decisions: Decisions in any order; only responses count.
        against: See `reference`.
        until: End of the windows (int64 microseconds, inclusive); None for the newest decision.
        received: Valid events received in the time of the decisions.

    Returns:
        ``whole`` and ``groups`` {variant: {placement: numbers}} over all decisions, and ``hour`` / ``day`` / ``week``
        {variant: {placement: numbers}} over (until - length, until]. Numbers are those of `compute`, and ``events``:
        events received in that time with a request id of the group.
    """
    exposures = Exposures.from_decisions(decisions, against)
    end = until if until is not None else int(exposures.served_at.max(initial=0))
    group = {
        decision.request_id: (decision.variant, decision.placement)
        for decision in decisions
        if decision.role == "answer"
    }

    def events(since: int) -> Counter[Group]:
        return Counter(group[request] for at, request in received if request in group and since < at <= end)

    all_events = events(-(2**63))
    out: dict[str, Any] = {
        "whole": {**compute(exposures, against), "events": all_events.total()},
        "groups": by_variant_and_placement(exposures, against, all_events),
    }  # fmt: skip
    for name, length in WINDOWS.items():
        in_window = exposures.select((exposures.served_at > end - length) & (exposures.served_at <= end))
        out[name] = by_variant_and_placement(in_window, against, events(end - length))
    return out


def by_variant_and_placement(
    exposures: Exposures, against: HealthReference, events: Mapping[Group, int]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Compute {variant: {placement: numbers}} of groups with a request or an event."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for pair in sorted({*zip(exposures.variant.tolist(), exposures.placement.tolist(), strict=True), *events}):
        variant, placement = pair
        group = exposures.select((exposures.variant == variant) & (exposures.placement == placement))
        groups.setdefault(variant, {})[placement] = {**compute(group, against), "events": events.get(pair, 0)}
    return groups


def compare(
    groups: Mapping[str, Exposures], against: HealthReference, seed: int = 0
) -> dict[str, dict[str, float | None]]:
    """Compare entropy, coverage, gini and long-tail share of groups at equal n.

    Each group is sampled 20 times to the smallest n; the results are means.
    """
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
