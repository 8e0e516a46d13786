"""Hostile bytes on raw sockets: each is answered with 4xx or closed, memory stays flat, and others are served."""

from __future__ import annotations

import gzip
import random
import re
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from fault_runs import Facts, size
from servers import Server

from recloop.project import Project

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
SECONDS = 5.0
"""Time of one conversation; a connection that is still open then is closed by the test."""
MAX_GROWN_MIB = 64
Make = Callable[[random.Random], bytes]


def head(*lines: bytes, target: bytes = b"/v1/events", method: bytes = b"POST") -> bytes:
    first = b" ".join((method, target, b"HTTP/1.1"))
    return b"\r\n".join((first, b"Host: localhost", b"Content-Type: application/json", *lines)) + b"\r\n\r\n"


def two_lengths(draw: random.Random) -> bytes:
    """Two framings of one body, by which a proxy and the service could disagree."""
    hidden = head(method=b"DELETE", target=b"/v1/items/i01")
    framings = (
        (b"Content-Length: 2", b"Transfer-Encoding: chunked"),
        (b"Content-Length: 2", b"Content-Length: %d" % len(hidden)),
        (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
        (b"Transfer-Encoding: xchunked", b"Content-Length: 2"),
        (b"Content-Length: +2",),
        (b"Content-Length : 2",),
        (b"Content-Length: 2, 2",),
        (b"Transfer-Encoding:\x0bchunked", b"Content-Length: 2"),
    )
    return head(*draw.choice(framings)) + b"0\r\n\r\n" + hidden


def bad_chunks(draw: random.Random) -> bytes:
    chunks = (
        b"-1\r\n[]\r\n",
        b"ffffffffffffffffff\r\n[]",
        b"zz\r\n",
        b"2\n[]\n",
    )
    return head(b"Transfer-Encoding: chunked") + draw.choice(chunks) + b"0\r\n\r\n"


def long_extension(_: random.Random) -> bytes:
    """A chunk with an extension, which is valid at any length and must not be kept."""
    return head(b"Transfer-Encoding: chunked") + b"2;" + b"x" * 2_000_000 + b"\r\n[]\r\n0\r\n\r\n"


def many_headers(draw: random.Random) -> bytes:
    kinds = (
        [b"X-%d: y" % number for number in range(20_000)],
        [b"X: " + b"y" * 200_000],
        [b"Cookie: " + b"a=b; " * 20_000],
        [b" folded: line"] * 3_000,
    )
    return head(*draw.choice(kinds), method=b"GET", target=b"/v1/recommend/u14")


def odd_target(draw: random.Random) -> bytes:
    targets = (
        b"/v1/recommend/" + b"%2e" * 30_000, b"//etc/passwd", b"http://other.example/v1/status", b"*", b"/\x00",
        b"/v1/recommend/%ff%fe", b"/v1/items/..%2f..%2fstatus", b"?" * 500, b"/v1/recommend/u14?n=" + b"9" * 5_000,
        b"/v1/recommend/u14?filter=" + b"(" * 5_000,
    )  # fmt: skip
    return head(method=draw.choice((b"GET", b"POST", b"TRACE", b"CONNECT", b"G\x00T")), target=draw.choice(targets))


def pipelined(draw: random.Random) -> bytes:
    one = head(method=b"GET", target=b"/v1/recommend/u14?n=1")
    return one * draw.randrange(2, 200) + draw.randbytes(20) + b"\r\n\r\n"


def bomb(draw: random.Random) -> bytes:
    packed = gzip.compress(b" " * draw.choice((20_000_000, 50_000_000)) + b"[]", 9)
    return head(b"Content-Encoding: gzip", b"Content-Length: %d" % len(packed)) + packed


def deep(draw: random.Random) -> bytes:
    body = b"[" * 100_000 if draw.random() < 0.5 else b'{"a":' * 100_000
    return head(b"Content-Length: %d" % len(body)) + body


def upgrade(_: random.Random) -> bytes:
    return head(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMAAABk", method=b"GET")


def noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.choice((1, 100, 100_000)))


MAKERS: tuple[Make, ...] = (
    two_lengths, bad_chunks, long_extension, many_headers, odd_target, pipelined, bomb, deep, upgrade, noise,
)  # fmt: skip
MAY_SUCCEED = frozenset((long_extension, many_headers, odd_target, pipelined, upgrade, noise))


def converse(address: tuple[str, int], data: bytes, draw: random.Random) -> list[int]:
    """Send bytes whole or in parts; return the statuses of the answers."""
    received = b""
    with socket.create_connection(address, timeout=SECONDS) as connection:
        try:
            middle = draw.randrange(len(data) + 1)
            for part in (data[:middle], data[middle:]):
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                received += part
        except OSError:
            pass  # closed by the service, or still waiting for the rest
    return [int(status) for status in STATUS.findall(received)]


def memory_mib(process: int) -> float:
    text = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", text)[0]) / 1024


def test_hostile_bytes_are_refused_and_memory_is_flat(
    serving: Callable[..., Server], project: Project, facts: Facts
) -> None:
    server = serving(project.root)
    address = (server.client.base_url.host, server.client.base_url.port or 0)
    draw, statuses, cases = random.Random(0), Counter[int](), size(90, 10_000)
    before = 0.0
    for case in range(cases):
        make = MAKERS[case % len(MAKERS)]
        found = converse(address, make(draw), draw)
        allowed = {200} if make in MAY_SUCCEED else set()
        assert all(400 <= status < 500 or status in allowed for status in found), (make.__name__, case, found)
        statuses.update(found or [0])
        if case == 2 * len(MAKERS):
            before = memory_mib(server.process.pid)
        if case % 50 == 0:
            assert server.client.get("/v1/recommend/u14", params={"n": 3}).status_code == 200
    grown = memory_mib(server.process.pid) - before
    facts["hostile bytes"] = {
        "connections": cases,
        "refused": sum(count for status, count in statuses.items() if status >= 400),
        "closed_without_answer": statuses[0],
        "server_errors": sum(count for status, count in statuses.items() if status >= 500),
        "memory_grown_mib": round(grown, 1),
    }
    assert grown < MAX_GROWN_MIB
    assert server.client.get("/v1/items/i01").status_code == 200, "a hidden request deleted the item"
    assert server.client.get("/v1/items/i01").json()["hidden"] is False
    assert "Traceback" not in server.errors.read_text()
