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
from recloop.files import JsonTree
from recloop.records import COLD_POSITIVES, DAY, IMPERSONAL, ITEM_ID, LABEL, SOURCES, STAMP, Decision, guest_rows
from recloop.storage import decision_periods
from recloop.storage.decision_periods import (
    HISTORY_RANGES,
    WINDOWS,
    Group,
    GroupCounts,
    latency_buckets,
)

REFERENCE_DAYS: Final = 90
Received = tuple[int, str | None]
"""Time of receipt and request id of an event."""
HealthByGroup = dict[str, dict[str, JsonTree]]
"""Health numbers by variant and placement."""
WARM: Final = len(HISTORY_RANGES)
"""History range of answers to users who are not cold, to guests and without a user."""
COLUMNS: Final[dict[str, Any]] = {
    "served_at": pl.Int64, "user_id": pl.String, "bundle": pl.String, "variant": pl.String, "placement": pl.String,
    "positives": pl.Int64, "latency_us": pl.Int64, "degraded": pl.String, "items": pl.List(pl.String),
    "sources": pl.List(pl.String),
}  # fmt: skip
"""Columns of the decision log that `Exposures` needs."""


@dataclass(frozen=True)
class HealthReference:
    """Available items and their popularity before the cut, for the health numbers.

    Attributes:
        ids: Raw id -> number, from 1, for the bundle's table.
        n_items: N: items of the table and items posted since, without hidden ones.
        tail, new: (numbers + 1,) flags of tail items and of items outside the table; later items are both.
        reference: (numbers + 1,) positive events of each item in the 90 days before the cut; None if unknown.
    """

    ids: Mapping[str, int]
    n_items: int
    tail: NDArray[np.bool_]
    new: NDArray[np.bool_]
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
    tail = np.concatenate([[False], bundle.items.tail])
    return HealthReference(ids, len(available), tail, np.zeros(len(tail), dtype=bool), reference)


@dataclass(frozen=True)
class Exposures:
    """Responses as flat arrays of Q decisions and S slots.

    Decision q has the slots ``offsets[q]:offsets[q+1]``.
    """

    served_at: NDArray[np.int64]  # (Q,)
    users: NDArray[np.int64]  # (Q,) user numbers
    ranges: NDArray[np.int64]  # (Q,) positions in HISTORY_RANGES; WARM for other answers
    personal: NDArray[np.bool_]  # (Q,) True if at least half of the slots have a personal source
    degraded: NDArray[np.bool_]  # (Q,) True if the answer names a missing part
    variant: NDArray[Any]  # (Q,) object
    placement: NDArray[Any]  # (Q,) object
    offsets: NDArray[np.int64]  # (Q+1,)
    items: NDArray[np.int64]  # (S,) numbers of `HealthReference.ids`; other items have higher numbers
    sources: NDArray[np.int64]  # (S,) indices in SOURCES
    latency: NDArray[np.int64]  # (Q,) latency buckets
    bundles: NDArray[np.object_]  # (Q,) bundle that answered

    def __len__(self) -> int:
        return len(self.served_at)

    @classmethod
    def from_decisions(cls, decisions: Sequence[Decision], against: HealthReference) -> Exposures:
        """Flatten the decisions of role ``answer``."""
        rows = [
            [str(row.degraded) if name == "degraded" else getattr(row, name) for name in COLUMNS]
            for row in decisions
            if row.role == "answer"
        ]
        return cls.from_frame(pl.DataFrame(rows, schema=COLUMNS, orient="row"), against)

    @classmethod
    def from_frame(cls, answers: pl.DataFrame, against: HealthReference) -> Exposures:
        """Flatten answers with the columns of `COLUMNS`.

        Requests without a user id or of a guest count as exposures but never as cold users.
        """
        lengths = answers["items"].list.len().to_numpy()
        slots = answers.filter(pl.col("items").list.len() > 0)
        items = slots["items"].explode()
        ids = items.unique(maintain_order=True)
        after_table = iter(range(len(against.tail), len(against.tail) + len(ids)))
        numbers = [against.ids.get(raw) or next(after_table) for raw in ids]
        by_id = pl.DataFrame({"items": ids, "number": pl.Series(numbers, dtype=pl.Int64)})
        sources = slots["sources"].explode()
        position = {source: number for number, source in enumerate(SOURCES)}
        is_cold_user = (pl.col("user_id") != "") & ~guest_rows() & (pl.col("positives") < COLD_POSITIVES)
        n_personal = pl.col("sources").list.eval(~pl.element().is_in(sorted(IMPERSONAL))).list.sum()
        groups = answers.select(
            pl.when(is_cold_user).then((pl.col("positives").clip(0) + 1) // 2).otherwise(WARM).alias("range"),
            ((pl.col("items").list.len() > 0) & (2 * n_personal >= pl.col("sources").list.len())).alias("personal"),
        )
        return cls(
            served_at=answers["served_at"].to_numpy(),
            users=answers["user_id"].rank("dense").to_numpy().astype(np.int64),
            ranges=groups["range"].to_numpy().astype(np.int64),
            personal=groups["personal"].to_numpy(),
            degraded=(answers["degraded"] != "[]").to_numpy(),
            variant=answers["variant"].to_numpy(),
            placement=answers["placement"].to_numpy(),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            items=items.to_frame().join(by_id, on="items", how="left", maintain_order="left")["number"].to_numpy(),
            sources=sources.replace_strict(position, default=len(SOURCES) - 1, return_dtype=pl.Int64).to_numpy(),
            latency=latency_buckets(answers["latency_us"].to_numpy()),
            bundles=answers["bundle"].to_numpy(),
        )

    def select(self, mask: NDArray[np.bool_]) -> Exposures:
        """Select the decisions of a mask, with their slots."""
        lengths = np.diff(self.offsets)
        slots = np.repeat(mask, lengths)
        return Exposures(
            self.served_at[mask], self.users[mask], self.ranges[mask], self.personal[mask], self.degraded[mask],
            self.variant[mask], self.placement[mask], np.concatenate([[0], np.cumsum(lengths[mask])]).astype(np.int64),
            self.items[slots], self.sources[slots], self.latency[mask], self.bundles[mask],
        )  # fmt: skip


@dataclass(frozen=True)
class HealthCounts:
    """Counts of one group of responses: everything that its health numbers depend on."""

    requests: int
    empty: int  # responses without a slot
    degraded: int  # responses that name a missing part
    users: int
    cold_users: int
    covered_users: int  # cold users who had a personal list
    bundles: Mapping[str, int]
    latency: NDArray[np.int64]  # (buckets,) responses by latency bucket
    items: NDArray[np.integer[Any]]  # (items,) slots in the order of `HealthReference.tail`
    repeats: tuple[NDArray[Any], NDArray[Any]]  # `metrics.count_repeats` of ``items``
    sources: NDArray[np.int64]  # (WARM + 1, len(SOURCES)) slots by history range and source

    @classmethod
    def from_exposures(cls, exposures: Exposures) -> HealthCounts:
        """Count responses."""
        lengths = np.diff(exposures.offsets)
        cold = exposures.ranges < WARM
        slots = np.zeros((WARM + 1, len(SOURCES)), dtype=np.int64)
        np.add.at(slots, (np.repeat(exposures.ranges, lengths), exposures.sources), 1)
        items = np.bincount(exposures.items)
        return cls(
            requests=len(exposures),
            empty=int((lengths == 0).sum()),
            degraded=int(exposures.degraded.sum()),
            users=len(np.unique(exposures.users)),
            cold_users=len(np.unique(exposures.users[cold])),
            covered_users=len(np.unique(exposures.users[cold & exposures.personal])),
            bundles=Counter(exposures.bundles.tolist()),
            latency=np.bincount(exposures.latency),
            items=items,
            repeats=metrics.count_repeats(items),
            sources=slots,
        )

    @classmethod
    def from_stored(cls, counts: GroupCounts) -> HealthCounts:
        """Convert the counts of the decision log, with slots by item code."""
        return cls(
            requests=counts.answers,
            empty=counts.empty,
            degraded=counts.degraded,
            users=counts.users.get(decision_periods.USERS, 0),
            cold_users=counts.users.get(decision_periods.COLD_USERS, 0),
            covered_users=counts.users.get(decision_periods.COVERED_USERS, 0),
            bundles=counts.bundles,
            latency=counts.latency,
            items=counts.slots[: counts.n_codes],
            repeats=counts.count_repeats(),
            sources=np.array([_by_source(sources) for sources in counts.sources], dtype=np.int64),
        )


def _by_source(slots: Mapping[str, int]) -> list[int]:
    """Return the slots of each of `SOURCES`."""
    known = [slots.get(name, 0) for name in SOURCES[:-1]]
    return [*known, sum(slots.values()) - sum(known)]


def compute(exposures: Exposures, against: HealthReference) -> JsonTree:
    """Compute the `health_numbers` of these responses."""
    return health_numbers(HealthCounts.from_exposures(exposures), against)


def health_numbers(group: HealthCounts, against: HealthReference) -> JsonTree:
    """Compute all health numbers of a group; None if undefined.

    ``coverage`` d/N, ``entropy`` H / log2 N, ``effective_items`` 2^H, ``gini``; ``long_tail_share`` with
    ``reference_tail_share`` (of the reference window's events) and ``tail_ratio``; ``new_item_share`` (slots of items
    that are not in the table); ``novelty``; ``cold_coverage`` of ``cold_users``; ``sources`` (share of slots) and
    ``cold_sources`` (the same for users with 0, 1-2, 3-4 valid positives); ``latency_ms`` {p50, p99}, within 2.5 %;
    ``bundles`` {bundle: requests that it answered}; ``empty`` and ``degraded`` requests.
    """
    counts = group.items
    distinct, repeats = group.repeats
    bits = metrics.entropy_bits(distinct, repeats)
    slots = int((distinct * repeats).sum())
    tail_share = metrics.long_tail_share(counts, _flags(against.tail, len(counts)), slots)
    reference_tail_share = novelty = float("nan")
    if against.reference is not None:
        reference_tail_share = metrics.long_tail_share(against.reference, against.tail)
        width = max(len(counts), len(against.reference))
        novelty = metrics.novelty(_padded(counts, width), _padded(against.reference, width), against.n_items)
    numbers = {
        "entropy": metrics.evenness(bits, against.n_items),
        "effective_items": metrics.effective_items(bits),
        "coverage": metrics.coverage(distinct, against.n_items, repeats),
        "gini": metrics.gini(distinct, against.n_items, repeats),
        "long_tail_share": tail_share,
        "reference_tail_share": reference_tail_share,
        "tail_ratio": tail_share / reference_tail_share if reference_tail_share > 0 else float("nan"),
        "new_item_share": metrics.long_tail_share(counts, _flags(against.new, len(counts)), slots),
        "novelty": novelty,
        "cold_coverage": group.covered_users / group.cold_users if group.cold_users else float("nan"),
    }
    return {
        "requests": group.requests,
        "empty": group.empty,
        "degraded": group.degraded,
        "bundles": {str(name): int(requests) for name, requests in group.bundles.items()},
        "slots": slots,
        "users": group.users,
        "cold_users": group.cold_users,
        **{name: bootstrap.plain(value) for name, value in numbers.items()},
        "latency_ms": {
            name: bootstrap.plain(decision_periods.latency_quantile(group.latency, share) / 1_000)
            for name, share in (("p50", 0.5), ("p99", 0.99))
        },
        "sources": source_shares(group.sources.sum(axis=0)),
        "cold_sources": {name: source_shares(group.sources[row]) for row, name in enumerate(HISTORY_RANGES)},
    }


def _flags(flags: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return flags of ``width`` items; those after the known ones are True."""
    return flags[:width] if width <= len(flags) else np.concatenate([flags, np.ones(width - len(flags), dtype=bool)])


def _padded(counts: NDArray[Any], width: int) -> NDArray[Any]:
    return np.concatenate([counts, np.zeros(width - len(counts), dtype=counts.dtype)])


def source_shares(slots: NDArray[np.int64]) -> dict[str, float]:
    """Share of slots by source; sources without a slot are omitted."""
    counts = slots.tolist()
    total = max(1, sum(counts))
    return {source: round(count / total, 6) for source, count in zip(SOURCES, counts, strict=True) if count}


def stored_health(
    counts: Mapping[Group, GroupCounts], against: HealthReference, events: Mapping[Group, int]
) -> HealthByGroup:
    """Compute {variant: {placement: numbers}} of one window from stored counts.

    Args:
        against: Reference with the flags of the item codes of the log.
        events: Events received in the window by group.
    """
    groups: HealthByGroup = {}
    for variant, placement in sorted({*counts, *events}):
        group = HealthCounts.from_stored(counts.get((variant, placement), GroupCounts()))
        tree = {**health_numbers(group, against), "events": events.get((variant, placement), 0)}
        groups.setdefault(variant, {})[placement] = tree
    return groups


def health(
    decisions: Sequence[Decision], against: HealthReference, until: int | None = None, received: Sequence[Received] = ()
) -> JsonTree:
    """Health over all decisions and the last hour, day and week, per group.

    Args:
        decisions: Decisions in any order; only responses count.
        against: See `reference`.
        until: End of the windows (int64 microseconds, inclusive); None for the newest decision.
        received: Valid events received in the time of the decisions.

    Returns:
        ``whole`` and ``groups`` {variant: {placement: numbers}} over all decisions, and ``hour`` / ``day`` / ``week``
        {variant: {placement: numbers}} over the `decision_periods.Window` that ends at ``until``. Numbers are those of `health_numbers`, and ``events``:
        events received in that time with a request id of the group.
    """
    exposures = Exposures.from_decisions(decisions, against)
    group = {row.request_id: (row.variant, row.placement) for row in decisions if row.role == "answer"}
    return exposure_health(exposures, against, group, until, received)


def exposure_health(
    exposures: Exposures,
    against: HealthReference,
    group: Mapping[str, Group],
    until: int | None = None,
    received: Sequence[Received] = (),
) -> JsonTree:
    """Compute `health` of flat responses.

    Args:
        group: Variant and placement by request id.
    """
    end = until if until is not None else int(exposures.served_at.max(initial=0))

    def events(since: int) -> Counter[Group]:
        return Counter(group[name] for at, name in received if name and name in group and since < at <= end)

    all_events = events(-(2**63))
    out: JsonTree = {
        "whole": {**compute(exposures, against), "events": all_events.total()},
        "groups": by_variant_and_placement(exposures, against, all_events),
    }  # fmt: skip
    for name, window in WINDOWS.items():
        start = window.start(end)
        in_window = exposures.select((exposures.served_at > start) & (exposures.served_at <= end))
        out[name] = by_variant_and_placement(in_window, against, events(start))
    return out


def by_variant_and_placement(
    exposures: Exposures, against: HealthReference, events: Mapping[Group, int]
) -> HealthByGroup:
    """Compute {variant: {placement: numbers}} of groups with a request or an event."""
    groups: HealthByGroup = {}
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
        return metrics.long_tail_share(counts, _flags(against.tail, len(counts)))

    numbers: dict[str, Callable[[NDArray[Any]], float]] = {
        "entropy": lambda counts: metrics.entropy(counts, against.n_items),
        "coverage": lambda counts: metrics.coverage(counts, against.n_items),
        "gini": lambda counts: metrics.gini(counts, against.n_items),
        "long_tail_share": tail_share,
    }
    found = {name: metrics.equal_n(slots, number, seed) for name, number in numbers.items()}
    return {group: {name: bootstrap.plain(value[group]) for name, value in found.items()} for group in groups}
