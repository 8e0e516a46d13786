"""The update benchmark on the simulated shop: rows, result files, and reuse of finished rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
    assert (frozen["against_frozen"]["value"], frozen["new_items_shown"]) == (0, 0)
    apart = warm["NDCG@10"]["value"] - frozen["NDCG@10"]["value"]
    assert warm["against_frozen"]["value"] == pytest.approx(apart, abs=1e-5)
    assert warm["queries"] == frozen["queries"] > 50
    before = (tmp_path / files[1]).read_bytes()
    again = subprocess.run([*words, "--row", "warm"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / files[1]).read_bytes() == before
    assert again.stdout == first.stdout
    assert "| warm | 0." in again.stdout
