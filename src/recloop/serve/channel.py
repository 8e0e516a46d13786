"""Messages between the writer process and its workers on a socket pair.

Every message is MessagePack with a length of four bytes before it. The order of one direction is kept.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import msgspec

from recloop.records import Decision, Item, User
from recloop.release.assignment import Arm
from recloop.serve.request_metrics import RequestCounts
from recloop.storage.identities import Identity
from recloop.storage.retractions import Retraction

HEAD_BYTES = 4


class Committed(msgspec.Struct, tag=True, frozen=True):
    """Commit up to ``seq``.

    ``rows`` are its labelled events (`LabelledRows`), empty without events; None if the worker must read the log.
    """

    number: int
    seq: int
    rows: dict[str, list[tuple[Any, ...]]] | None
    users: list[User]
    items: list[Item]
    retractions: list[Retraction]
    identities: list[Identity]


class Deployed(msgspec.Struct, tag=True, frozen=True):
    """Arms that answer from now on; ``failed`` as in `Deployments`."""

    number: int
    generation: int
    live: Arm
    candidate: Arm | None
    failed: str


class Published(msgspec.Struct, tag=True, frozen=True):
    """A new archive replaces the present one."""

    number: int


class Configured(msgspec.Struct, tag=True, frozen=True):
    """Other settings of ``[serve]``, as JSON."""

    number: int
    serve: str


class Degraded(msgspec.Struct, tag=True, frozen=True):
    """Parts that the writer process misses."""

    parts: list[str]


class ForwardedReply(msgspec.Struct, tag=True, frozen=True):
    """Reply of the writer process to a `ForwardedRequest` of this id."""

    id: int
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Started(msgspec.Struct, tag=True, frozen=True):
    """The worker accepts connections."""


class Confirmed(msgspec.Struct, tag=True, frozen=True):
    """The worker applied the message of this number."""

    number: int


class ForwardedRequest(msgspec.Struct, tag=True, frozen=True):
    """Request that only the writer process can answer."""

    id: int
    method: str
    path: str
    raw_path: bytes
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


class Decided(msgspec.Struct, tag=True, frozen=True):
    """Decisions of a worker, in the order of its answers."""

    decisions: list[Decision]


class Measured(msgspec.Struct, tag=True, frozen=True):
    """Requests that a worker answered itself since its last message of this kind."""

    requests: RequestCounts


Numbered = Committed | Deployed | Published | Configured
ToWorker = Committed | Deployed | Published | Configured | Degraded | ForwardedReply
ToWriter = Started | Confirmed | ForwardedRequest | Decided | Measured
ENCODER = msgspec.msgpack.Encoder()
TO_WORKER = msgspec.msgpack.Decoder(ToWorker)
TO_WRITER = msgspec.msgpack.Decoder(ToWriter)


def frame(message: ToWorker | ToWriter) -> bytes:
    """Encode a message with its length."""
    content = ENCODER.encode(message)
    return len(content).to_bytes(HEAD_BYTES, "big") + content


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """Read one message; None at the end of the stream."""
    try:
        size = int.from_bytes(await reader.readexactly(HEAD_BYTES), "big")
        return await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def receive(channel: socket.socket) -> bytes:
    """Read one message without an event loop.

    Raises:
        EOFError: the other side closed the channel.
    """
    return _receive(channel, int.from_bytes(_receive(channel, HEAD_BYTES), "big"))


def _receive(channel: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = channel.recv(size - len(content))
        if not part:
            raise EOFError
        content += part
    return content
