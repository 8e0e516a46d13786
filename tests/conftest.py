"""Fixtures that many tests share: the seeded world, a project folder of it, the data sets beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from recloop.world import World

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"

# One deadline for all machines would fail the slow ones; examples are drawn from a fixed seed, so a red test stays red.
settings.register_profile("recloop", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("recloop")

# Two test processes share two cores: more threads each would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def world() -> World:
    """The small world: 300 users, 200 items, about 11,500 events."""
    return World(seed=0)


@pytest.fixture
def world_folder(world: World, tmp_path: Path) -> Path:
    """The world written as a project of its own for this test."""
    return world.write(tmp_path / "shop")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets beside the checkout; tests that need it are marked ``data``."""
    if not SHARED.is_dir():
        pytest.skip("needs the data sets in ../shared/data, which are not there")
    return SHARED
