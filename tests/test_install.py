"""The base package in a new environment: update, recommend and report without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recloop.simulation.shop import SimulatedShop

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the base package of this checkout."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", ROOT], check=True)
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_base_package_updates_and_reports_without_torch(fresh: Path, tmp_path: Path) -> None:
    shop = SimulatedShop(seed=0).write(tmp_path / "shop")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [fresh / "recloop", "-C", shop, *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

    probe = [fresh / "python", "-c", "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('pandas'))"]
    found = subprocess.run(probe, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert found.stdout.strip() == "None None"
    first = run("update", "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["verdict"] == "first"
    assert 'pip install "recloop[train]"' in first.stderr  # one line names the extra for networks
    for words in (("doctor",), ("evaluate",), ("recommend", "u001"), ("status",), ("report",), ("verify",)):
        done = run(*words)
        assert done.returncode == 0, (words, done.stderr)
    refused = run("train", "sasrec")
    assert refused.returncode == 2
    assert 'pip install "recloop[train]"' in refused.stderr


CONTRACTS = """
import recloop.testing

class TestMine(recloop.testing.ModelContract):
    model = "covisitation"

class TestStore(recloop.testing.StoreContract):
    pass
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_recloop_testing_with_its_extra_alone_runs_the_contracts(fresh: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    missing = [fresh / "python", "-c", "import recloop.testing"]
    done = subprocess.run(missing, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert 'pip install "recloop[testing]"' in done.stderr
    pip = [fresh / "python", "-m", "pip", "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", f"{ROOT}[testing]"], check=True)
    (tmp_path / "test_mine.py").write_text(CONTRACTS, "utf-8")
    done = subprocess.run(
        [fresh / "python", "-m", "pytest", "-q"], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout
