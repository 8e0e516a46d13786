"""Checks of the grocery demo: health, verification and a planted skew."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

from recloop.features.vocabulary import NumericBuckets
from recloop.ingest.client import TIMEOUT_SECONDS, serving
from recloop.monitoring import report, verify
from recloop.project import Project, open_project
from recloop.records import hash_unit_interval
from recloop.serve import app
from recloop.serve.service import Service

POLL_SECONDS = 0.1
"""Time between two counts of the committed decisions."""


def watch(project: Project, tell: Callable[[str], None]) -> None:
    """Report the health of the shown lists and verify every decision."""
    page = report.write(project, "", "", "")
    tell(
        f"{page['requests']} requests: entropy {page['entropy']:.3f}, long-tail share {page['long_tail_share']:.3f}, "
        f"cold-start coverage {_or_none(page['cold_coverage'])}, coverage {page['coverage']:.4f}; page {page['path']}"
    )
    found = verify.verify(project, 1000)
    tell("verify: {checked} checked, {equal} equal, {late} late, {unexplained} unexplained".format(**found)
         + f", largest score difference {found['max_score_diff']:.1g}")  # fmt: skip
    if found["unexplained"]:
        raise AssertionError(f"verify found {found['differences'][0]}")


def wait_for_decisions(project: Project, answers: int) -> None:
    """Wait until the running service has committed the decisions of its answers.

    Raises:
        TimeoutError: they are not committed within a minute.
    """
    deadline = time.monotonic() + TIMEOUT_SECONDS
    with project.open_decisions() as store:
        while len(store.rows(last=answers)) < answers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"fewer than {answers} decisions in {project.root} after {TIMEOUT_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)


def skewed_copy(project: Project) -> Path:
    """Copy a project that is not served, without its decisions, for `planted_skew`."""
    copy = project.root / "skewed"
    shutil.rmtree(copy, ignore_errors=True)
    left_out = shutil.ignore_patterns("skewed", "reports", "runs", "*.lock", "decisions.db*")
    shutil.copytree(project.root, copy, ignore=left_out)
    return copy


def planted_skew(copy: Path, now: int) -> list[str]:
    """Move a bucket edge in memory and on disk; return lines about its detection.

    The copy is removed.
    """
    try:
        code = f"from recloop.demo.grocery_checks import serve_skewed; serve_skewed({str(copy)!r})"
        with serving(copy, (sys.executable, "-c", code)) as client:
            client.now = now
            ids = pl.read_parquet(copy / "data" / "split" / "test.parquet", columns=["user_id"])["user_id"].unique()
            for household in sorted(ids.to_list(), key=lambda user: hash_unit_interval("demo", user))[:30]:
                client.recommend(household)
        found = verify.verify(open_project(copy), 1000)
        names = sorted({difference["name"] for difference in found["differences"]})
        if not found["unexplained"]:
            raise AssertionError("verify did not find the planted skew")
        fields = next(copy.glob("bundles/*/fields.json"))
        fields.write_text(fields.read_text("utf-8").replace("days_since_last", "last_since_days"), "utf-8")
        words = [sys.executable, "-m", "recloop", "-C", str(copy), "serve", "--port", "0"]
        refused = subprocess.run(words, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
        return [
            f"moved a bucket edge in the service's memory: verify finds {found['unexplained']} of {found['checked']} decisions, in {', '.join(names)}",
            f"moved it on disk: exit {refused.returncode}, {refused.stderr.strip().splitlines()[-1][:110]}...",
        ]
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def serve_skewed(root: str) -> None:
    """Serve a project with moved bucket edges in memory; used only by this check."""
    app.run(open_project(root), "127.0.0.1", 0, before_start=_move_edges)


def _move_edges(service: Service) -> None:
    number = service.bundle.fields.codes["context.days_since_last"]
    assert isinstance(number, NumericBuckets)
    object.__setattr__(number, "edges", tuple(edge * 50 for edge in number.edges))


def _or_none(value: float | None) -> str:
    return "no cold user" if value is None else f"{value:.3f}"
