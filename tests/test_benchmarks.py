"""Benchmarks in their small form: result files, reuse of finished rows, and the load of the serving benchmark."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path
from typing import ClassVar

import pytest


@pytest.mark.slow
def test_benchmark_update_reuses_rows_and_compares_with_the_frozen_model(root: Path, tmp_path: Path) -> None:
    words = ["--data", "world", "--projects", str(tmp_path / "projects"), "--results", str(tmp_path), "--set"]
    words = [sys.executable, str(root / "benchmarks" / "update.py"), *words, "model.name=covisitation"]
    first = subprocess.run([*words, "--row", "warm"], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    files = sorted(path.name for path in tmp_path.glob("update-*.json"))
    assert files == ["update-world-frozen-seed0.json", "update-world-warm-seed0.json"]
    frozen, warm = (json.loads((tmp_path / name).read_text()) for name in files)
    assert {"command", "commit", "fingerprint", "seed", "seconds", "gates", "NDCG@10"} <= set(warm)
    assert frozen["against_frozen"]["value"] == 0
    assert 0 <= frozen["new_items_shown"] < warm["new_items_shown"], "a frozen model shows new items of `cold_own` only"
    apart = warm["NDCG@10"]["value"] - frozen["NDCG@10"]["value"]
    assert warm["against_frozen"]["value"] == pytest.approx(apart, abs=1e-5)
    assert warm["queries"] == frozen["queries"] > 50
    before = (tmp_path / files[1]).read_bytes()
    again = subprocess.run([*words, "--row", "warm"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / files[1]).read_bytes() == before
    assert again.stdout == first.stdout
    assert "| warm | 0." in again.stdout


@pytest.mark.slow
def test_benchmark_serve_measures_all_sides_and_reuses_results(root: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(root / "benchmarks" / "serve.py"), "--quick", "--size", "500", "--python", str(root)]
    words += ["--projects", str(tmp_path / "projects"), "--results", str(tmp_path)]
    first = subprocess.run(words, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    result = json.loads((tmp_path / "serve-500.json").read_text())
    assert {"command", "commit", "machine", "seed"} <= set(result)
    assert (
        {"recloop", "kept", "before", "typical"}
        == set(result["rates"])
        == set(result["memory_mib"])
        == set(result["cpu_ms"])
    )
    assert all(rate > 0 for rates in result["rates"].values() for rate in rates)
    assert {"constant", "state", "encode", "mask", "sources", "fuse", "decision", "reply", "sum"} <= set(
        result["parts"]
    )
    assert result["updates"]["recloop"]["filter_ratio"] > 0
    before = (tmp_path / "serve-500.json").read_bytes()
    again = subprocess.run(words, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert (tmp_path / "serve-500.json").read_bytes() == before


class Answers(BaseHTTPRequestHandler):
    """Answers in two parts: 200 for lists, 404 otherwise; posts are counted."""

    protocol_version = "HTTP/1.1"
    posted: ClassVar[list[bytes]] = []

    def do_GET(self) -> None:
        body = b'{"items": [' + b"1," * 300 + b"1]}"
        self.send_response(200 if self.path == "/list" else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:100])
        self.wfile.flush()
        self.wfile.write(body[100:])

    def do_POST(self) -> None:
        self.posted.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_load_counts_complete_answers_and_failures(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    load = importlib.import_module("load")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        lists = load.Stream(cycle([load.get("/list")]), connections=3)
        missing = load.Stream(cycle([load.get("/missing")]), connections=1, rate=100.0)
        posts = load.Stream(cycle([load.post("/items", b"{}")]), connections=1, rate=100.0)
        load.run(served.server_address[1], [lists, missing, posts], 0.2)
        served.shutdown()
    assert len(lists.latencies) > 3
    assert not lists.failed
    assert lists.per_second == len(lists.latencies) / lists.seconds
    assert 0 < lists.milliseconds(50) <= lists.milliseconds(99)
    assert len(missing.failed) == len(missing.latencies) > 0
    assert missing.failed[0].startswith("HTTP/1.1 404")
    assert Answers.posted == [b"{}"] * len(posts.latencies)
    assert posts.latencies


@pytest.mark.slow
def test_benchmark_collect_runs_prepare_and_both_queries(root: Path, tmp_path: Path) -> None:
    words = ["--rows", "20000", "--rounds", "1", "--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, str(root / "benchmarks" / "collect.py"), *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    run = json.loads((tmp_path / "collect.json").read_text())["runs"][0]
    assert all(run[side]["cpu_seconds"] > 0 for side in ("prepare", "polars", "duckdb"))
    assert run["seconds_to_fastest_query"] > 0


def test_plot_cost_draws_the_results_that_exist(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    plot_cost = importlib.import_module("plot_cost")
    for size, milliseconds in (("3700", [2.0, 1.0, 9.0]), ("1000000", [4.0])):
        (tmp_path / f"serve-{size}.json").write_text(json.dumps({"cpu_ms": {"recloop": milliseconds}}))
    (tmp_path / "serve-heavy.json").write_text(json.dumps({"milliseconds": {"100": [2.0], "10": [3.0, 1.0]}}))
    assert plot_cost.by_items(tmp_path, "cpu_ms", plot_cost.CATALOGS) == {"recloop": [(3_700, 2.0), (1_000_000, 4.0)]}
    assert plot_cost.by_history(tmp_path) == {"recloop": [(10.0, 1.0), (100.0, 2.0)]}
    panels = plot_cost.picture(tmp_path).axes
    assert [len(panel.lines) for panel in panels] == [1, 1, 0, 0, 0, 0]


def test_page_of_the_quality_benchmark_is_that_of_its_results(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/benchmarks.md is made from the committed result files; a second seed makes a row a mean."""
    monkeypatch.syspath_prepend(str(root / "benchmarks"))
    page = importlib.import_module("quality_page")
    results = root / "benchmarks" / "results"
    assert (root / "docs" / "benchmarks.md").read_text("utf-8") == page.page(results)
    result = json.loads((results / "quality-ml-1m-sasrec-seed0.json").read_text())
    second = json.loads(json.dumps({**result, "seed": 1}))
    first, other = result["rows"][0]["NDCG@10"], second["rows"][0]["NDCG@10"]
    other["value"], other["low"] = other["value"] + 0.002, other["low"] + 0.004
    name = result["rows"][0]["model"]
    found = page.rows([result, {**second, "commit": "0123456789"}])[name]
    shown = f"| {first['value'] + 0.001:.4f} [{first['low'] + 0.002:.4f}, {first['high']:.4f}] |"
    assert shown in page.line(name, found)
    assert page.line(name, found).endswith(f"{result['commit'][:7]}, 0123456 |")
    assert "| 2 |" in page.line(name, found)
    towers = {**result, "name": "sasrec-short"}
    assert {"sasrec short", "served with sasrec short", "covisitation"} <= set(page.rows([towers]))
    assert not {"sasrec", "served with sasrec"} & set(page.rows([towers]))
    mind = json.loads((results / "quality-mind-covisitation-seed0.json").read_text())
    without_lengths = {**result, "lengths": []}
    cold = [line for line in page.cold_users([without_lengths, mind]) if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in cold] == ["| positives", "| 0", "| 1-2", "| 3-4"]
    assert cold[0] == "| positives | moments | users | popular | bought_before | covisitation | served |"
    assert cold[1].startswith(f"| 0 | {mind['lengths'][0]['moments']} | ")
    assert not [*page.cold_users([result])], "an earlier result file has no such rows"
    assert not [*page.cold_users([{**mind, "lengths": mind["lengths"][-1:]}])], "no user has few positives"
