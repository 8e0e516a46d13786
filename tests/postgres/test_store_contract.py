"""The stores in a PostgreSQL database pass the contract of the SQLite stores."""

from __future__ import annotations

import pytest

from recloop.testing import StoreContract


class TestPostgres(StoreContract):
    """Log and control store in one database; the decisions stay in SQLite."""

    @pytest.fixture(autouse=True)
    def _database(self, address: str, request: pytest.FixtureRequest) -> None:
        request.instance.urls = (address, "sqlite:///store/decisions.db", address)
