"""Server process: socket, ready line, and draining without lost requests."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from asyncio import BaseProtocol, Task, get_running_loop
from types import FrameType
from typing import Protocol

import uvicorn

from recloop.errors import UserError
from recloop.serve.access import is_loopback
from recloop.serve.limits import max_connections
from recloop.serve.list_endpoint import ListApplication, ListProtocol
from recloop.serve.listener import Listener

TICKS_PER_SECOND = 10  # uvicorn's main loop
SWEEP_TICKS = 10
"""Ticks between two checks for connections that take too long."""
GRACEFUL_SECONDS = 1
"""Seconds for requests that are still under way after the drain; with it a process ends within 10 s."""
WORKER_SECONDS = 2  # further seconds for workers, which drain first
SWITCH_SECONDS = 0.0005
"""Longest time that another thread keeps the interpreter while a request waits; 5 ms by default."""
GC_THRESHOLDS = (5_000, 10, 1_000)
"""Thresholds of the cycle collector; a full collection blocks requests (49 ms with 64,000 items on a busy machine)."""
DRAIN_SECONDS = 6  # seconds for clients to receive `Connection: close`


def check_host(host: str, has_keys: bool) -> None:
    """Check that only a project with API keys is served to other machines.

    Raises:
        UserError: the host is not a loopback address, and the project has no key.
    """
    if not has_keys and not is_loopback(host):
        fix = "recloop keys add NAME --scope read,ingest"
        raise UserError("serve.host", host, "a loopback address, or a project with an API key", fix)


def check_workers(workers: int) -> int:
    """Check the number of answering processes; more than cores only cost memory.

    Raises:
        UserError: fewer than one.
    """
    if workers < 1:
        raise UserError("--workers", workers, "at least 1", "recloop serve --workers 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers > cores:
        sys.stderr.write(f"warning: --workers={workers} is more than the {cores} cores of this machine\n")
    return workers


def adopt(descriptor: int) -> socket.socket:
    """Take over a listening socket that another process opened, as systemd does.

    Raises:
        UserError: the descriptor is not open, or not a listening TCP socket.
    """
    fix = "recloop serve --port PORT, or a socket unit with ListenStream=PORT"
    try:
        listening = socket.socket(fileno=os.dup(descriptor))
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise UserError("--fd", descriptor, f"an open socket ({cause})", fix) from None
    is_tcp = listening.family in (socket.AF_INET, socket.AF_INET6) and listening.type == socket.SOCK_STREAM
    if not is_tcp or not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listening.close()
        raise UserError("--fd", descriptor, "a listening TCP socket", fix)
    os.close(descriptor)
    listening.set_inheritable(False)
    return listening


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket; port 0 selects a free port.

    Raises:
        UserError: the port is in use or needs more rights.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        reason = {errno.EADDRINUSE: "already in use", errno.EACCES: "permission denied"}.get(error.errno or 0)
        expected = f"a free port ({reason or error.strerror})"
        raise UserError("port", port, expected, "recloop serve --port 0") from None
    return listening


def ready_line(listening: socket.socket, bundle: str, as_json: bool) -> str:
    """Format the first line of stdout: ``ready http://HOST:PORT bundle=ID``."""
    url = address(listening)
    return json.dumps({"ready": url, "bundle": bundle}) if as_json else f"ready {url} bundle={bundle}"


def token_line(listening: socket.socket, token: str, console: bool, is_terminal: bool) -> str:
    """Format the line for stderr: ``token TOKEN`` and the console's address, if any.

    The token is shown on a terminal only; a log would keep it.
    """
    if not is_terminal:
        return f"console={address(listening)}/" if console else ""
    return f"token {token}" + (f" console={address(listening)}/?token={token}" if console else "")


class Workers(Protocol):
    """Further processes that drain before this one."""

    @property
    def is_stopped(self) -> bool: ...

    def stop(self) -> None: ...


def serve(
    app: ListApplication, listening: socket.socket, ready: str, note: str = "", workers: Workers | None = None
) -> None:
    """Run until SIGTERM or SIGINT, then drain: send `Connection: close` and wait.

    Args:
        ready: First line of stdout; empty in a worker.
        workers: Processes that this one outlives, because it answers what they forward.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.set_threshold(*GC_THRESHOLDS)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    _Server(configuration(app), app, ready, note, workers).run(sockets=[listening])


def configuration(app: ListApplication) -> uvicorn.Config:
    """Build the configuration of uvicorn."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=ListProtocol,
        ws="none",
        access_log=False,  # it would print user ids
        log_config=None,
        server_header=False,
        proxy_headers=False,  # X-Forwarded-* can be forged
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )


def address(listening: socket.socket) -> str:
    """Format the URL of a listening socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn server that drains on shutdown.

    uvicorn alone closes idle connections at once and loses requests just sent on them.
    """

    def __init__(
        self, config: uvicorn.Config, app: ListApplication, ready: str, note: str, workers: Workers | None
    ) -> None:
        super().__init__(config)
        self._workers = workers
        self._app = app
        self._ready = ready
        self._note = note
        self._ticks = 0
        self._reloads: set[Task[None]] = set()
        self._is_shared = workers is not None or not ready  # a worker has no first line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # the lifespan; uvicorn would accept one connection per turn of the event loop
        if not self.started:
            return
        connections = self.server_state.connections
        self._follow_hangups()
        for listening in sockets or []:
            listener = Listener(listening, self._protocol, connections, self._max_connections, self._is_shared)
            listener.start()
            self.servers.append(listener)  # type: ignore[arg-type] # has the two methods that uvicorn calls
        if self._ready:
            sys.stdout.write(self._ready + "\n")
            sys.stdout.flush()
            if self._note:
                sys.stderr.write(self._note + "\n")
                sys.stderr.flush()

    def _follow_hangups(self) -> None:
        """Reload the settings on SIGHUP; a worker gets them from the writer process."""
        if threading.current_thread() is not threading.main_thread():
            return
        if not self._ready:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        else:
            get_running_loop().add_signal_handler(signal.SIGHUP, self._reload)

    def _reload(self) -> None:
        task = get_running_loop().create_task(self._app.state.reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    def _max_connections(self) -> int:
        return max_connections(self._app.live.limits)

    def _protocol(self) -> BaseProtocol:
        return ListProtocol(self.config, self.server_state, self.lifespan.state, get_running_loop())

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._app.state.draining and sig == signal.SIGTERM:  # the second one stops at once, with exit code 0
            self.force_exit = self.should_exit
            self.should_exit = True
            return
        if self._app.state.draining or not self.started:
            super().handle_exit(sig, frame)
            return
        self._app.state.draining = True
        if sig == signal.SIGINT:
            self._captured_signals.append(sig)  # raised again at the end for the exit code of an interrupt

    async def on_tick(self, counter: int) -> bool:
        if self._app.state.draining or counter % SWEEP_TICKS == 0:
            now = get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, ListProtocol):
                    connection.expire(now, self._app.state.draining)
        if self._app.state.draining and not self.should_exit:
            self._ticks += 1
            if self._ticks == 1:
                if self._workers is not None:
                    self._workers.stop()
                for end in self._app.state.on_drain:
                    await end()
            if self._ticks == 2:
                for server in self.servers:
                    server.close()
            idle = not self.server_state.connections and not self.server_state.tasks
            limit = DRAIN_SECONDS
            if self._workers is not None:
                idle = idle and self._workers.is_stopped
                limit += WORKER_SECONDS
            self.should_exit = self._ticks > 2 and (idle or self._ticks > limit * TICKS_PER_SECOND)
        return await super().on_tick(counter)
