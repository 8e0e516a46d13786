"""Sessions of a PostgreSQL server, which end if it is silent.

A stopped process or a lost network leaves connections open, and libpq waits for ever. A session without a byte for
`SILENT_SECONDS` lets a thread connect again: a server that accepts no session within ``connect_timeout`` is silent, and
every waiting session of the process ends. Until the server answers the thread, all else fails at once.
"""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Hashable, Mapping
from typing import Any, Final, TypeVar

import psycopg
from psycopg.abc import PQGen

SILENT_SECONDS: Final = 2.0
"""Time without a byte after which the server is asked for a further session; doubled after each answer."""
LOOP_SECONDS: Final = 0.25
"""As `SILENT_SECONDS` on a thread with an event loop, which gives up at once: it must answer other requests."""
PAUSE_SECONDS: Final = 0.5
"""Time between two attempts to connect to a server that does not answer."""
UNKNOWN: Final = "the server did not answer in time"

Result = TypeVar("Result")

_SERVERS: Final = weakref.WeakValueDictionary[Hashable, "Server"]()
_SERVERS_LOCK: Final = threading.Lock()


class SilentServerError(psycopg.OperationalError):
    """The server did not answer; the session is closed."""


class Server:
    """Whether a server answers, as known to all sessions of a process.

    Attributes:
        failure: Reason of the last failed attempt to connect; empty if the server answers.
        is_silent: It did not answer the last attempt in time.
        is_asked: A thread tries to connect.
    """

    def __init__(self, parameters: Mapping[str, Any]) -> None:
        self._parameters = dict(parameters)
        self._lock = threading.Lock()
        self.failure = ""
        self.is_silent = self.is_asked = False

    def connect(self) -> Session:
        """Open a session.

        Raises:
            psycopg.Error: the server does not answer, or refuses the user; also if it did so before and nothing changed.
        """
        if self.failure:
            raise psycopg.OperationalError(self.failure)
        try:
            session = self._attempt()
        except psycopg.Error as error:
            self._failed(error)
            self.ask(PAUSE_SECONDS)
            raise
        session.server = self
        return session

    def check(self) -> None:
        """Check that a statement may wait for the server.

        Raises:
            SilentServerError: the server is silent; on a thread with an event loop also if that is not known yet.
        """
        if self.is_silent or (self.is_asked and _has_event_loop()):
            raise SilentServerError(self.failure or UNKNOWN)

    def ask(self, pause: float = 0.0) -> None:
        """Let a thread connect to the server, after a pause and until it answers."""
        with self._lock:
            if self.is_asked:
                return
            self.is_asked = True
        threading.Thread(target=_ask, args=(weakref.ref(self), pause), name="postgres", daemon=True).start()

    def attempt_again(self) -> bool:
        """Connect once to learn whether the server answers; on the thread of `ask`."""
        try:
            self._attempt().close()
        except psycopg.Error as error:
            self._failed(error)
            return False
        with self._lock:
            self.is_asked = False
            self.failure, self.is_silent = "", False
        return True

    def _attempt(self) -> Session:
        return Session.connect(**self._parameters, autocommit=True)

    def _failed(self, error: psycopg.Error) -> None:
        self.failure = reason_of(error)
        self.is_silent = isinstance(error, psycopg.errors.ConnectionTimeout)


class Session(psycopg.Connection[Any]):
    """Session that closes if its server is silent or a statement is interrupted."""

    server: Server | None = None

    def wait(self, gen: PQGen[Result], *arguments: Any, **options: Any) -> Result:
        try:
            return super().wait(self._until_silent(gen), *arguments, **options)
        except psycopg.Error:
            raise
        except BaseException:  # the statement is under way, so no other one can follow
            self.close()
            if self.server is not None:
                self.server.ask()
            raise

    def _until_silent(self, gen: PQGen[Result]) -> PQGen[Result]:
        """Run a generator of psycopg.

        It gets READY_NONE ten times a second while no byte arrives.
        """
        server = self.server
        if server is not None:
            server.check()
        on_loop = _has_event_loop()
        patience = LOOP_SECONDS if on_loop else SILENT_SECONDS
        since, next_question = time.monotonic(), patience
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                silent = time.monotonic() - since
                if ready:
                    since, next_question = time.monotonic(), patience
                elif server is not None and silent > patience:
                    if silent > next_question:
                        server.ask()
                        next_question *= 2
                    if on_loop or server.is_silent:
                        self.close()
                        raise SilentServerError(server.failure or UNKNOWN)
                wanted = gen.send(ready)
        except StopIteration as end:
            result: Result = end.value
            return result


def server_of(parameters: Mapping[str, Any]) -> Server:
    """Return the server of an address, one for all stores of this process."""
    key = tuple(sorted(parameters.items()))
    with _SERVERS_LOCK:
        server = _SERVERS.get(key)
        if server is None:
            server = _SERVERS[key] = Server(parameters)
        return server


def reason_of(error: psycopg.Error) -> str:
    """Return the first line of a server's or libpq's message."""
    return error.diag.message_primary or str(error).strip().partition("\n")[0] or type(error).__name__


def _ask(reference: weakref.ref[Server], pause: float) -> None:
    while True:
        time.sleep(pause)
        server = reference()
        if server is None or server.attempt_again():
            return
        del server
        pause = PAUSE_SECONDS


def _has_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
