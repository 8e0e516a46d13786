"""Alarms of a service: states that a person should act on (docs/ops.md)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily, Metric

from recloop.monitoring.summary import HealthSummary
from recloop.serve.disk import DiskLevel

if TYPE_CHECKING:
    from recloop.serve.service import Service


class Alarm(StrEnum):
    """State of a service that does not end by itself, or that loses something."""

    BUNDLE = "bundle"
    """A bundle cannot be loaded; an earlier one answers."""
    RELEASE = "release"
    """The release history cannot be read."""
    CONTROL = "control"
    """The control store was moved away or emptied."""
    LOG = "log"
    """The event log cannot be written."""
    DECISIONS = "decisions"
    """Decisions are not recorded."""
    DISK = "disk"
    """The disk of a store is nearly full."""
    REJECTED = "rejected"
    """Rejected rows were dropped since the start."""
    WORKERS = "workers"
    """Fewer processes answer than `serve.workers` names."""
    UPDATE = "update"
    """A gate, a check or an error stopped the last update."""
    VERIFY = "verify"
    """The last verification found a difference that nothing explains."""


PARTS = {Alarm.BUNDLE, Alarm.RELEASE, Alarm.CONTROL, Alarm.LOG, Alarm.DECISIONS}
"""Alarms with the name of a part that is missing from responses."""


def current_alarms(service: Service, summary: HealthSummary | None) -> list[Alarm]:
    """Return the alarms that hold now, by name."""
    missing = set(service.degraded)
    raised = {alarm for alarm in PARTS if alarm.value in missing}
    if service.disk.level >= DiskLevel.ALARM:
        raised.add(Alarm.DISK)
    if service.rows.dropped:
        raised.add(Alarm.REJECTED)
    if service.workers is not None and service.workers.n_started < service.workers.n_wanted:
        raised.add(Alarm.WORKERS)
    if summary is not None and summary.updated is not None and summary.updated.is_stopped:
        raised.add(Alarm.UPDATE)
    if summary is not None and summary.proven is not None and summary.proven["unexplained"]:
        raised.add(Alarm.VERIFY)
    return sorted(raised)


def alarm_families(raised: Iterable[Alarm]) -> Iterable[Metric]:
    """Build the metric family of the alarms: 1 for those that hold now."""
    held = set(raised)
    family = GaugeMetricFamily(
        "recloop_alarm", "1 if the alarm holds; docs/ops.md has a line for each", labels=("alarm",)
    )
    for alarm in Alarm:
        family.add_metric((alarm.value,), alarm in held)
    yield family
