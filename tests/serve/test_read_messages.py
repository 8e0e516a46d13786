"""The body of a write: joined messages, limits, and clients that leave."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from recloop.config import Limits
from recloop.serve.request import read_messages, unpack
from recloop.serve.schemas import HttpError

DEFAULT = Limits()


def read(messages: list[dict[str, Any]], content_length: bytes = b"", limits: Limits = DEFAULT) -> tuple[bytes, int]:
    """Return the body and the number of unread messages."""

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return asyncio.run(read_messages(receive, content_length, limits)), len(messages)


def part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_read_messages_joins_the_parts() -> None:
    assert read([part(b"ab")], b"2") == (b"ab", 0)
    assert read([part(b"ab", True), part(b"", True), part(b"cd"), part(b"ef")]) == (b"abcd", 1)
    assert read([{"type": "http.request"}]) == (b"", 0)


def test_read_messages_refuses_a_large_body_before_it_is_complete() -> None:
    limits = Limits(body_bytes=1_024)
    messages = [part(b"a" * 1_000, True), part(b"def" * 10, True), part(b"g")]
    with pytest.raises(HttpError, match="too_large") as caught:
        read(messages, limits=limits)
    assert caught.value.answer.error.message == "the body has 1030 bytes or more; expected at most 1024 bytes"
    assert len(messages) == 1
    unread = [part(b"abc")]
    with pytest.raises(HttpError, match="too_large"):
        read(unread, b"1025", limits)
    assert len(unread) == 1


def test_read_messages_of_a_client_that_left_raises() -> None:
    with pytest.raises(ClientDisconnect):
        read([part(b"ab", True), {"type": "http.disconnect"}])


@pytest.mark.parametrize("encoding", [b"gzip", b"x-gzip", b" GZIP "])
def test_unpack_of_gzip_returns_the_body_of_all_members(encoding: bytes) -> None:
    assert unpack(gzip.compress(b"ab") + gzip.compress(b"cd"), encoding, DEFAULT) == b"abcd"


@pytest.mark.parametrize(
    ("body", "encoding", "status", "message"),
    [
        (
            gzip.compress(b"0" * 1_025),
            b"gzip",
            413,
            "the unpacked body has 1025 bytes or more; expected at most 1024 bytes",
        ),
        (gzip.compress(b"0" * 1_000) * 2, b"gzip", 413, "the unpacked body has 1025 bytes or more"),
        (gzip.compress(b"0" * 20_000_000), b"gzip", 413, "the unpacked body has 1025 bytes or more"),
        (gzip.compress(b"abc")[:-3], b"gzip", 400, "it ends before the end of its data"),
        (b"[]", b"gzip", 400, "the body is not gzip: "),
        (gzip.compress(b"abc") + b"rest", b"gzip", 400, "the body is not gzip: "),
        (b"abc", b"br", 415, "Content-Encoding is br; expected gzip or none"),
        (b"abc", b"gzip, gzip", 415, "Content-Encoding is gzip, gzip; expected gzip or none"),
    ],
    ids=["large", "large members", "bomb", "cut", "not gzip", "rest", "other encoding", "two encodings"],
)
def test_unpack_refuses_large_damaged_and_unknown_bodies(
    body: bytes, encoding: bytes, status: int, message: str
) -> None:
    with pytest.raises(HttpError) as caught:
        unpack(body, encoding, Limits(unpacked_bytes=1_024))
    assert caught.value.status == status
    assert message in caught.value.answer.error.message


def test_unpack_without_encoding_returns_the_body() -> None:
    assert unpack(b"\x1f\x8b", b"", DEFAULT) == unpack(b"\x1f\x8b", b"identity", DEFAULT) == b"\x1f\x8b"
