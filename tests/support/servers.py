"""Real servers for tests: `recloop serve` as a child process over a project folder, and what it has written down."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from recloop.records import Decision
from recloop.storage import admin_token, open_decisions

PATIENCE = 60.0
"""Seconds that a slow machine is given for what an idle one does at once; no test measures it."""
MARKS = itertools.count()
WITHOUT_CONSOLE = ("-c", 'import sys; sys.modules["nicegui"] = None; from recloop.cli import main; main()')
"""A server in whose process NiceGUI cannot be imported: it starts in half the time."""


@dataclass
class Server:
    """``recloop serve`` as a child process, and a client of it that has the admin token."""

    process: subprocess.Popen[str]
    client: httpx.Client
    root: Path
    url: str
    bundle: str
    errors: Path
    token: str

    def stop(self, how: int = signal.SIGTERM) -> int:
        """End it; its exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """End what is left of it, however it stands."""
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def decided(self, **headers: str) -> list[Decision]:
        """The decisions of every request answered so far.

        They are written behind the answers, in order: one more request is asked, and its row waited for.
        """
        mark = f"mark-{next(MARKS)}"
        headers |= {"X-Request-Id": mark}
        asked = self.client.get("/v1/recommend/mark", params={"n": 1}, headers=headers)
        assert asked.status_code == 200, asked.text
        store = open_decisions("sqlite:///store/decisions.db", self.root)
        try:
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                rows = store.rows()
                if any(row.client_request_id == mark for row in rows):
                    return [row for row in rows if not (row.client_request_id or "").startswith("mark-")]
                time.sleep(0.05)
        finally:
            store.close()
        raise AssertionError(f"the decision {mark} was not written within {PATIENCE:.0f} s")


def local(app: Starlette) -> httpx.AsyncClient:
    """A client of a service of this process, with its admin token."""
    told = {"Authorization": f"Bearer {app.state.service.token}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=told)


def inside(app: Starlette, work: Callable[[httpx.AsyncClient, Any], Awaitable[None]]) -> None:
    """Requests against a service of this process; its decisions are on the disk when it is back."""

    async def whole() -> None:
        async with local(app) as client:
            await work(client, app.state.service)

    try:
        asyncio.run(whole())
    finally:
        app.state.service.close()


def command(root: Path, *words: str, program: Sequence[str] = ("-m", "recloop")) -> list[str]:
    """The command line of a server over a folder."""
    return [sys.executable, *program, "-C", str(root), "serve", *words]


def start(root: Path, *words: str, program: Sequence[str] = WITHOUT_CONSOLE) -> Server:
    """Start a server on a free port and wait for its first line; ``program``: what Python is told to run."""
    errors = root / f"stderr-{len(list(root.glob('stderr-*')))}"
    with errors.open("w") as file:
        process = subprocess.Popen(
            command(root, "--port", "0", *words, program=program), stdout=subprocess.PIPE, stderr=file, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    ready = re.fullmatch(r"ready (http://127\.0\.0\.1:\d+) bundle=(\S+)\n", line)
    if not ready:
        process.kill()
        process.wait()
        process.stdout.close()
    assert ready, f"{line!r} {errors.read_text()}"
    token = admin_token.read(root)
    told = {"Authorization": f"Bearer {token}"}
    client = httpx.Client(base_url=ready[1], timeout=PATIENCE, headers=told)
    return Server(process, client, root, ready[1], ready[2], errors, token)
