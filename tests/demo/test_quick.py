"""`recloop demo --quick` in a process without torch; `make test-demo` runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from recloop.cli import main; main()"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_quick_demo_runs_the_loop_and_verifies_every_decision(tmp_path: Path) -> None:
    words = [sys.executable, "-c", WITHOUT_TORCH, "demo", "--quick", "--dir", str(tmp_path / "quick"), "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    said = {step["name"]: "\n".join(step["out"]) for step in tree["steps"]}
    assert [name for name in said if name in ("serve", "browse", "keep learning", "gate", "release", "verify", "report")] == [
        "serve", "browse", "keep learning", "gate", "release", "verify", "report",
    ]  # fmt: skip
    assert "2 accepted" in said["serve"]
    assert ", 1 row moved; the next list, without" in said["serve"]
    assert re.search(r"[1-9]\d* lists requested, [1-9]\d* rows posted", said["browse"])
    ((verdict, child),) = re.findall(r", \d+ s: (\w+) (\S*)", said["keep learning"])
    assert verdict in {"registered", "refused"}  # the responses of simulated users differ between runs
    assert said["release"].endswith(f"is from bundle {child}") == (verdict == "registered")
    checked, equal = re.findall(r"(\d+) (?:decisions|equal)", said["verify"])
    assert checked == equal
    assert "0 unexplained" in said["verify"]
    assert all(Path(path).exists() for path in tree["files"])
