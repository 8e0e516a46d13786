"""Fixtures of the tests of faults."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_runs import SHARE, Facts

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "faults.json"


@pytest.fixture
def facts() -> Iterator[Facts]:
    """Facts of one run; `make faults` adds them to the result file, each with its commit and duration."""
    facts: Facts = {}
    begin = time.monotonic()
    yield facts
    if not SHARE:
        return
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    kept = json.loads(RESULT.read_text("utf-8"))["runs"] if RESULT.exists() else {}
    for name, found in facts.items():
        kept[name] = {
            **found,
            "seconds": round(time.monotonic() - begin, 1),
            "share": SHARE,
            "commit": commit.stdout.strip()[:7],
        }
    machine = f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    content = {"command": "make faults SHARE=share", "machine": machine, "runs": kept}
    RESULT.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
