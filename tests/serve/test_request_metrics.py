"""Counts and latencies of HTTP requests in `/metrics`."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from servers import Server

from recloop.monitoring.exposition import metrics_text
from recloop.serve.request_metrics import RequestMetrics, request_families

Series = dict[tuple[str, str, str], float]
SECONDS = "recloop_http_request_duration_seconds"


def totals(text: str) -> Series:
    """Requests by method, route and status."""
    return {
        (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "recloop_http_requests_total"
    }


def added(client: httpx.Client, send: Callable[[], Any]) -> Series:
    """Requests that ``send`` adds, without the two scrapes."""
    before = totals(client.get("/metrics").text)
    send()
    after = totals(client.get("/metrics").text)
    scrape = ("GET", "/metrics", "200")
    return {key: n - before.get(key, 0) for key, n in after.items() if n != before.get(key, 0) and key != scrape}


@pytest.mark.parametrize(
    ("method", "path", "body", "series"),
    [
        ("GET", "/v1/recommend/u14?n=3", None, ("GET", "/v1/recommend/{user_id}", "200")),
        ("GET", "/v1/recommend/u14?n=0", None, ("GET", "/v1/recommend/{user_id}", "422")),
        ("GET", "/v1/recommend?user_id=u14", None, ("GET", "/v1/recommend", "200")),
        ("GET", "/v1/items/i01/similar", None, ("GET", "/v1/items/{item_id}/similar", "200")),
        ("GET", "/v1/items/unknown-item", None, ("GET", "/v1/items/{item_id}", "404")),
        ("POST", "/v1/events", [], ("POST", "/v1/events", "200")),
        ("POST", "/v1/events", 5, ("POST", "/v1/events", "422")),
        ("POST", "/v1/users", [], ("POST", "/v1/users", "200")),
        ("DELETE", "/v1/users", None, ("DELETE", "/v1/users", "405")),
        ("GET", "/v1/of-a-client/u14", None, ("GET", "other", "404")),
        ("GET", "/v1/health/ready", None, ("GET", "/v1/health/ready", "200")),
    ],
)
def test_request_is_counted_by_method_route_and_status(
    client: httpx.Client, method: str, path: str, body: Any, series: tuple[str, str, str]
) -> None:
    arguments = {} if body is None else {"json": body}
    assert added(client, lambda: client.request(method, path, **arguments)) == {series: 1}


def test_pipelined_and_malformed_requests_are_counted(client: httpx.Client, server: Server) -> None:
    address = (client.base_url.host, client.base_url.port)

    def send() -> None:
        lists = b"GET /v1/recommend/u1 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3
        for content in (lists, b"nonsense\r\n\r\n"):
            with socket.create_connection(address, timeout=20) as connection:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass

    assert added(client, send) == {("GET", "/v1/recommend/{user_id}", "200"): 3, ("unknown", "other", "400"): 1}


def test_histogram_has_the_count_of_the_counter_and_the_scrape_is_in_flight(client: httpx.Client) -> None:
    client.get("/v1/recommend/u14")
    samples = [one for family in text_string_to_metric_families(client.get("/metrics").text) for one in family.samples]
    listed = [one for one in samples if one.labels.get("route") == "/v1/recommend/{user_id}"]
    (total,) = [one.value for one in listed if one.name.endswith("requests_total") and one.labels["status"] == "200"]
    buckets = [one for one in listed if one.name == f"{SECONDS}_bucket" and one.labels["status"] == "200"]
    counts = [one.value for one in buckets]
    assert counts == sorted(counts)
    assert (buckets[-1].labels["le"], counts[-1]) == ("+Inf", total)
    (seconds,) = [one.value for one in listed if one.name == f"{SECONDS}_sum" and one.labels["status"] == "200"]
    assert 0 < seconds < 60 * total
    assert [one.value for one in samples if one.name == "recloop_http_requests_in_flight"] == [1]


def test_latency_falls_into_its_bucket() -> None:
    metrics = RequestMetrics()
    for seconds in (0.001, 0.0011, 0.5, 11.0):
        metrics.add("GET", "/v1/status", 200, seconds)
    text = metrics_text(request_families(metrics.snapshot())).decode()
    counts = {
        line.split('le="')[1].split('"')[0]: float(line.split()[-1]) for line in text.splitlines() if "_bucket{" in line
    }
    assert (counts["0.001"], counts["0.0025"], counts["0.25"], counts["0.5"]) == (1, 2, 2, 3)
    assert (counts["10.0"], counts["+Inf"]) == (3, 4)


def test_counts_of_a_worker_are_merged_and_taken_once() -> None:
    writer, worker = RequestMetrics(), RequestMetrics()
    for metrics in (writer, worker, worker):
        metrics.add("GET", "/v1/status", 200, 0.002)
    worker.add("GET", "/v1/status", 503, 0.002)
    writer.merge(worker.take())
    writer.merge(worker.take())
    found = {key.status: (sum(counts.counts), counts.seconds) for key, counts in writer.snapshot().series}
    assert found == {200: (3, pytest.approx(0.006)), 503: (1, pytest.approx(0.002))}
