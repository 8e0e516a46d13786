"""Prometheus text of a service's metrics, for `/metrics`.

metrics_text([GaugeMetricFamily("recloop_generation", "Release generation", value=3)])   # b"# HELP recloop_generation ..."
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from recloop.monitoring.last_update import LastUpdate
from recloop.monitoring.summary import HealthSummary
from recloop.records import SECOND

GAUGES: Final = {
    "entropy": "Evenness of the slots over the available items: H / log2 N",
    "effective_items": "Number of equally frequent items with the same entropy: 2^H",
    "coverage": "Share of the available items that were shown",
    "gini": "Concentration of the slots: 0 if all items are shown equally often, 1 if only one is",
    "long_tail_share": "Share of slots with an item outside the most popular fifth",
    "new_item_share": "Share of slots with an item that had no positive event before the cut",
    "cold_coverage": "Share of users with fewer than 5 positives who had a personal list",
    "requests": "Answered requests in the window",
    "empty": "Answered requests of the window without a slot",
    "degraded": "Answered requests of the window that name a missing part",
    "users": "Distinct users in the window",
    "events": "Events received in the window that name a response of this variant and placement",
}
"""Gauges by window, variant and placement; formulas in `recloop.evaluation.metrics`."""

METRIC_NAMES: Final = {
    "requests": "window_requests", "users": "window_users", "events": "window_events", "empty": "window_empty_lists",
    "degraded": "window_degraded_requests",
}  # fmt: skip
"""Metric names that differ from their key; ``recloop_requests_total`` counts all requests ever answered."""
VERIFY_METRICS: Final = {
    "at": "Time of the last `recloop verify`, in seconds since 1970",
    "checked": "Decisions recomputed by the last `recloop verify`",
    "unexplained": "Decisions with an unexplained difference in the last `recloop verify`",
}  # fmt: skip
UPDATE_METRICS: Final = {
    "at_seconds": "Time at which the last `recloop update` ended, in seconds since 1970; alert if it is older than the interval",
    "duration_seconds": "Duration of the last `recloop update`",
    "stopped": "1 if a gate, a check or an error stopped the last `recloop update`, else 0",
}
PROCESS_METRICS: Final = {
    "generation": "Release generation that this process serves",
    "last_seq": "Last seq that this process has read",
    "degraded": "Number of parts that are missing from responses",
    "degraded_answers_total": "Answers without a part, such as a source of data or a filter",
    "mistyped_items_total": "Posted items with a value of another type than the live bundle has",
    "rejected_rows": "Rejected rows of requests that are kept; see `recloop rejected list`",
    "rejected_bytes": "Bytes of the rejected rows",
    "rejected_dropped_total": "Rejected rows that were dropped because the store was full or could not be written",
    "disk_free_share": "Free share of the fullest disk with a store; `serve.disk` has the thresholds",
    "decisions_unrecorded_total": "Decisions that were not recorded because the disk was nearly full",
    "decisions_dropped_total": "Decisions dropped because the buffer was full",
    "decisions_lost_total": "Decisions that ended processes accepted but did not write",
    "decisions_repeated_total": "Decisions not written because their key existed",
    "shadow_skipped_total": "Requests not scored in shadow because too many were waiting",
    "bundle_cut_seconds": "End of the rows that the live bundle was fitted on, in seconds since 1970; its age is time() less this",
}
"""Numbers of the service itself, without labels."""
PROCESS: Final = ProcessCollector(registry=None)
"""CPU time, memory, open files and start of the process; it collects nothing on another system than Linux."""


def exposition(summary: HealthSummary | None, process: Mapping[str, float], further: Iterable[Metric] = ()) -> bytes:
    """Format metrics of a service and its process as Prometheus text.

    Labels are windows, variants, placements and sources, never users or items.

    Args:
        summary: Health summary; None if the decisions cannot be read.
        process: Numbers of the service by name of `PROCESS_METRICS`; a name ending in ``_total`` is a counter.
        further: Families of another layer, such as those of the HTTP requests.
    """
    families = [] if summary is None else _families(summary)
    return metrics_text([*PROCESS.collect(), *_process_metrics(process), *further, *families])


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
    yield from () if summary.updated is None else _update_metrics(summary.updated)


def _update_metrics(update: LastUpdate) -> Iterable[Metric]:
    values = (update.at / SECOND, update.seconds, float(update.is_stopped))
    for (name, text), value in zip(UPDATE_METRICS.items(), values, strict=True):
        yield GaugeMetricFamily(f"recloop_update_{name}", text, value=value)


def _process_metrics(process: Mapping[str, float]) -> Iterable[Metric]:
    for name, value in process.items():
        family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        yield family(f"recloop_{name.removesuffix('_total')}", PROCESS_METRICS.get(name, name), value=value)


def metrics_text(families: Iterable[Metric]) -> bytes:
    """Format families without timestamps as Prometheus text 0.0.4.

    The result equals that of `prometheus_client.generate_latest`, which checks each label's name again for each sample.
    """
    lines = []
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        lines.append(f"# HELP {name} {_escaped(family.documentation)}\n# TYPE {name} {family.type}\n")
        for sample in family.samples:
            value = floatToGoString(sample.value)  # type: ignore[no-untyped-call]
            lines.append(f"{sample.name}{_label_text(tuple(sample.labels.items()))} {value}\n")
    return "".join(lines).encode()


@lru_cache(maxsize=4096)
def _label_text(labels: tuple[tuple[str, str], ...]) -> str:
    """Return the labels of a sample, by name, in braces."""
    if not labels:
        return ""
    values = {name: _escaped(value).replace('"', r"\"") for name, value in labels}
    return "{" + ",".join(f'{name}="{values[name]}"' for name in sorted(values)) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
