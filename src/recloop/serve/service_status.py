"""Status, health and metrics of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recloop.files import JsonTree
from recloop.monitoring.exposition import exposition
from recloop.monitoring.summary import HealthCache, HealthSummary, Windows
from recloop.recommend import loading
from recloop.records import SECOND
from recloop.serve.alarms import alarm_families, current_alarms
from recloop.serve.request_metrics import RequestCounts, request_families
from recloop.serve.row_counts import row_families
from recloop.storage import releases
from recloop.storage.database import STORE_ERRORS

if TYPE_CHECKING:
    from recloop.serve.service import Service


class ServiceStatus:
    """Numbers about a service; its methods read files, not on the event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._health_cache = HealthCache(service.project, service.decisions)

    def status(self) -> JsonTree:
        """Build the content of ``GET /v1/status``; reads files, not on the event loop."""
        service = self._service
        last_seq = service.as_of
        watermark = service.archive.watermark
        return {
            **self._release_table(),
            "last_seq": last_seq,
            "watermark": watermark,
            "alarms": current_alarms(service, self._health_summary()),
            "degraded": service.degraded,
            "disk": {"free_share": service.disk.free_share, "unrecorded_decisions": service.disk.unrecorded},
            "degraded_answers": service.counts.degraded_answers,
            "mistyped_items": service.counts.mistyped_items,
            "event_rows": dict(service.rows.events),
            "rejected": {**service.rows.size()._asdict(), "dropped": service.rows.dropped},
            "shadow_skipped": service.shadow.skipped,
            "workers": 1 + (0 if service.workers is None else service.workers.n_started),
            **self.health(),
        }

    def _release_table(self) -> JsonTree:
        """Return the release part; without the control store, the deployed bundles."""
        service = self._service
        try:
            return loading.with_removed_flags(service.project, releases.release_table(service.control))
        except STORE_ERRORS:
            deployed = service.deployments
            live = deployed.live.bundle.id
            shadows = [shadow.bundle.id for shadow in deployed.shadows if shadow.bundle.id != live]
            return {
                "live": live,
                "shadow": shadows[0] if shadows else None,
                "experiment": None if deployed.candidate is None else deployed.candidate.bundle.id,
                "generation": deployed.generation,
                "bundles": [],
            }

    def health(self) -> JsonTree:
        """Return ``health`` of the last hour, day and week, ``events`` and ``verify``.

        The values are empty if the decisions cannot be read.
        """
        summary = self._health_summary()
        if summary is None:
            return {"health": {}, "events": {}, "verify": None}
        return {"health": summary.windows, "events": summary.received, "verify": summary.proven}

    def windows(self) -> Windows:
        """Return the windows of `health`."""
        windows: Windows = self.health()["health"]
        return windows

    def _health_summary(self) -> HealthSummary | None:
        service = self._service
        try:
            return self._health_cache.get(service.bundle, service.clock())
        except STORE_ERRORS:
            return None

    def metrics(self, requests: RequestCounts | None = None) -> bytes:
        """Build the content of ``GET /metrics``, with counts of HTTP requests."""
        service = self._service
        rejected = service.rows.size()
        process = {
            "generation": service.deployments.generation,
            "last_seq": service.as_of,
            "degraded": len(service.degraded),
            "disk_free_share": service.disk.free_share,
            "decisions_unrecorded_total": service.disk.unrecorded,
            "degraded_answers_total": service.counts.degraded_answers,
            "mistyped_items_total": service.counts.mistyped_items,
            "rejected_rows": rejected.rows,
            "rejected_bytes": rejected.bytes,
            "rejected_dropped_total": service.rows.dropped,
            "decisions_dropped_total": service.decisions.dropped,
            "decisions_lost_total": service.decisions.lost,
            "decisions_repeated_total": service.decisions.repeated,
            "shadow_skipped_total": service.shadow.skipped,
            "bundle_cut_seconds": service.bundle.cut / SECOND,
        }
        summary = self._health_summary()
        alarms = alarm_families(current_alarms(service, summary))
        families = [
            *alarms,
            *row_families(service.rows.events),
            *(() if requests is None else request_families(requests)),
        ]
        return exposition(summary, process, families)
