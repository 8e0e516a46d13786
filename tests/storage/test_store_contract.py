"""The SQLite stores keep the store contract, inside the project and elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from recloop.testing import StoreContract


class TestSQLite(StoreContract):
    """The default: three files in the project."""


class TestSQLiteElsewhere(StoreContract):
    """Absolute paths, as where the stores lie on a disk of their own."""

    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> None:
        folder: Path = tmp_path_factory.mktemp("disk of its own")
        names = ("log.db", "decisions.db", "control.db")
        request.instance.urls = tuple(f"sqlite:///{folder / name}" for name in names)
