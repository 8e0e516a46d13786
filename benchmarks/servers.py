"""Servers of the serving benchmarks, each on the first core, until the end of a `with` block."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

HERE: Final = Path(__file__).resolve().parent
READY_SECONDS: Final = 600.0
ENCODE_ALWAYS: Final = """\
from recloop.cli import main
from recloop.recommend import sources
sources.KEEP_VECTORS = False
main()"""
"""Program of the side `recloop`: a user without new events is encoded again."""


@dataclass(frozen=True)
class Side:
    """Server on one side of the comparison.

    Attributes:
        path: Path of a list for a user and a category.
    """

    name: str
    port: int
    pid: int
    path: Callable[[str, str], str]


def recloop_command(python: Path | None, *words: str, encodes_always: bool = False) -> tuple[list[str], dict[str, str]]:
    """Command and environment of recloop in this environment, another one or a checkout."""
    environment = dict(os.environ)
    interpreter = sys.executable
    if python is not None and python.is_dir():
        environment["PYTHONPATH"] = str((python / "src").resolve())
    elif python is not None:
        interpreter = str(python)
        environment.pop("PYTHONPATH", None)
    program = ["-c", ENCODE_ALWAYS] if encodes_always else ["-m", "recloop"]
    return [interpreter, *program, *words], environment


@contextmanager
def recloop_server(project: Path, name: str, python: Path | None, with_filter: Callable[[str], str]) -> Iterator[Side]:
    """Serve a project on the first core."""
    port = free_port()
    command, environment = recloop_command(python, "serve", "--port", str(port), encodes_always=name == "recloop")
    with server(command, environment, project, port, "/v1/health/ready") as process:
        path = lambda user, value: f"/v1/recommend/{quote(user)}?n=10&filter={quote(with_filter(value))}"  # noqa: E731
        yield Side(name, port, process.pid, path)


@contextmanager
def typical_server(project: Path) -> Iterator[Side]:
    """Serve the same project by `typical.py` on the first core."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        words = [str(HERE / "typical.py"), str(project), "--port", str(port), "--database", f"{folder}/decisions.db"]
        with server([sys.executable, *words], dict(os.environ), project, port, "/constant") as process:
            path = lambda user, value: f"/recommend/{quote(user)}?n=10&category={quote(value)}"  # noqa: E731
            yield Side("typical", port, process.pid, path)


@contextmanager
def server(
    command: Sequence[str], environment: dict[str, str], folder: Path, port: int, ready: str, is_pinned: bool = True
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server on the first core or on all, wait until it is ready, and stop it at the end."""
    cores = sorted(os.sched_getaffinity(0))
    is_pinned = is_pinned and os.cpu_count() != 1 and shutil.which("taskset") is not None
    pinned = ["taskset", "-c", str(min(cores))] if is_pinned else []
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen([*pinned, *command], cwd=folder, env=environment, stdout=output, stderr=output)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not is_ready(port, ready):
                if process.poll() is not None or time.monotonic() > deadline:
                    output.seek(0)
                    raise SystemExit(f"{' '.join(command)}: {output.read()[-2_000:].decode('utf-8', 'replace')}")
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()
            process.wait(60)


def is_ready(port: int, path: str) -> bool:
    """True if the path answers 200."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    """Port that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
