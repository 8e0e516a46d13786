"""Limits of connections on real sockets: heads, bodies, times, requests in flight, descriptors."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from recloop.config import Limits, Serve
from recloop.serve import http_protocol, request, server
from recloop.serve.list_endpoint import UNREAD_SECONDS, ListApplication, ListEndpoint
from recloop.serve.listener import Listener
from recloop.serve.middleware import Reply, RequestMiddleware, json_reply
from recloop.serve.schemas import HttpError

LIST = b"GET /v1/recommend/u HTTP/1.1\r\nHost: a\r\n\r\n"
LIVE = b"GET /v1/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
PATIENCE = 20.0
"""Time limit for slow machines; no test measures it."""


class SlowLists(ListEndpoint):
    """Lists that take some time each."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.n_answered = 0

    def reply(self, *_: object) -> Reply:
        time.sleep(self.seconds)
        self.n_answered += 1
        return json_reply(b'{"n": %d}' % self.n_answered)


@dataclass
class Bounded:
    """A server in a thread of this process."""

    app: ListApplication
    lists: SlowLists
    port: int
    release: threading.Event
    thread: threading.Thread

    def limit(self, **limits: float) -> None:
        """Use other limits from the next request on."""
        self.app.live.use(Serve(limits=Limits.model_validate(limits)))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def exchange(self, *parts: bytes) -> bytes:
        """Send parts on a new connection and return everything up to its end."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
            return rest(connection)


def rest(connection: socket.socket) -> bytes:
    """Return what the server sends until it closes the connection."""
    content = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(65_536):
            content += part
    return content


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Read one response: status and body."""
    file = connection.makefile("rb", buffering=0)
    status = int(file.readline().split()[1])
    length = 0
    while line := file.readline().strip():
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    body = b""
    while len(body) < length:
        body += file.read(length - len(body))
    return status, body


def error_of(response: bytes) -> tuple[int, str]:
    """Return status and error code of a response in the JSON error shape."""
    head, _, body = response.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


@pytest.fixture
def bounded() -> Iterator[Bounded]:
    release = threading.Event()

    async def live(_: Request) -> Response:
        return PlainTextResponse("live")

    async def echo(sent: Request) -> Response:
        return PlainTextResponse(await request.read_body(sent))

    async def answered(_: Request) -> Response:
        return PlainTextResponse(str(lists.n_answered))

    async def hold(_: Request) -> Response:
        await asyncio.to_thread(release.wait)
        return PlainTextResponse("held")

    async def failed(_: Request, error: Exception) -> Response:
        assert isinstance(error, HttpError)
        return PlainTextResponse(error.answer.error.code, error.status)

    app = ListApplication(
        routes=[
            Route("/v1/health/live", live),
            Route("/v1/health/lists", answered),
            Route("/echo", echo, methods=["POST", "GET"]),
            Route("/hold", hold, methods=["POST"]),
        ],
        exception_handlers={HttpError: failed},
    )
    app.add_middleware(RequestMiddleware)
    app.state.draining, app.state.on_drain = False, []
    app.lists = lists = SlowLists()
    listening = server.listen("127.0.0.1", 0)
    process = server._Server(server.configuration(app), app, "", "", None)
    thread = threading.Thread(target=process.run, kwargs={"sockets": [listening]}, daemon=True)
    port = listening.getsockname()[1]
    thread.start()
    try:
        yield Bounded(app, lists, port, release, thread)
    finally:
        release.set()
        app.state.draining = process.should_exit = True
        thread.join(PATIENCE)


def test_new_connection_beside_busy_clients_is_answered_before_their_lists(bounded: Bounded) -> None:
    bounded.lists.seconds = 0.02
    with ExitStack() as stack:
        for _ in range(40):
            client = stack.enter_context(bounded.connect())
            client.sendall(LIST)
        probe = stack.enter_context(bounded.connect())
        probe.sendall(b"GET /v1/health/lists HTTP/1.1\r\nHost: a\r\n\r\n")
        status, n_answered = answer(probe)
    assert status == 200
    assert int(n_answered) < 40  # a turn that answers all clients first would have answered 40


def test_pipelined_lists_and_other_requests_are_answered_in_order(bounded: Bounded) -> None:
    with bounded.connect() as connection:
        connection.sendall(LIST + LIVE + LIST)
        assert [answer(connection)[1] for _ in range(3)] == [b'{"n": 1}', b"live", b'{"n": 2}']


def test_lists_above_the_limit_are_503_with_retry_after(bounded: Bounded) -> None:
    bounded.limit(waiting_lists=0)
    response = bounded.exchange(LIST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert error_of(response) == (503, "busy")
    assert b"\r\nRetry-After: ".lower() in response.lower()
    assert b"at most 0 waiting lists" in response
    with bounded.connect() as connection:
        connection.sendall(LIVE)
        assert answer(connection) == (200, b"live")
    assert bounded.lists.n_answered == 0


def test_connection_of_a_refused_list_is_read_again_later(bounded: Bounded) -> None:
    """A client that asks again at once does not keep the service busy with refusals; others are read meanwhile."""
    bounded.limit(waiting_lists=0)
    with bounded.connect() as refused, bounded.connect() as other:
        refused.sendall(LIST)
        assert answer(refused)[0] == 503
        begin = time.monotonic()
        refused.sendall(LIVE)
        other.sendall(LIVE)
        assert answer(other) == (200, b"live")
        assert time.monotonic() - begin < UNREAD_SECONDS[0]
        assert answer(refused) == (200, b"live")
        assert time.monotonic() - begin > UNREAD_SECONDS[0] / 2
        refused.sendall(LIVE * 3)
        assert [answer(refused)[0] for _ in range(3)] == [200] * 3


def test_lists_that_would_wait_too_long_are_503_and_the_others_are_in_time(bounded: Bounded) -> None:
    bounded.lists.seconds = 0.02  # 50 lists a second
    bounded.limit(list_seconds=0.5)
    with ExitStack() as stack:
        clients = []
        for _ in range(200):
            client = stack.enter_context(bounded.connect())
            client.sendall(LIST)
            clients.append(client)
            time.sleep(0.005)
        statuses = [answer(client)[0] for client in clients]
    assert set(statuses) == {200, 503}
    assert statuses[:3] == [200] * 3
    assert 30 < statuses.count(200) < 110
    assert 200 in statuses[-50:], "the service answers lists as fast as before"


def test_write_above_the_limit_is_503_before_its_body_arrives(bounded: Bounded) -> None:
    bounded.limit(writes=1)
    with bounded.connect() as first, bounded.connect() as second:
        first.sendall(b"POST /hold HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: len(bounded.app.writes) == 1)
        second.sendall(POST + b"\r\n")
        assert answer(second)[0] == 503
        second.sendall(b"hello" + LIVE)  # the connection goes on
        assert answer(second) == (200, b"live")
        bounded.release.set()
        assert answer(first) == (200, b"held")
    until(lambda: not bounded.app.writes)  # the task ends after its answer


@pytest.mark.parametrize(("full", "free"), [("reads", "writes"), ("writes", "reads")])
def test_full_budget_of_one_kind_leaves_the_other_kinds(bounded: Bounded, full: str, free: str) -> None:
    bounded.limit(**{full: 0})
    requests = {"reads": b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n", "writes": POST + b"\r\nhello"}
    with bounded.connect() as connection:
        connection.sendall(requests[full])
        status, body = answer(connection)
        assert (status, json.loads(body)["error"]["code"]) == (503, "busy")
        connection.sendall(requests[free] + LIVE)
        assert [answer(connection)[0] for _ in range(2)] == [200, 200]
        connection.sendall(LIST)
        assert answer(connection)[0] == 200


@pytest.mark.parametrize("request_head", [LIST, POST + b"\r\nhello"], ids=["list", "write"])
def test_client_above_its_rate_is_429_with_retry_after(bounded: Bounded, request_head: bytes) -> None:
    bounded.limit(client_rate=0.5)
    with bounded.connect() as connection:
        connection.sendall(request_head)
        assert answer(connection)[0] == 200
        connection.sendall(request_head)
        status, body = answer(connection)
        assert (status, json.loads(body)["error"]["code"]) == (429, "client_rate")
        assert "at most 0.5 requests per second" in json.loads(body)["error"]["message"]
        connection.sendall(LIVE * 3)
        assert [answer(connection)[0] for _ in range(3)] == [200] * 3, "health is exempt"


def test_client_is_the_one_that_a_trusted_proxy_names(bounded: Bounded) -> None:
    """Each of two clients behind a proxy has its own rate; a client cannot choose its address."""

    def ask(forwarded: bytes) -> int:
        with bounded.connect() as connection:
            connection.sendall(b"GET /v1/recommend/u HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: %s\r\n\r\n" % forwarded)
            return answer(connection)[0]

    limits = Limits(client_rate=0.01)
    bounded.app.live.use(Serve(limits=limits, trusted_proxies=("127.0.0.0/8",)))
    assert [ask(b"203.0.113.1"), ask(b"203.0.113.2")] == [200, 200]
    assert [ask(b"203.0.113.1"), ask(b"9.9.9.9, 203.0.113.1")] == [429, 429]
    bounded.app.live.use(Serve(limits=limits))  # without a trusted proxy the peer is the client
    assert [ask(b"203.0.113.3"), ask(b"203.0.113.4")] == [200, 429]


def until(is_met: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not is_met():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(
            [b"GET / HTTP/1.1\r\nHost: a\r\n", *[b"X: y\r\n" * 1_000] * 10, b"X: y\r\n" * 900, b"X: y\r\n" * 20],
            id="many headers",
        ),
        pytest.param([b"GET / HTTP/1.1\r\nX: ", *[b"y" * 10_000] * 6, b"y" * 5_500, b"y" * 100], id="one header"),
        pytest.param([b"GET /", *[b"y" * 10_000] * 6, b"y" * 5_500, b"y" * 100], id="a long URL"),
    ],
)
def test_head_above_64_kb_is_431_and_closed(bounded: Bounded, head: list[bytes]) -> None:
    """The last part is small: a server that closes before it has read a part resets the connection."""
    with bounded.connect() as connection:
        for part in head:
            connection.sendall(part)
        assert error_of(rest(connection)) == (431, "head_too_large")


@pytest.mark.parametrize("size", [200_000, 3_000_000])
def test_client_that_sends_on_after_431_gets_the_answer(bounded: Bounded, size: int) -> None:
    """The connection is not reset while the client still sends, so it can read the answer."""
    with bounded.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"y" * size)
        assert error_of(rest(connection)) == (431, "head_too_large")


def test_client_that_sends_without_end_after_431_is_closed(bounded: Bounded) -> None:
    with bounded.connect() as connection, pytest.raises(ConnectionError):
        connection.sendall(b"y" * 100_000_000)
    bounded.limit(connections=1)
    with bounded.connect() as connection:
        connection.sendall(LIVE)
        assert answer(connection)[0] == 200


def test_heads_and_bodies_below_the_limits_are_answered_on_one_connection(bounded: Bounded) -> None:
    body = b"b" * 200_000
    with bounded.connect() as connection:
        for _ in range(2):
            head = b"POST /echo HTTP/1.1\r\nHost: a\r\nX: %s\r\nContent-Length: %d\r\n\r\n" % (b"y" * 60_000, len(body))
            connection.sendall(head + body)
            assert answer(connection) == (200, body)


@pytest.mark.parametrize(("limit", "sent"), [("head_seconds", LIVE[:30]), ("body_seconds", POST + b"\r\nhel")])
def test_incomplete_request_is_408_after_its_time(
    bounded: Bounded, monkeypatch: pytest.MonkeyPatch, limit: str, sent: bytes
) -> None:
    bounded.limit(**{limit: 0.01})
    monkeypatch.setattr(server, "SWEEP_TICKS", 1)
    response = bounded.exchange(sent)
    assert error_of(response) == (408, "timeout")
    assert b"within 0.01 seconds" in response


def test_connection_without_a_request_is_closed_after_its_time(
    bounded: Bounded, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded.limit(head_seconds=0.01)
    monkeypatch.setattr(server, "SWEEP_TICKS", 1)
    assert bounded.exchange(b"") == b""


def test_unread_answer_is_dropped_after_its_time(bounded: Bounded, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded.limit(answer_seconds=0.01)
    monkeypatch.setattr(server, "SWEEP_TICKS", 1)
    size = 4 * 2**20
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.settimeout(PATIENCE)
        connection.connect(("127.0.0.1", bounded.port))
        connection.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + b"b" * size)
        time.sleep(0.5)
        assert len(rest(connection)) < size


@pytest.mark.parametrize("sizes", [(1_000,), (40, 60, 4)], ids=["at once", "in parts"])
def test_upgrade_header_is_ignored_and_the_body_read(bounded: Bounded, sizes: tuple[int, ...]) -> None:
    head = POST + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n\r\n"
    content = head + b"hello" + LIVE
    with bounded.connect() as connection:
        for size in sizes:
            connection.sendall(content[:size])
            content = content[size:]
            time.sleep(0.02)
        connection.sendall(content)
        assert answer(connection) == (200, b"hello")
        assert answer(connection) == (200, b"live")


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x00\xa5" + b"\0" * 20]
)
def test_malformed_http_is_400_in_the_error_shape(bounded: Bounded, sent: bytes) -> None:
    assert error_of(bounded.exchange(sent)) == (400, "malformed")


def test_malformed_http_is_logged_once_a_second(bounded: Bounded, caplog: pytest.LogCaptureFixture) -> None:
    http_protocol.MALFORMED_LOG.__init__()  # type: ignore[misc]
    for _ in range(5):
        bounded.exchange(b"nonsense\r\n\r\n")
    lines = [record for record in caplog.records if record.name == http_protocol.__name__]
    assert 1 <= len(lines) < 5


def test_bodies_above_the_budget_are_503_and_small_ones_go_on(bounded: Bounded) -> None:
    bounded.limit(body_bytes_in_flight=100_000)
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"
    with bounded.connect() as connection:
        connection.sendall(head + b"b" * 900_000)
        assert answer(connection) == (503, b"busy")
    assert b"hello" in bounded.exchange(POST + b"Connection: close\r\n\r\nhello")
    assert request.BODIES.used == 0


def test_drain_ends_beside_half_open_connections(bounded: Bounded) -> None:
    sent = (b"", LIVE[:30], POST + b"\r\nhel")
    connections = [bounded.connect() for _ in sent]
    for connection, part in zip(connections, sent, strict=True):
        connection.sendall(part)
    with bounded.connect() as connection:
        connection.sendall(LIVE)
        assert answer(connection)[0] == 200
        bounded.app.state.draining = True
        for half_open in connections:
            rest(half_open)
            half_open.close()
    bounded.thread.join(PATIENCE)
    assert not bounded.thread.is_alive()


class Accepting:
    """A `Listener` on the loop of a test, which keeps what it accepts."""

    def __init__(self, max_connections: int) -> None:
        self.listening = server.listen("127.0.0.1", 0)
        self.connections: set[object] = set()
        self.listener = Listener(
            self.listening, self._protocol, self.connections, lambda: max_connections, is_shared=False
        )
        self.listener.start()

    def _protocol(self) -> asyncio.Protocol:
        protocol = asyncio.Protocol()
        self.connections.add(protocol)
        return protocol


@contextmanager
def clients(accepting: Accepting, n_clients: int) -> Iterator[list[socket.socket]]:
    address = accepting.listening.getsockname()
    opened = [socket.create_connection(address, timeout=PATIENCE) for _ in range(n_clients)]
    try:
        yield opened
    finally:
        for client in opened:
            client.close()


def test_listener_accepts_many_in_one_turn_and_refuses_above_its_limit() -> None:
    async def work() -> None:
        accepting = Accepting(5)
        with clients(accepting, 7) as opened:
            await asyncio.sleep(0)  # the turn that polls
            await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            assert len(accepting.connections) == 5
            for client in opened[5:]:
                assert error_of(await asyncio.to_thread(rest, client)) == (503, "busy")
        accepting.listener.close()
        await accepting.listener.wait_closed()

    asyncio.run(work())


def test_listener_without_descriptors_refuses_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    async def work() -> None:
        accepting = Accepting(100)
        with clients(accepting, 1) as opened:
            await asyncio.sleep(0.05)
            first = accepting.connections
            assert len(first) == 1
            exhaust(taken)
            refused = socket_without_descriptor(taken, accepting.listening.getsockname())
            await asyncio.sleep(0.05)
            for descriptor in taken:
                os.close(descriptor)
            taken.clear()
            assert error_of(await asyncio.to_thread(rest, refused)) == (503, "busy")
            refused.close()
            assert opened
        with clients(accepting, 1):
            await asyncio.sleep(0.05)
            assert len(accepting.connections) == 2
        accepting.listener.close()
        await accepting.listener.wait_closed()

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 30, hard))
    try:
        asyncio.run(work())
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def exhaust(taken: list[int]) -> None:
    """Open files until no descriptor is left."""
    with suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))


def socket_without_descriptor(taken: list[int], address: tuple[str, int]) -> socket.socket:
    """Connect with the last descriptor."""
    os.close(taken.pop())
    client = socket.socket()
    client.settimeout(PATIENCE)
    client.connect(address)
    return client
