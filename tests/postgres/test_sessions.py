"""Sessions of a server: a silent one is given up, a slow statement is not."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator

import psycopg
import pytest
from postgres_server import PATIENCE, PostgresServer, silent_listener
from psycopg import conninfo

from recloop.storage.postgres_session import SILENT_SECONDS, Server, Session, SilentServerError


@pytest.fixture
def server(postgres: PostgresServer) -> Server:
    return Server({**conninfo.conninfo_to_dict(postgres.address()), "connect_timeout": "3"})


@pytest.fixture
def session(server: Server) -> Iterator[Session]:
    with server.connect() as session:
        yield session


@pytest.fixture
def paused(session: Session, postgres: PostgresServer) -> Iterator[PostgresServer]:
    """The server after the session was opened; it does not answer."""
    postgres.pause()
    try:
        yield postgres
    finally:
        postgres.resume()


def wait_until_answered(server: Server) -> None:
    end = time.monotonic() + PATIENCE
    while server.is_asked or server.failure:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_slow_statement_is_waited_for(session: Session) -> None:
    assert session.execute(f"SELECT 1 FROM pg_sleep({SILENT_SECONDS + 2})").fetchone() == (1,)


def test_slow_statement_on_an_event_loop_is_given_up_and_the_next_session_works(server: Server) -> None:
    async def on_loop() -> None:
        begin = time.monotonic()
        with server.connect() as session, pytest.raises(SilentServerError):
            session.execute("SELECT pg_sleep(5)")
        assert session.closed
        assert time.monotonic() - begin < 1.0

    asyncio.run(on_loop())
    wait_until_answered(server)
    with server.connect() as session:
        assert session.execute("SELECT 1").fetchone() == (1,)


def test_statement_on_a_silent_server_is_given_up_and_later_ones_fail_at_once(
    server: Server, session: Session, paused: PostgresServer
) -> None:
    begin = time.monotonic()
    with pytest.raises(SilentServerError, match="connection timeout expired"):
        session.execute("SELECT 1")
    assert session.closed
    assert time.monotonic() - begin < 8.0
    begin = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match="connection timeout expired"):
        server.connect()
    assert time.monotonic() - begin < 0.1
    paused.resume()
    wait_until_answered(server)
    with server.connect() as again:
        assert again.execute("SELECT 1").fetchone() == (1,)


def test_idle_session_of_a_silent_server_fails_at_once_and_works_later(
    server: Server, session: Session, paused: PostgresServer
) -> None:
    with pytest.raises(psycopg.errors.ConnectionTimeout):
        server.connect()
    begin = time.monotonic()
    with pytest.raises(SilentServerError):
        session.execute("SELECT 1")
    assert time.monotonic() - begin < 0.1
    paused.resume()
    wait_until_answered(server)
    assert session.execute("SELECT 1").fetchone() == (1,)


def test_interrupted_statement_closes_its_session(session: Session) -> None:
    """As the time limit of a list does; a session with a statement under way takes no other one."""

    def interrupt(*_: object) -> None:
        raise InterruptedError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(InterruptedError):
            session.execute("SELECT pg_sleep(5)")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert session.closed


def test_listener_that_never_answers_is_refused_in_time() -> None:
    with silent_listener() as port:
        server = Server({"host": "127.0.0.1", "port": port, "connect_timeout": "2"})
        begin = time.monotonic()
        for _ in range(3):
            with pytest.raises(psycopg.OperationalError, match="connection timeout expired"):
                server.connect()
        assert time.monotonic() - begin < 5.0
        assert server.is_silent
