"""The body of a write: joined messages, limits, and clients that leave."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from recloop.serve import request
from recloop.serve.request import read_messages
from recloop.serve.schemas import HttpError


def read(messages: list[dict[str, Any]], content_length: bytes = b"") -> tuple[bytes, int]:
    """Return the body and the number of unread messages."""

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return asyncio.run(read_messages(receive, content_length)), len(messages)


def part(body: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


def test_read_messages_joins_the_parts() -> None:
    assert read([part(b"ab")], b"2") == (b"ab", 0)
    assert read([part(b"ab", True), part(b"", True), part(b"cd"), part(b"ef")]) == (b"abcd", 1)
    assert read([{"type": "http.request"}]) == (b"", 0)


def test_read_messages_refuses_a_large_body_before_it_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "MAX_BODY_BYTES", 5)
    messages = [part(b"abc", True), part(b"def", True), part(b"g")]
    with pytest.raises(HttpError, match="too_large"):
        read(messages)
    assert len(messages) == 1
    unread = [part(b"abc")]
    with pytest.raises(HttpError, match="too_large"):
        read(unread, b"6")
    assert len(unread) == 1


def test_read_messages_of_a_client_that_left_raises() -> None:
    with pytest.raises(ClientDisconnect):
        read([part(b"ab", True), {"type": "http.disconnect"}])
