"""Privacy: no connection to other machines, and stores that only their owner reads."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from recloop.project import Project

FAST = (("recommend", "u001"),)
SLOW = (
    ("status",),
    ("verify",),
    ("report",),
    ("evaluate",),
    ("doctor",),
    ("update", "--full"),
    ("train", "gru4rec", "--set", "train.time_budget=1s"),
)
VERBS = (*FAST, *(pytest.param(words, marks=pytest.mark.slow) for words in SLOW))
ADDRESS = re.compile(r"sin6?_port=htons\((\d+)\).*?(?:inet_addr\(\"|inet_pton\(AF_INET6, \")([^\"]+)")
LOOPBACK = re.compile(r"127\.|::1$|::ffff:127\.")


def contacts(trace: Path) -> list[str]:
    """Addresses beside loopback in the network calls of a trace."""
    found = ADDRESS.findall(trace.read_text("utf-8", "replace"))
    return [f"{address}:{port}" for port, address in found if not LOOPBACK.match(address)]


def traced(trace: Path, project: Project, *words: str) -> list[str]:
    """Command line of a verb whose network calls are written to a file."""
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    return [
        "strace",
        "-f",
        "-qq",
        "-e",
        calls,
        "-o",
        str(trace),
        sys.executable,
        "-m",
        "recloop",
        "-C",
        str(project.root),
        *words,
    ]


def test_trace_finds_a_connection(tmp_path: Path) -> None:
    """The check of the next tests can fail."""
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.1', 53))"
    words = ["strace", "-f", "-qq", "-e", "trace=connect", "-o", str(tmp_path / "trace"), sys.executable, "-c", code]
    subprocess.run(words, check=True)
    assert contacts(tmp_path / "trace") == ["192.0.2.1:53"]


@pytest.mark.parametrize("words", VERBS, ids=lambda words: words[0])
def test_verb_contacts_no_other_machine(project: Project, tmp_path: Path, words: tuple[str, ...]) -> None:
    """No dependency sends telemetry, although none is asked to be quiet by the caller."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run(traced(tmp_path / "trace", project, *words), env=environment, stdout=subprocess.DEVNULL, check=True)
    assert contacts(tmp_path / "trace") == []


def test_service_contacts_no_other_machine(project: Project, tmp_path: Path) -> None:
    """A service that answers lists opens connections on loopback only."""
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    words = traced(tmp_path / "trace", project, "serve", "--set", "serve.port=0")
    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True) as server:
        assert server.stderr is not None
        address = next(found[0] for line in server.stderr if (found := re.search(r"http://[0-9.]+:\d+", line)))
        for _ in range(3):
            urllib.request.urlopen(f"{address}/v1/recommend/u001", timeout=60).close()
        time.sleep(1)
        os.killpg(server.pid, signal.SIGTERM)
        server.communicate(timeout=60)
    assert contacts(tmp_path / "trace") == []


def test_stores_are_readable_by_their_owner_only(project: Project, tmp_path: Path) -> None:
    """New stores have mode 0600 in a folder of 0700; a writer takes the rights of others from an older file."""
    for file in project.store.glob("*.db*"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name
    older = project.store / "log.db"
    older.chmod(0o644)
    with project.open_log(write=True):
        pass
    assert stat.S_IMODE(older.stat().st_mode) == 0o600
    shutil.rmtree(project.store)
    with project.open_log(write=True):
        assert stat.S_IMODE(project.store.stat().st_mode) == 0o700
