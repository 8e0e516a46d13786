"""One server over a copy of the small shop, for tests that only read or add rows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import servers


@pytest.fixture(scope="module")
def server(turned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """One server for all tests of a file; requests may set the time in a header."""
    folder = tmp_path_factory.mktemp("served") / "shop"
    shutil.copytree(turned, folder)
    server = servers.start(folder, "--set", "serve.allow_time_header=true")
    try:
        yield server
        assert server.stop() == 0
    finally:
        server.close()


@pytest.fixture
def client(server: servers.Server) -> httpx.Client:
    return server.client
