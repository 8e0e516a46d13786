"""PostgreSQL server of the tests: a cluster in a temporary folder, run by an unprivileged user."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

PATIENCE: Final = 60.0
USER: Final = "recloop"
SETTINGS: Final = (
    "listen_addresses=127.0.0.1", "shared_buffers=32MB", "max_connections=40", "log_statement=none",
    "autovacuum_naptime=10min",
)  # fmt: skip


def binaries() -> Path:
    """Folder of ``initdb`` and ``postgres``; Debian keeps them out of the path.

    Raises:
        RuntimeError: PostgreSQL is not installed.
    """
    folders = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), *map(Path, os.get_exec_path())]
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise RuntimeError("PostgreSQL is not installed; try: apt-get install postgresql")


class PostgresServer:
    """A cluster on a unix socket and a free loopback port; its user has a password."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="recloop-postgres-"))
        self.password = secrets.token_urlsafe(16)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {}
        if os.geteuid() == 0:  # which the server refuses
            user = pwd.getpwnam("nobody")
            self._user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)
        create = [
            binaries() / "initdb", "-D", self.data, "-U", USER, "--pwfile", secret, "--auth", "scram-sha-256",
            "--encoding", "UTF8", "--locale", "C", "--no-sync",
        ]  # fmt: skip
        subprocess.run(
            create,
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            env={"PATH": os.environ["PATH"]},
            **self._user,
        )
        secret.unlink()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> str:
        """Messages of the server."""
        return (self.folder / "log").read_text("utf-8", "replace")

    def start(self) -> None:
        """Start the server and wait until it answers."""
        words = [word for setting in SETTINGS for word in ("-c", setting)]
        command = [binaries() / "postgres", "-D", self.data, "-k", self.folder, "-p", str(self.port), *words]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env={"PATH": os.environ["PATH"]}, **self._user
            )
        end = time.monotonic() + PATIENCE
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError:
                assert time.monotonic() < end, self.log
                time.sleep(0.05)
            else:
                return

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server; SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE)
            self._process = None

    def pause(self) -> None:
        """Stop all processes of the server, which then accepts connections and never answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)  # before its children, so that none is added
        for process in self._children():
            os.kill(process, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        assert self._process is not None
        for process in (*self._children(), self._process.pid):
            os.kill(process, signal.SIGCONT)

    def _children(self) -> list[int]:
        assert self._process is not None
        process = self._process.pid
        return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]

    def close(self) -> None:
        """Stop the server and remove its cluster."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def address(self, database: str = "postgres", password: str = "") -> str:
        """Address of a database."""
        return f"postgresql://{USER}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """Open a session that commits each statement."""
        return psycopg.connect(self.address(database), autocommit=True, connect_timeout=5)

    def setting(self, name: str) -> str:
        """Value of a setting for new sessions."""
        with self.connect() as session:
            row = session.execute(f"SHOW {name}").fetchone()
        assert row is not None
        return str(row[0])

    def create(self, database: str, options: str = "") -> str:
        """Create a database and return its address."""
        with self.connect() as session:
            session.execute(f"CREATE DATABASE {database} TEMPLATE template0 {options}")
        return self.address(database)


@contextmanager
def silent_listener() -> Iterator[int]:
    """Port of a listener whose connections are open and never answered."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def free_port() -> int:
    """A port of the loopback address on which no server listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def write_stores(folder: Path, address: str) -> None:
    """Name a database for log and control store in recloop.toml."""
    file = folder / "recloop.toml"
    without = file.read_text("utf-8").partition("[stores]")[0]
    file.write_text(f'{without}[stores]\nlog = "{address}"\ncontrol = "{address}"\n', "utf-8")
