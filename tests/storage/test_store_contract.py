"""The SQLite stores pass the store contract inside and outside the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from recloop.testing import StoreContract


class TestSQLite(StoreContract):
    """The default: three files in the project."""


class TestSQLiteElsewhere(StoreContract):
    """Absolute paths, as with stores on a separate disk."""

    @pytest.fixture(autouse=True)
    def _elsewhere(self, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> None:
        folder: Path = tmp_path_factory.mktemp("separate disk")
        names = ("log.db", "decisions.db", "control.db")
        request.instance.urls = tuple(f"sqlite:///{folder / name}" for name in names)
