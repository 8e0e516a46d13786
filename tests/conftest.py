"""Fixtures that many tests share: the seeded world, a small shop after its first turn, servers, the data sets beside it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import servers
from hypothesis import settings

from recloop import loop
from recloop.evaluation import paired
from recloop.project import Project, open_project
from recloop.simulation.shop import SimulatedShop

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

# One deadline for all machines would fail the slow ones; examples are drawn from a fixed seed, so a red test stays red.
settings.register_profile("thorough", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("fast", settings.get_profile("thorough"), max_examples=30)
settings.load_profile("thorough")

# Two test processes share two cores: more threads each would only wait for one another.
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
    """Draw fewer examples where the slow tests are deselected, as `make test` does."""
    if "not slow" in config.getoption("markexpr"):
        settings.load_profile("fast")


@pytest.fixture(scope="session", autouse=True)
def few_timed_queries() -> Iterator[None]:
    """The latency gate asks 30 queries instead of 200, half of an update's time; the gate's rule has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paired, "TIMED", 30)
        yield


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def world() -> SimulatedShop:
    """The small world: 300 users, 200 items, about 11,500 events."""
    return SimulatedShop(seed=0)


@pytest.fixture
def world_folder(world: SimulatedShop, tmp_path: Path) -> Path:
    """The world written as a project of its own for this test."""
    return world.write(tmp_path / "shop")


@pytest.fixture(scope="session")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that tests copy, never change: counting models over 60 users and 80 items, live."""
    folder = SimulatedShop(seed=0, users=60, items=80).write(tmp_path_factory.mktemp("turned") / "shop")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write(COUNTING)
    loop.first_run(open_project(folder))
    return folder


@pytest.fixture
def shop(turned: Path, tmp_path: Path) -> Project:
    """That shop as a project of its own for this test."""
    return open_project(shutil.copytree(turned, tmp_path / "shop"))


@pytest.fixture
def serving() -> Iterator[Callable[..., servers.Server]]:
    """Starts servers, and ends those that a test left."""
    started: list[servers.Server] = []

    def one(root: Path, *words: str, **more: Any) -> servers.Server:
        started.append(servers.start(root, *words, **more))
        return started[-1]

    yield one
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets beside the checkout; tests that need it are marked ``data``."""
    if not SHARED.is_dir():
        pytest.skip("needs the data sets in ../shared/data, which are not there")
    return SHARED
