"""Health summary of a project for status, `/metrics`, the report and the console.

summarize(project).numbers["day"]["live"]["home"]["entropy"]
curl http://127.0.0.1:8088/metrics         # recloop_entropy{window="day",variant="live",placement="home"} 0.83
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from recloop.bundle import Bundle
from recloop.monitoring.health import WINDOWS, health, reference
from recloop.monitoring.verify import last_result
from recloop.project import Project
from recloop.recommend.catalog import Catalog
from recloop.records import ITEM_ID, RECEIVED_AT, SECOND, Decision

CACHE_SECONDS: Final = 10.0
"""Seconds for which a summary is cached, so that a scrape and a page share it."""
WEEK: Final = WINDOWS["week"]

Windows = dict[str, dict[str, dict[str, dict[str, Any]]]]

GAUGES: Final = {
    "entropy": "Evenness of the slots over the available items: H / log2 N",
    "effective_items": "Number of equally frequent items with the same entropy: 2^H",
    "coverage": "Share of the available items that were shown",
    "gini": "Concentration of the slots: 0 if all items are shown equally often, 1 if only one is",
    "long_tail_share": "Share of slots with an item outside the most popular fifth",
    "new_item_share": "Share of slots with an item that had no positive event before the cut",
    "cold_coverage": "Share of users with fewer than 5 positives who had a personal list",
    "requests": "Answered requests in the window",
    "users": "Distinct users in the window",
    "events": "Events received in the window that name a response of this variant and placement",
}
"""Gauges by window, variant and placement; formulas in `recloop.evaluation.metrics`."""

METRIC_NAMES: Final = {"requests": "window_requests", "users": "window_users", "events": "window_events"}
"""Metric names that differ from their key; ``recloop_requests_total`` counts all requests ever answered."""
VERIFY_METRICS: Final = {
    "at": "Time of the last `recloop verify`, in seconds since 1970",
    "checked": "Decisions recomputed by the last `recloop verify`",
    "unexplained": "Decisions with an unexplained difference in the last `recloop verify`",
}  # fmt: skip
PROCESS_METRICS: Final = {
    "generation": "Release generation that this process serves",
    "last_seq": "Last seq that this process has read",
    "degraded": "Number of parts that are missing from responses",
    "decisions_dropped_total": "Decisions dropped because the buffer was full",
    "decisions_lost_total": "Decisions that earlier processes accepted but did not write",
    "decisions_repeated_total": "Decisions not written because their key existed",
    "shadow_skipped_total": "Requests not scored in shadow because too many were waiting",
}
"""Numbers of the process itself, without labels."""


@dataclass(frozen=True)
class HealthSummary:
    """Health ``numbers`` of `recloop.monitoring.health.health` and their sources.

    Attributes:
        received: Valid events received, by window, with or without a request id.
        proven: ``at``, ``checked``, ``unexplained`` of the last `recloop verify`; None if it never ran.
    """

    numbers: dict[str, Any]
    decisions: list[Decision]
    bundle: Bundle
    catalogue: Catalog
    totals: dict[tuple[str, str], int]
    received: dict[str, int]
    proven: dict[str, int] | None

    @property
    def windows(self) -> Windows:
        """Numbers by window, variant and placement, as ``health`` of ``GET /v1/status``."""
        return {name: self.numbers[name] for name in WINDOWS}


def summarize(
    project: Project,
    since: int | None = None,
    until: int | None = None,
    bundle: Bundle | None = None,
    learned: pl.DataFrame | None = None,
) -> HealthSummary:
    """Read the logged responses and compute their health.

    Args:
        since, until: Responses with ``since`` <= at <= ``until`` count; windows end at ``until`` or the newest response.
        bundle: The live bundle, if already loaded.
        learned: Labelled rows for the reference window; without them novelty and tail ratio are unknown.

    Raises:
        UserError: no bundle is live yet.
        BundleError: the live bundle's files differ from the registered ones.
    """
    if bundle is None:
        bundle = project.load_bundle()
    with project.open_log() as log, project.open_decisions() as store:
        posted = log.items()
        decisions = store.rows(since=since, until=None if until is None else until + 1)
        totals = store.totals()
        end = (
            until
            if until is not None
            else max((decision.served_at for decision in decisions if decision.role == "answer"), default=0)
        )
        received = log.received(end - WEEK if since is None else min(since, end - WEEK), end)
    if until is not None:
        posted = posted.filter(pl.col(RECEIVED_AT) <= until)
    catalogue = Catalog.from_frames([project.open_archive().items(), posted])
    hidden = [raw for raw in posted[ITEM_ID] if (item := catalogue.get(raw)) and (item.hidden or item.deleted)]
    numbers = health(decisions, reference(bundle, posted[ITEM_ID], hidden, learned), until, received)
    counts = {name: sum(at > end - length for at, _ in received) for name, length in WINDOWS.items()}
    return HealthSummary(numbers, decisions, bundle, catalogue, totals, counts, last_result(project))


class HealthCache:
    """Thread-safe cache of a service's summary, recomputed after `CACHE_SECONDS`."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._lock = threading.Lock()
        self._seen: tuple[float, str, HealthSummary] | None = None

    def get(self, bundle: Bundle, now: int) -> HealthSummary:
        """Summarize the last week up to ``now``, or up to the newest replayed request.

        Args:
            bundle: The live bundle of this process.
        """
        with self._lock:
            if self._seen is not None:
                cached_at, name, summary = self._seen
                if name == bundle.id and time.monotonic() - cached_at < CACHE_SECONDS:
                    return summary
            until = None if self._project.config.serve.allow_time_header else now
            started = time.monotonic()
            summary = summarize(self._project, None if until is None else until - WEEK, until, bundle)
            self._seen = started, bundle.id, summary
            return summary


def exposition(summary: HealthSummary | None, process: Mapping[str, float]) -> bytes:
    """Format metrics as Prometheus text.

    Labels are windows, variants, placements and sources, never users or items.

    Args:
        summary: Health summary; None if the decisions cannot be read.
        process: Further metrics of the process by name; a name ending in ``_total`` is a counter.
    """
    registry = CollectorRegistry()
    registry.register(_Families([*_process_metrics(process), *([] if summary is None else _families(summary))]))
    return generate_latest(registry)


class _Families:
    """Prometheus collector of prepared metric families."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _families(summary: HealthSummary) -> Iterable[Metric]:
    groups = [
        ((window, variant, placement), numbers)
        for window, variants in summary.windows.items()
        for variant, placements in variants.items()
        for placement, numbers in placements.items()
    ]
    labels = ("window", "variant", "placement")
    for name, description in GAUGES.items():
        family = GaugeMetricFamily(f"recloop_{METRIC_NAMES.get(name, name)}", description, labels=labels)
        for group, numbers in groups:
            if numbers[name] is not None:  # an unknown value is omitted, not 0
                family.add_metric(group, numbers[name])
        yield family
    shares = GaugeMetricFamily("recloop_source_share", "Share of slots by source", labels=(*labels, "source"))
    latency = GaugeMetricFamily(
        "recloop_latency_seconds", "Seconds from request to response", labels=(*labels, "quantile")
    )
    for group, numbers in groups:
        for source, share in numbers["sources"].items():
            shares.add_metric((*group, source), share)
        for quantile, name in (("0.5", "p50"), ("0.99", "p99")):
            if numbers["latency_ms"][name] is not None:
                latency.add_metric((*group, quantile), numbers["latency_ms"][name] / 1_000)
    yield shares
    yield latency
    answered = CounterMetricFamily("recloop_requests", "Answered requests", labels=labels[1:])
    for pair, count in sorted(summary.totals.items()):
        answered.add_metric(pair, count)
    yield answered
    events = GaugeMetricFamily("recloop_events", "Valid events received in the window", labels=labels[:1])
    for window, count in summary.received.items():
        events.add_metric((window,), count)
    yield events
    for name, value in (summary.proven or {}).items():
        scale, unit = (SECOND, "_seconds") if name == "at" else (1, "")
        yield GaugeMetricFamily(f"recloop_verify_{name}{unit}", VERIFY_METRICS[name], value=value / scale)


def _process_metrics(process: Mapping[str, float]) -> Iterable[Metric]:
    for name, value in process.items():
        family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        yield family(f"recloop_{name.removesuffix('_total')}", PROCESS_METRICS.get(name, name), value=value)
