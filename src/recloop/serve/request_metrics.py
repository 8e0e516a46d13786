"""Counts and latencies of HTTP requests by method, route template and status.

metrics = RequestMetrics(); metrics.add("GET", "/v1/status", 200, 0.004)
curl http://127.0.0.1:8088/metrics   # recloop_http_requests_total{method="GET",route="/v1/status",status="200"} 1
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the latency buckets in seconds; a last bucket has no bound."""
OTHER_ROUTE: Final = "other"
"""Route of requests that reached no route, so that paths of clients do not become labels."""
ROUTE_TEMPLATE: Final = "recloop.route"
"""Key of the route's template in the scope of a request."""
LABELS: Final = ("method", "route", "status")


class RouteKey(NamedTuple):
    """Labels of one series."""

    method: str
    route: str
    status: int


class RouteCounts(msgspec.Struct):
    """Requests of one series; ``counts`` has one number per bucket, not cumulated."""

    seconds: float
    counts: list[int]


class RequestCounts(msgspec.Struct):
    """Series of one process, and its requests in flight."""

    in_flight: int
    series: list[tuple[RouteKey, RouteCounts]]


class RequestMetrics:
    """Counts of finished requests and of those in flight; on the event loop only."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str, int], RouteCounts] = {}
        self.n_in_flight = 0

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        series = self._series.get((method, route, status))
        if series is None:
            series = self._series[method, route, status] = RouteCounts(0.0, [0] * (len(BUCKETS) + 1))
        series.counts[bisect_left(BUCKETS, seconds)] += 1
        series.seconds += seconds

    def merge(self, counts: RequestCounts) -> None:
        """Add the series of another process."""
        for key, added in counts.series:
            series = self._series.setdefault(key, RouteCounts(0.0, [0] * (len(BUCKETS) + 1)))
            series.seconds += added.seconds
            series.counts = [count + more for count, more in zip(series.counts, added.counts, strict=True)]

    def snapshot(self, in_flight: int = 0) -> RequestCounts:
        """Copy the series; ``in_flight`` counts further requests, such as waiting ones."""
        series = [
            (RouteKey(*key), RouteCounts(counts.seconds, list(counts.counts))) for key, counts in self._series.items()
        ]
        return RequestCounts(self.n_in_flight + in_flight, series)

    def take(self, in_flight: int = 0) -> RequestCounts:
        """Return the series and remove them."""
        counts = self.snapshot(in_flight)
        self._series.clear()
        return counts


def request_families(counts: RequestCounts) -> Iterable[Metric]:
    """Build the metric families of a service's requests."""
    yield GaugeMetricFamily(
        "recloop_http_requests_in_flight",
        "Requests that have arrived and are not answered yet, waiting ones included",
        value=counts.in_flight,
    )
    total = CounterMetricFamily(
        "recloop_http_requests",
        "Requests by method, route and status; 5xx over all is the error rate",
        labels=LABELS,
    )
    latency = HistogramMetricFamily(
        "recloop_http_request_duration_seconds",
        "Seconds from a request's head to its answer, waiting included; use histogram_quantile over its rate",
        labels=LABELS,
    )
    for key, route in sorted(counts.series):
        labels = (key.method, key.route, str(key.status))
        total.add_metric(labels, sum(route.counts))
        latency.add_metric(labels, _cumulative(route.counts), route.seconds)
    yield total
    yield latency


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    """Return (upper bound, requests up to it), as Prometheus reads a histogram."""
    bounds = [*map(floatToGoString, BUCKETS), "+Inf"]
    return list(zip(bounds, map(float, accumulate(counts)), strict=True))
