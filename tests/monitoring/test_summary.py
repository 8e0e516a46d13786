"""Health summary: status, /metrics and the report show equal numbers."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import servers
from prometheus_client.parser import text_string_to_metric_families

from recloop.monitoring import last_update, report, summary, verify
from recloop.project import Project, open_project
from recloop.records import DAY, SECOND
from recloop.serve import console_backend
from recloop.serve.app import create
from recloop.serve.service import Service
from recloop.storage import DecisionLog

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
NOW = 1_752_000_000 * SECOND


class Clock:
    now = NOW

    def __call__(self) -> int:
        return self.now


def status_and_metrics(project: Project) -> tuple[dict[str, Any], str, Service]:
    """Answer 55 requests over two days; return status and /metrics."""
    clock = Clock()
    app = create(project, clock=clock)
    service: Service = app.state.service

    async def whole() -> tuple[dict[str, Any], str]:
        async with servers.local(app) as client:
            for at, placement, users in (
                (NOW - 2 * DAY, "home", 30),
                (NOW - 60 * SECOND, "home", 20),
                (NOW, "cart", 5),
            ):
                clock.now = at
                for number in range(users):
                    response = await client.get(f"/v1/recommend/u{number + 1:02}", params={"placement": placement})
                    assert response.status_code == 200
            answer = await client.get("/v1/recommend/unknown", headers={"X-Request-Id": "theirs"})
            named = answer.json()["request_id"]
            rows = [
                {
                    "user_id": "u01",
                    "item_id": "i01",
                    "event_type": "purchase",
                    "request_id": request,
                    "event_id": str(n),
                }
                for n, request in enumerate([named, named, "theirs", None])
            ]
            assert (await client.post("/v1/events", json=rows)).json()["accepted"] == 4
            assert service.decisions.flush()
            status, metrics = await client.get("/v1/status"), await client.get("/metrics")
            assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
            return status.json(), metrics.text

    try:
        return *asyncio.run(whole()), service
    finally:
        service.close()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@dataclass
class Summaries:
    """A project with 56 decisions and a saved verify result; its status and metrics at ``NOW``."""

    project: Project
    status: dict[str, Any]
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]
    service: Service

    def homes(self, key: str) -> dict[str, Any]:
        """One number of live's home placement by window."""
        return {window: variants["live"]["home"][key] for window, variants in self.status["health"].items()}


@pytest.fixture(scope="module")
def summaries(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Summaries:
    project = open_project(shutil.copytree(trained_folder, tmp_path_factory.mktemp("summary") / "shop"))
    verify.save_result(project, {"checked": 7, "unexplained": 1, "equal": 6, "differences": []}, NOW)
    status, text, service = status_and_metrics(project)
    return Summaries(project, status, samples(text), service)


def test_status_counts_requests_and_events_by_window(summaries: Summaries) -> None:
    status = summaries.status
    assert set(status["health"]) == {"hour", "day", "week"}
    assert summaries.homes("events") == {"hour": 2, "day": 2, "week": 2}
    assert summaries.homes("requests") == {"hour": 21, "day": 21, "week": 51}
    cart = status["health"]["hour"]["live"]["cart"]
    assert cart["events"] == 0
    assert cart["requests"] == 5
    assert status["events"] == {"hour": 4, "day": 4, "week": 4}
    assert status["verify"] == {"at": NOW, "checked": 7, "unexplained": 1}


def test_metrics_equal_the_numbers_of_status(summaries: Summaries) -> None:
    found = summaries.samples
    for window, variants in summaries.status["health"].items():
        for placement, numbers in variants["live"].items():
            labels = frozenset({"window": window, "variant": "live", "placement": placement}.items())
            measured = ("entropy", "long_tail_share", "cold_coverage", "coverage", "gini", "effective_items")
            exposed = {name: found.get((f"recloop_{name}", labels)) for name in measured}
            assert exposed == {name: numbers[name] for name in measured}, (window, placement)
            assert found["recloop_window_requests", labels] == numbers["requests"]
            assert found["recloop_window_events", labels] == numbers["events"]
            slow = labels | {("quantile", "0.99")}
            assert found["recloop_latency_seconds", slow] == numbers["latency_ms"]["p99"] / 1_000
        assert found["recloop_events", frozenset({("window", window)})] == summaries.status["events"][window]


def test_metrics_contain_totals_and_the_verify_result(summaries: Summaries) -> None:
    found = summaries.samples
    home = frozenset({"variant": "live", "placement": "home"}.items())
    assert found["recloop_requests_total", home] == 51
    result = {name: found[f"recloop_verify_{name}", frozenset()] for name in ("at_seconds", "checked", "unexplained")}
    assert result == {"at_seconds": NOW / SECOND, "checked": 7, "unexplained": 1}


def test_metrics_describe_the_process_and_the_bundle(summaries: Summaries) -> None:
    found = {name: value for (name, labels), value in summaries.samples.items() if not labels}
    assert found["recloop_bundle_cut_seconds"] == summaries.service.bundle.cut / SECOND
    assert 0 < found["process_start_time_seconds"] < time.time()
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"):
        assert found[name] > 0


def test_metrics_contain_the_last_update(summaries: Summaries) -> None:
    found = {name: value for (name, labels), value in summaries.samples.items() if not labels}
    made = last_update.read(summaries.project)
    assert made is not None
    assert made.verdict == "first"
    assert found["recloop_update_at_seconds"] == made.at / SECOND
    assert (found["recloop_update_duration_seconds"], found["recloop_update_stopped"]) == (made.seconds, 0)


def test_dashboard_reads_metrics_that_a_service_prints(summaries: Summaries) -> None:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for text in texts for name in re.findall(r"(?:recloop|process)_[a-z_]+", text)}
    printed = {name for name, _ in summaries.samples}
    assert len(named) > 10
    assert named <= printed
    labels = {label for _, pairs in summaries.samples for label, _ in pairs}
    assert set(re.findall(r"(\w+)=", " ".join(texts))) <= labels


def test_console_numbers_equal_those_of_status(summaries: Summaries) -> None:
    panels = pytest.importorskip("recloop.serve.console_panels", reason="needs recloop[console]", exc_type=ImportError)
    assert console_backend.ServiceConsoleBackend(summaries.service).windows() == summaries.status["health"]
    sentence = "verify: 1 of 7 with an unexplained difference, 2025-07-08 18:40 UTC"
    assert panels.last_verification(summaries.status["verify"]) == sentence
    assert panels.last_verification(None) == "verify: not run yet"


def test_summary_windows_equal_those_of_status(summaries: Summaries) -> None:
    summarized = summary.summarize(summaries.project, until=NOW)
    for window, variants in summaries.status["health"].items():
        for placement, numbers in variants["live"].items():
            assert {name: summarized.windows[window]["live"][placement][name] for name in numbers} == numbers


def test_report_of_the_last_hour_equals_the_summary(summaries: Summaries, tmp_path: Path) -> None:
    hour = "2025-07-08T17:41:00Z"  # a minute before the first of the 21
    written = report.write(summaries.project, hour, "2025-07-08T18:40:00Z", str(tmp_path / "page.html"))
    whole = summary.summarize(summaries.project, NOW - 3_600 * SECOND, NOW).numbers["whole"]
    assert {key: written[key] for key in report.RESULT_KEYS} == {key: whole[key] for key in report.RESULT_KEYS}
    assert written["requests"] == 26
    assert written["events"] == 2
    assert written["verify"] == summaries.status["verify"]
    assert "1 of 7 decisions have an unexplained difference" in (tmp_path / "page.html").read_text("utf-8")


def test_metrics_labels_contain_no_ids(project: Project) -> None:
    _, text, _ = status_and_metrics(project)
    labels = {
        (name, value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for name, value in sample.labels.items()
    }
    requests = {"method", "route", "status", "le", "alarm"}
    assert {name for name, _ in labels} == {"window", "variant", "placement", "source", "quantile", *requests}
    assert {value for name, value in labels if name == "route"} == {
        "/v1/recommend/{user_id}",
        "/v1/events",
        "/v1/status",
    }
    assert {value for name, value in labels if name == "variant"} == {"live"}
    assert "u01" not in text
    assert "i01" not in text


def test_health_windows_end_now_and_not_at_the_last_answer(project: Project) -> None:
    """Windows end now and not at the last answer, so an idle shop has empty windows."""
    _, _, service = status_and_metrics(project)
    late = summary.HealthCache(project).get(service.bundle, NOW + 3 * DAY)
    assert late.windows["day"] == {}
    assert late.windows["week"]["live"]["home"]["requests"] == 51
    replaying = project.config.model_copy(
        update={"serve": project.config.serve.model_copy(update={"allow_time_header": True})}
    )
    again = summary.HealthCache(Project(project.root, replaying)).get(service.bundle, NOW + 300 * DAY)
    assert again.windows["hour"]["live"]["cart"]["requests"] == 5  # a replay uses the time of its newest answer


def test_health_cache_reuses_its_result_while_fresh(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, service = status_and_metrics(project)
    own = summary.HealthCache(project)
    first = own.get(service.bundle, NOW)
    assert own.get(service.bundle, NOW + DAY) is first
    monkeypatch.setattr(summary, "CACHE_SECONDS", 0.0)
    assert own.get(service.bundle, NOW + DAY) is not first


def test_status_with_unreadable_decisions_still_answers(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    app = create(project, clock=Clock())
    service: Service = app.state.service
    monkeypatch.setattr(DecisionLog, "window", broken)
    try:
        assert service.summaries.windows() == {}
        assert (service.summaries.status()["health"], service.summaries.status()["verify"]) == ({}, None)
        assert b"recloop_generation" in service.summaries.metrics()
    finally:
        service.close()
