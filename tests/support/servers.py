"""Servers for tests: `recloop serve` as a child process, and its stored decisions."""

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
"""Time limit for slow machines; no test measures it."""
MARKS = itertools.count()
WITHOUT_CONSOLE = ("-c", 'import sys; sys.modules["nicegui"] = None; from recloop.cli import main; main()')
"""Start a server that cannot import NiceGUI, which takes half the time."""


@dataclass
class Server:
    """``recloop serve`` as a child process, with a client that has the admin token."""

    process: subprocess.Popen[str]
    client: httpx.Client
    root: Path
    url: str
    bundle: str
    errors: Path
    token: str

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Stop the server and return its exit code."""
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """Close the client and kill the process if it runs."""
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def decided(self, **headers: str) -> list[Decision]:
        """Return the decisions of all requests answered so far.

        Decisions are written in order after the answers, so one more request marks the end.
        """
        mark = f"mark-{next(MARKS)}"
        headers |= {"X-Request-Id": mark}
        response = self.client.get("/v1/recommend/mark", params={"n": 1}, headers=headers)
        assert response.status_code == 200, response.text
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
    """A client of a service in this process, with its admin token."""
    headers = {"Authorization": f"Bearer {app.state.service.token}"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost", headers=headers)


def inside(app: Starlette, work: Callable[[httpx.AsyncClient, Any], Awaitable[None]]) -> None:
    """Run requests against a service in this process; decisions are stored on return."""

    async def whole() -> None:
        async with local(app) as client:
            await work(client, app.state.service)

    try:
        asyncio.run(whole())
    finally:
        app.state.service.close()


def command(root: Path, *words: str, program: Sequence[str] = ("-m", "recloop")) -> list[str]:
    """The command line of a server on a folder."""
    return [sys.executable, *program, "-C", str(root), "serve", *words]


def run_beside(root: Path, *words: str) -> None:
    """Run a command beside the service."""
    done = subprocess.run([sys.executable, "-m", "recloop", "-C", str(root), *words], capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stdout[-2_000:]}{done.stderr[-2_000:]}"


def start(
    root: Path,
    *words: str,
    program: Sequence[str] = WITHOUT_CONSOLE,
    under: Sequence[str] = (),
    logs: Path | None = None,
) -> Server:
    """Start a server on a free port and wait for its first line.

    Args:
        under: Command that runs the server in its own process, such as ``strace -D``.
        logs: Folder of the file that stderr is written to; None: the root.
    """
    logs = root if logs is None else logs
    errors = logs / f"stderr-{len(list(logs.glob('stderr-*')))}"
    with errors.open("w") as file:
        process = subprocess.Popen(
            [*under, *command(root, "--port", "0", *words, program=program)], stdout=subprocess.PIPE, stderr=file, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    ready = re.fullmatch(r"ready (http://[\d.]+:\d+) bundle=(\S+)\n", line)
    if not ready:
        process.kill()
        process.wait()
        process.stdout.close()
    assert ready, f"{line!r} {errors.read_text()}"
    token = admin_token.read(root)
    headers = {"Authorization": f"Bearer {token}"}
    client = httpx.Client(base_url=ready[1], timeout=PATIENCE, headers=headers)
    return Server(process, client, root, ready[1], ready[2], errors, token)
