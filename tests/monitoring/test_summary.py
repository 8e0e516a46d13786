"""Health summary: status, /metrics and the report show equal numbers."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import servers
from prometheus_client.parser import text_string_to_metric_families

from recloop.monitoring import report, summary, verify
from recloop.project import Project
from recloop.records import DAY, SECOND
from recloop.serve import console_backend
from recloop.serve.app import create
from recloop.serve.service import Service

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


def test_status_metrics_and_report_after_decisions_agree(project: Project, tmp_path: Path) -> None:
    panels = pytest.importorskip("recloop.serve.console_panels", reason="needs recloop[console]", exc_type=ImportError)
    verify.save_result(project, {"checked": 7, "unexplained": 1, "equal": 6, "differences": []}, NOW)
    status, text, service = status_and_metrics(project)
    health = status["health"]
    assert {name: one["live"]["home"]["events"] for name, one in health.items()} == {"hour": 2, "day": 2, "week": 2}
    assert health["hour"]["live"]["cart"]["events"] == 0
    assert status["events"] == {"hour": 4, "day": 4, "week": 4}
    assert status["verify"] == {"at": NOW, "checked": 7, "unexplained": 1}
    assert set(health) == {"hour", "day", "week"}
    assert {name: one["live"]["home"]["requests"] for name, one in health.items()} == {
        "hour": 21,
        "day": 21,
        "week": 51,
    }
    assert health["hour"]["live"]["cart"]["requests"] == 5
    found = samples(text)
    for window, variants in health.items():
        for placement, numbers in variants["live"].items():
            labels = frozenset({"window": window, "variant": "live", "placement": placement}.items())
            for name in ("entropy", "long_tail_share", "cold_coverage", "coverage", "gini", "effective_items"):
                if numbers[name] is None:
                    assert (f"recloop_{name}", labels) not in found
                else:
                    assert found[f"recloop_{name}", labels] == numbers[name], (window, placement, name)
            assert found["recloop_window_requests", labels] == numbers["requests"]
            assert found["recloop_window_events", labels] == numbers["events"]
            slow = labels | {("quantile", "0.99")}
            assert found["recloop_latency_seconds", slow] == numbers["latency_ms"]["p99"] / 1_000
        assert found["recloop_events", frozenset({("window", window)})] == status["events"][window]
    proven = [found[f"recloop_verify_{name}", frozenset()] for name in ("at_seconds", "checked", "unexplained")]
    assert proven == [NOW / SECOND, 7, 1]
    assert console_backend.ServiceConsoleBackend(service).windows() == health  # the numbers of the console
    assert (
        panels.last_verification(status["verify"])
        == "verify: 1 of 7 with an unexplained difference, 2025-07-08 18:40 UTC"
    )
    home = frozenset({"variant": "live", "placement": "home"}.items())
    assert found["recloop_requests_total", home] == 51
    # The report over the last hour has equal numbers; its windows are those of status.
    seen = summary.summarize(project, until=NOW)
    for window, variants in health.items():
        for placement, numbers in variants["live"].items():
            assert {name: seen.windows[window]["live"][placement][name] for name in numbers} == numbers
    hour = "2025-07-08T17:41:00Z"  # a minute before the first of the 21
    written = report.write(project, hour, "2025-07-08T18:40:00Z", str(tmp_path / "page.html"))
    whole = summary.summarize(project, NOW - 3_600 * SECOND, NOW).numbers["whole"]
    assert {key: written[key] for key in report.KEYS} == {key: whole[key] for key in report.KEYS}
    assert (written["requests"], written["events"], written["verify"]) == (26, 2, status["verify"])
    assert "1 of 7 decisions have an unexplained difference" in (tmp_path / "page.html").read_text("utf-8")
    assert panels.last_verification(None) == "verify: not run yet"


def test_metrics_labels_contain_no_ids(project: Project) -> None:
    _, text, _ = status_and_metrics(project)
    labels = {
        (name, value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        for name, value in sample.labels.items()
    }
    assert {name for name, _ in labels} == {"window", "variant", "placement", "source", "quantile"}
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
    monkeypatch.setattr(summary, "FRESH", 0.0)
    assert own.get(service.bundle, NOW + DAY) is not first


def test_status_with_unreadable_decisions_still_answers(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    app = create(project, clock=Clock())
    service: Service = app.state.service
    monkeypatch.setattr(summary, "summarize", broken)
    try:
        assert service.windows() == {}
        assert (service.status()["health"], service.status()["verify"]) == ({}, None)
        assert b"recloop_generation" in service.metrics()
    finally:
        service.close()
