"""Lists answered without router and middleware: equal to the routes, in one write."""

from __future__ import annotations

import asyncio
import json
import socket
import time
import uuid
from typing import Any

import httpx
import servers

from recloop.project import Project, open_project
from recloop.serve.app import create
from recloop.serve.middleware import RequestIds

REQUESTS: list[tuple[str, dict[str, str]]] = [
    ("/v1/recommend/u14", {}),
    ("/v1/recommend/u14", {"X-Request-Id": "page"}),
    ("/v1/recommend/u14", {"X-Request-Id": "two words"}),
    ("/v1/recommend/u14?n=3&placement=cart&exclude=i01,i02&properties=category&item=&session_id=s", {}),
    ("/v1/recommend/u14?exclude=i01&exclude=i02,i03&filter=category+%3D+'tea'", {}),
    ("/v1/recommend/a%2Fb%20c", {}),
    ("/v1/recommend/", {}),
    ("/v1/recommend/u14?n=0", {}),
    ("/v1/recommend/u14?n=", {}),
    ("/v1/recommend/u14?m=3", {}),
    ("/v1/recommend/u14?placement=nowhere", {}),
    ("/v1/recommend/u14?filter=colour+%3D+3", {}),
    ("/v1/recommend/u14", {"Host": "shop.example"}),
    ("/v1/recommend/u14", {"Origin": "http://other.example"}),
    ("/v1/recommend/u14", {"Sec-Fetch-Site": "cross-site"}),
    ("/v1/recommend/u14", {"X-Recloop-Now": "2025-07-01T12:00:00Z"}),
    ("/v1/recommend/u14", {"X-Recloop-Now": "noon"}),
]


def comparable(response: httpx.Response) -> tuple[int, dict[str, str], Any]:
    """Return an answer without its random id."""
    headers = dict(response.headers)
    body = response.json()
    if body.pop("request_id", None) == headers["x-request-id"]:
        headers["x-request-id"] = "the id of the answer"
    elif len(headers["x-request-id"]) == 32:
        headers["x-request-id"] = "another random id"
    return response.status_code, headers, body


def test_list_endpoint_equals_the_routes(project: Project) -> None:
    app = create(open_project(project.root, ["serve.allow_time_header=true"]), clock=lambda: 1_752_000_000_000_000)

    async def ask_both() -> None:
        async with servers.local(app) as client:
            for path, headers in REQUESTS:
                lean = comparable(await client.get(path, headers=headers))
                endpoint, app.lists = app.lists, None
                by_route = comparable(await client.get(path, headers=headers))
                app.lists = endpoint
                assert lean == by_route, path

    try:
        asyncio.run(ask_both())
    finally:
        app.state.service.close()


def answers(url: str, requests: bytes, n: int) -> list[tuple[bytes, dict[str, Any]]]:
    """Send bytes on one connection and read n answers: head and body."""
    address = httpx.URL(url)
    received = []
    with socket.create_connection((address.host, address.port or 80), timeout=servers.PATIENCE) as connection:
        connection.sendall(requests)
        stream = connection.makefile("rb")
        for _ in range(n):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                line = stream.readline()
                assert line, "the connection was closed"
                head += line
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            received.append((head, json.loads(stream.read(size))))
    return received


def test_list_protocol_answers_unusual_requests(server: servers.Server) -> None:
    host = b"Host: 127.0.0.1\r\n"
    lists = b"GET /v1/recommend/u%02d?n=2 HTTP/1.1\r\n" + host
    piped = b"".join(lists % n + b"\r\n" for n in range(10, 14))
    mixed = b"GET /v1/health/live HTTP/1.1\r\n" + host + b"\r\n" + piped
    found = answers(server.url, mixed, 5)
    assert [body.get("status") for _, body in found] == ["live", None, None, None, None]
    assert all(len(body["items"]) == 2 for _, body in found[1:])
    with_body = lists % 20 + b"Content-Length: 4\r\n\r\nabcd" + piped
    assert [len(body["items"]) for _, body in answers(server.url, with_body, 5)] == [2] * 5
    ((head, body),) = answers(server.url, b"GET /v1/recommend/u14?n=2 HTTP/1.0\r\n" + host + b"\r\n", 1)
    assert b"connection: close" in head.lower()
    assert len(body["items"]) == 2
    ((head, body),) = answers(server.url, lists % 14 + host + b"\r\n", 1)
    assert head.startswith(b"HTTP/1.1 400")
    assert body["error"]["code"] == "bad_host"


def test_request_ids_are_distinct_and_ascend_by_time() -> None:
    ids = RequestIds()
    made = [ids.next() for _ in range(1_000)]
    assert len(set(made)) == 1_000
    assert {(len(text), uuid.UUID(text).version, uuid.UUID(text).variant) for text in made} == {(32, 7, uuid.RFC_4122)}
    milliseconds = [text[:12] for text in made]
    assert milliseconds == sorted(milliseconds)
    assert abs(int(milliseconds[-1], 16) / 1e3 - time.time()) < 60
