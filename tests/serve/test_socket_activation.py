"""Restarts behind a socket that another process holds (`recloop serve --fd N`), and two SIGTERMs."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import servers

from recloop.errors import UserError
from recloop.project import Project
from recloop.serve import server as server_module

TIMEOUT = httpx.Timeout(servers.PATIENCE)


class Client(threading.Thread):
    """A keep-alive client that never sends a request again."""

    def __init__(self, url: str, until: threading.Event) -> None:
        super().__init__()
        self._url = url
        self._until = until
        self.answered = 0
        self.failed: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=TIMEOUT) as client:
            while not self._until.is_set():
                try:
                    answer = client.get("/v1/recommend/u14", params={"n": 3})
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                    continue
                if answer.status_code != 200:
                    self.failed.append(answer.text)
                self.answered += 1
                time.sleep(0.01)


@contextmanager
def activated(root: Path, listening: socket.socket) -> Iterator[subprocess.Popen[str]]:
    """A server on a socket of this process."""
    descriptor = listening.fileno()
    words = servers.command(root, "--fd", str(descriptor), program=servers.WITHOUT_CONSOLE)
    with (root / "stderr-fd").open("a") as errors:
        process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=errors, text=True, pass_fds=[descriptor],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.fullmatch(r"ready (http://\S+) bundle=\S+\n", line)
    assert match, line
    return match[1]


def restart(project: Project, n_restarts: int, n_clients: int) -> list[Client]:
    """Restart a server behind one socket while clients ask without a pause."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        until = threading.Event()
        clients: list[Client] = []
        for _ in range(n_restarts + 1):
            with activated(project.root, listening) as process:
                url = ready(process)
                assert url.endswith(f":{listening.getsockname()[1]}")
                if not clients:
                    clients = [Client(url, until) for _ in range(n_clients)]
                    for client in clients:
                        client.start()
                time.sleep(1.0)
                process.send_signal(signal.SIGTERM)
                assert process.wait(servers.PATIENCE) == 0
        with activated(project.root, listening) as process:
            ready(process)
            until.set()
            for client in clients:
                client.join(servers.PATIENCE)
            process.send_signal(signal.SIGTERM)
            assert process.wait(servers.PATIENCE) == 0
    return clients


def test_restarts_behind_one_socket_lose_no_request(project: Project) -> None:
    clients = restart(project, n_restarts=1, n_clients=8)
    assert [client.failed for client in clients] == [[] for _ in clients]
    assert min(client.answered for client in clients) > 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_restarts_behind_one_socket_lose_no_request(project: Project) -> None:
    clients = restart(project, n_restarts=20, n_clients=64)
    assert [client.failed for client in clients] == [[] for _ in clients]


def test_descriptor_that_is_not_a_listening_socket_is_refused(tmp_path: Path) -> None:
    with (
        (tmp_path / "file").open("w") as file,
        socket.socket() as unbound,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        socket.socket(socket.AF_UNIX) as local,
    ):
        local.bind(str(tmp_path / "socket"))
        local.listen()
        for descriptor in (file.fileno(), unbound.fileno(), datagrams.fileno(), local.fileno(), 9_999):
            with pytest.raises(UserError, match="socket") as caught:
                server_module.adopt(descriptor)
            assert caught.value.name == "--fd"


def test_serve_on_the_descriptor_of_a_file_exits_2(project: Project) -> None:
    with (project.root / "file").open("w") as file:
        words = servers.command(project.root, "--fd", str(file.fileno()), program=servers.WITHOUT_CONSOLE)
        done = subprocess.run(words, capture_output=True, text=True, pass_fds=[file.fileno()], check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "an open socket" in done.stderr


def test_serve_with_a_descriptor_and_a_port_exits_2(project: Project) -> None:
    words = servers.command(project.root, "--fd", "3", "--port", "0", program=servers.WITHOUT_CONSOLE)
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no --host and no --port" in done.stderr


def test_public_descriptor_without_keys_exits_2(project: Project) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listening:
        words = servers.command(project.root, "--fd", str(listening.fileno()), program=servers.WITHOUT_CONSOLE)
        done = subprocess.run(words, capture_output=True, text=True, pass_fds=[listening.fileno()], check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "serve.host=0.0.0.0" in done.stderr


def test_two_sigterms_end_with_0_and_keep_the_decisions(project: Project) -> None:
    server = servers.start(project.root)
    address = (server.client.base_url.host, server.client.base_url.port)
    try:
        for _ in range(5):
            assert server.client.get("/v1/recommend/u14").status_code == 200
        with socket.create_connection(address) as half_open:
            half_open.sendall(b"GET /v1/recom")
            for _ in range(2):
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.2)
            assert server.process.wait(servers.PATIENCE) == 0
            with suppress(ConnectionError):
                half_open.recv(65_536)
    finally:
        server.close()
    assert "Traceback" not in server.errors.read_text()
    store = project.open_decisions()
    assert len(store.rows()) == 5
    store.close()
