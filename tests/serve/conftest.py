"""One server over a copy of the small shop, for tests that only read or add rows."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import servers

USER_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def server(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """One server for all tests of a file; requests may set the time in a header."""
    folder = tmp_path_factory.mktemp("served") / "shop"
    shutil.copytree(trained_folder, folder)
    server = servers.start(folder, "--set", "serve.allow_time_header=true")
    try:
        yield server
        assert server.stop() == 0
    finally:
        server.close()


@pytest.fixture
def client(server: servers.Server) -> httpx.Client:
    return server.client


@pytest.fixture(scope="module")
def openapi_document(server: servers.Server) -> dict[str, Any]:
    """The OpenAPI document as the server returns it."""
    return server.client.get("/openapi.json").json()


@pytest.fixture
def user() -> str:
    """A user id that no other test uses."""
    return f"t-{next(USER_NUMBERS)}"
