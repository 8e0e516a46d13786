"""Bundles with random damage: each is refused by name or gives its golden lists, and none crashes the process."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import damaged_bundles
import pytest
from fault_runs import SHARE, Facts, size

from recloop import loop
from recloop.project import open_project
from recloop.simulation.shop import SimulatedShop

CASES_PER_PROCESS = 500
NETWORK = ("model.name=sasrec", "model.blocks=1", "train.epochs=1")


@pytest.fixture
def sound_bundle(trained_folder: Path, tmp_path: Path) -> Path:
    """A bundle of counts; in `make faults` one with a network."""
    folder = trained_folder
    if SHARE:
        folder = SimulatedShop(seed=0, users=120, items=80).write(tmp_path / "shop")
        loop.first_run(open_project(folder, sets=NETWORK))
    (bundle,) = (folder / "bundles").iterdir()
    return bundle


def outcomes(bundle: Path, cases: int) -> list[str]:
    """Outcome of each damage, in processes of their own."""
    found: list[str] = []
    while len(found) < cases:
        last = min(len(found) + CASES_PER_PROCESS, cases)
        words = [sys.executable, damaged_bundles.__file__, str(bundle), str(len(found)), str(last)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        found += [line.partition(" ")[2] for line in done.stdout.splitlines() if line[:1].isdigit()]
        if done.returncode:
            found.append(f"crashed with {done.returncode}: {done.stderr[-300:]}")
    return found


@pytest.mark.timeout(7200)
def test_damaged_bundle_is_refused_by_name_or_gives_its_golden_lists(sound_bundle: Path, facts: Facts) -> None:
    cases = size(150, 10_000)
    found = outcomes(sound_bundle, cases)
    kinds = Counter(text.split()[0] for text in found)
    facts["damaged bundles"] = {
        "bundles": cases,
        "refused": kinds["refused"],
        "equal_golden_lists": kinds["equal"],
        "other_errors_or_crashes": cases - kinds["refused"] - kinds["equal"],
    }
    assert [text for text in found if text.split()[0] not in ("refused", "equal")] == []
    assert kinds["refused"] > cases / 2
