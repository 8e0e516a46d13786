"""HTTP load from one process: keep-alive connections, no pipelining, one epoll loop.

A closed stream sends the next request of a connection when its answer is complete. An open stream sends requests at
Poisson times, and its latencies count from the planned time, so a slow server cannot hide its queue.
"""

from __future__ import annotations

import random
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

CONNECTIONS = 16


def get(path: str) -> bytes:
    """Bytes of a GET request."""
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


def post(path: str, body: bytes) -> bytes:
    """Bytes of a POST request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Stream:
    """Requests to send and their results.

    Attributes:
        rate: Requests per second at Poisson times; None: as fast as the answers arrive.
        drops: A request that finds no free connection is not sent, as by a client that gives up, instead of waiting.
        whole: Latencies of the lists that no part is missing from.
    """

    requests: Iterator[bytes]
    connections: int = CONNECTIONS
    rate: float | None = None
    drops: bool = False
    latencies: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def milliseconds(self, percentile: float) -> float:
        """Percentile of the latencies."""
        return float(np.percentile(self.latencies, percentile)) * 1e3 if self.latencies else float("nan")


class _Connection:
    """One connection with at most one request in flight."""

    def __init__(self, port: int, stream: Stream) -> None:
        self.stream = stream
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = bytearray()
        self._started = 0.0

    def send(self, planned: float) -> None:
        """Send the stream's next request; its latency counts from ``planned``."""
        self._started = planned
        self.socket.sendall(next(self.stream.requests))

    def receive(self) -> bool:
        """Read what arrived; return True if the answer is complete."""
        chunk = self.socket.recv(262_144)
        if not chunk:
            raise ConnectionError("the server closed a connection")
        self._received += chunk
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._received[:end]).lower()
        start = head.find(b"content-length:") + 15
        length = int(head[start : (head.find(b"\r\n", start) + len(head) + 1) % (len(head) + 1)])
        if len(self._received) < end + 4 + length:
            return False
        if not head.startswith(b"http/1.1 200"):
            self.stream.failed.append(bytes(self._received[:300]).decode("latin-1"))
        latency = time.perf_counter() - self._started
        if b'"degraded":[]' in self._received:
            self.stream.whole.append(latency)
        self._received.clear()
        self.stream.latencies.append(latency)
        return True


def run(port: int, streams: list[Stream], seconds: float, seed: int = 0) -> None:
    """Send the streams for a number of seconds, and wait for the answers in flight."""
    draw = random.Random(seed)
    selector = selectors.DefaultSelector()
    free: dict[int, deque[_Connection]] = {}
    planned: dict[int, float] = {}
    begin = time.perf_counter()
    for number, stream in enumerate(streams):
        free[number] = deque(_Connection(port, stream) for _ in range(stream.connections))
        planned[number] = begin
        for connection in free[number]:
            selector.register(connection.socket, selectors.EVENT_READ, (number, connection))
    in_flight = 0
    while True:
        clock = time.perf_counter()
        is_open = clock < begin + seconds
        wait = 0.05
        for number, stream in enumerate(streams):
            while is_open and free[number] and (stream.rate is None or planned[number] <= clock):
                free[number].popleft().send(clock if stream.rate is None else planned[number])
                in_flight += 1
                if stream.rate is not None:
                    planned[number] += draw.expovariate(stream.rate)
            if stream.drops and stream.rate is not None:
                while planned[number] <= clock:
                    planned[number] += draw.expovariate(stream.rate)
            if stream.rate is not None and free[number]:
                wait = min(wait, max(0.0, planned[number] - clock))
        if not is_open and not in_flight:
            break
        for key, _ in selector.select(wait):
            number, connection = key.data
            if connection.receive():
                in_flight -= 1
                free[number].append(connection)
    elapsed = time.perf_counter() - begin
    for number, stream in enumerate(streams):
        stream.seconds = elapsed
        for connection in free[number]:
            connection.socket.close()
    selector.close()
