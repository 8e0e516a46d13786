"""Shared fixtures: the simulated shop, a small project after its first run, servers, data sets."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from fault_runs import SHARE, Facts
from hypothesis import settings

from recloop import loop
from recloop.cli import run
from recloop.evaluation import paired
from recloop.project import Project, open_project
from recloop.simulation.shop import SimulatedShop

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "benchmarks" / "results" / "faults.json"
SHARED = ROOT.parent / "shared" / "data"

# A deadline would fail on slow machines; a fixed seed draws the same examples in each run.
settings.register_profile("thorough", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("fast", settings.get_profile("thorough"), max_examples=20)
settings.load_profile("thorough")

# Two test processes share two cores, so more threads would only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

COUNTING = """
[model]
name = "covisitation"
[placement.home]
weights = { history = 1.0, neighbours = 0.5, popular = 0.25 }
[placement.cart]
list = "popular"
filter = "category <> 'tea'"
n = 3
"""


def pytest_configure(config: pytest.Config) -> None:
    """Draw fewer examples if the slow tests are deselected, as in `make test`."""
    if "not slow" in config.getoption("markexpr"):
        settings.load_profile("fast")


@pytest.fixture(scope="session", autouse=True)
def few_timed_queries() -> Iterator[None]:
    """Let the latency gate time 30 queries instead of 200, to save time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired, "TIMED_QUERIES", 30)
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def simulated_shop() -> SimulatedShop:
    """The small simulated shop: 300 users, 200 items, about 11,500 events."""
    return SimulatedShop(seed=0)


@pytest.fixture
def simulated_shop_folder(simulated_shop: SimulatedShop, tmp_path: Path) -> Path:
    """A new project folder with the simulated shop."""
    return simulated_shop.write(tmp_path / "shop")


@pytest.fixture(scope="session")
def trained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only project folder: live baselines over 60 users and 80 items."""
    folder = SimulatedShop(seed=0, users=60, items=80).write(tmp_path_factory.mktemp("turned") / "shop")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write(COUNTING)
    loop.first_run(open_project(folder))
    return folder


@pytest.fixture
def project(trained_folder: Path, tmp_path: Path) -> Project:
    """A copy of the shared project."""
    return open_project(shutil.copytree(trained_folder, tmp_path / "shop"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run one command line in this process: exit code, stdout, stderr."""

    def call(*words: str | Path) -> tuple[int, str, str]:
        code = run([str(word) for word in words])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def serving() -> Iterator[Callable[..., servers.Server]]:
    """Start servers, and stop those that are left at the end of a test."""
    started: list[servers.Server] = []

    def one(root: Path, *words: str, **more: Any) -> servers.Server:
        started.append(servers.start(root, *words, **more))
        return started[-1]

    yield one
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets next to the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs the data sets in ../shared/data, which are not there")
    return SHARED


@pytest.fixture
def facts() -> Iterator[Facts]:
    """Facts of one run; `make faults` adds them to the result file, each with its commit and duration."""
    facts: Facts = {}
    begin = time.monotonic()
    yield facts
    if not SHARE:
        return
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True)
    kept = json.loads(FAULTS.read_text("utf-8"))["runs"] if FAULTS.exists() else {}
    for name, found in facts.items():
        kept[name] = {
            **found,
            "seconds": round(time.monotonic() - begin, 1),
            "share": SHARE,
            "commit": commit.stdout.strip()[:7],
        }
    machine = f"{platform.system()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    content = {"command": "make faults SHARE=share", "machine": machine, "runs": kept}
    FAULTS.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", "utf-8")
