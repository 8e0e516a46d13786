"""One PostgreSQL server per session; a database per test."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from postgres_server import PostgresServer, write_stores

from recloop import loop
from recloop.project import Project, open_project
from recloop.simulation.shop import SimulatedShop

COUNTING = """
[model]
name = "covisitation"
[placement.home]
weights = { history = 1.0, neighbours = 0.5, popular = 0.25 }
"""
NUMBERS = itertools.count(1)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A running server."""
    server = PostgresServer()
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def address(postgres: PostgresServer) -> Iterator[str]:
    """Address of a new database, which is dropped after the test."""
    name = f"shop_{next(NUMBERS)}"
    yield postgres.create(name)
    with postgres.connect() as session:
        session.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def trained(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after its first run; its log and control store are in the database ``trained``."""
    folder = SimulatedShop(seed=0, users=60, items=80).write(tmp_path_factory.mktemp("trained") / "shop")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write(COUNTING)
    write_stores(folder, postgres.create("trained"))
    loop.first_run(open_project(folder))
    return folder


@pytest.fixture
def shop(postgres: PostgresServer, trained: Path, tmp_path: Path) -> Iterator[Project]:
    """A copy of the trained project with a database of its own."""
    name = f"shop_{next(NUMBERS)}"
    with postgres.connect() as session:
        session.execute(f"CREATE DATABASE {name} TEMPLATE trained")
    folder = shutil.copytree(trained, tmp_path / "shop")
    write_stores(folder, postgres.address(name))
    yield open_project(folder)
    with postgres.connect() as session:
        session.execute(f"DROP DATABASE {name} WITH (FORCE)")
