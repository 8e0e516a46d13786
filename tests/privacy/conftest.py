"""A shop of 300 users whose ids no other text contains, after its first run."""

from __future__ import annotations

from pathlib import Path

import named_shop
import pytest


@pytest.fixture(scope="session")
def named_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only project folder with a table of users in its live bundle."""
    return named_shop.first_run(tmp_path_factory.mktemp("named") / "shop", users=300)
