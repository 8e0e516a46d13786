"""A small shop after its first turn, and real servers over copies of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from recloop import loop
from recloop.config import Project, open_project
from recloop.world import World

CONFIG = """
[model]
name = "covisitation"
[placement.home]
mix = { history = 1.0, neighbours = 0.5, popular = 0.25 }
[placement.cart]
list = "popular"
filter = "category <> 'tea'"
k = 3
"""


@pytest.fixture(scope="session")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every test copies: counting models over 60 users and 80 items, live."""
    folder = World(seed=0, users=60, items=80).write(tmp_path_factory.mktemp("serve") / "shop")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file:
        file.write(CONFIG)
    loop.turn(open_project(folder))
    return folder


@pytest.fixture
def shop(turned: Path, tmp_path: Path) -> Project:
    """A project of its own for this test."""
    folder = tmp_path / "shop"
    shutil.copytree(turned, folder)
    return open_project(folder)


@dataclass
class Server:
    """``recloop serve`` as a child process, and a client of it."""

    process: subprocess.Popen[str]
    client: httpx.Client
    url: str
    bundle: str
    errors: Path

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(20)


def command(root: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "recloop", "-C", str(root), "serve", *words]


def start(root: Path, *words: str) -> Server:
    """Start a server on a free port and wait for its first line."""
    errors = root / f"stderr-{len(list(root.glob('stderr-*')))}"
    with errors.open("w") as file:
        process = subprocess.Popen(
            command(root, "--port", "0", *words), stdout=subprocess.PIPE, stderr=file, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    ready = re.fullmatch(r"ready (http://127\.0\.0\.1:\d+) bundle=(\S+)\n", line)
    assert ready, f"{line!r} {errors.read_text()}"
    return Server(process, httpx.Client(base_url=ready[1], timeout=20), ready[1], ready[2], errors)


@pytest.fixture
def serving() -> Iterator[Callable[..., Server]]:
    """Starts servers, and ends those that a test left."""
    started: list[Server] = []

    def one(root: Path, *words: str) -> Server:
        started.append(start(root, *words))
        return started[-1]

    yield one
    for server in started:
        server.client.close()
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
        assert server.process.stdout is not None
        server.process.stdout.close()


@pytest.fixture(scope="module")
def server(turned: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a file that only ask or add; requests may carry their own time."""
    folder = tmp_path_factory.mktemp("served") / "shop"
    shutil.copytree(turned, folder)
    server = start(folder, "--set", "serve.replay=true")
    yield server
    assert server.stop() == 0
    assert server.process.stdout is not None
    server.process.stdout.close()


@pytest.fixture
def client(server: Server) -> httpx.Client:
    return server.client
