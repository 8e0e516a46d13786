"""The client: a kept connection, reconnection after a close, errors with their body."""

from __future__ import annotations

import json
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from recloop.ingest.client import Client


class FakeServer(ThreadingHTTPServer):
    """An echo server that counts connections and may close them after an answer."""

    connections = 0
    closes_connections = False


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        request = {"path": self.path, "body": body, **{k.lower(): v for k, v in self.headers.items()}}
        text = json.dumps(request).encode()
        self.send_response(409 if self.path.endswith("no") else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.close_connection = self.server.closes_connections

    do_POST = do_GET  # noqa: N815 - the name that the base class calls

    def log_message(self, *_: Any) -> None:
        """Suppress log output."""


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    with FakeServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def posting_client(fake_server: FakeServer) -> Iterator[Client]:
    made = Client(f"http://127.0.0.1:{fake_server.server_port}/base")
    yield made
    made.close()


def test_client_uses_one_connection_for_all_calls(fake_server: FakeServer, posting_client: Client) -> None:
    response = posting_client.recommend("a / ü", n="3")
    assert response["path"] == "/base/v1/recommend/a%20%2F%20%C3%BC?n=3"
    assert "x-recloop-now" not in response
    posting_client.now = 1_000_000
    posted = posting_client.post("/v1/events", [{"user_id": "a"}])
    assert json.loads(posted["body"]) == [{"user_id": "a"}]
    assert posted["content-type"] == "application/json"
    assert posted["x-recloop-now"] == "1970-01-01T00:00:01+00:00"
    assert fake_server.connections == 1


def test_client_reconnects_after_the_service_closed_the_connection(
    fake_server: FakeServer, posting_client: Client
) -> None:
    fake_server.closes_connections = True  # without a `Connection: close` header
    for number in range(1, 4):
        assert posting_client.get(f"/{number}")["path"] == f"/base/{number}"
        assert fake_server.connections == number


def test_client_error_contains_the_response_body(posting_client: Client) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        posting_client.post("/no", {})
    assert caught.value.code == 409
    assert json.loads(caught.value.read())["path"] == "/base/no"
    assert posting_client.get("/yes")["path"] == "/base/yes"


def test_client_without_a_service_raises(fake_server: FakeServer, posting_client: Client) -> None:
    posting_client.get("/yes")
    fake_server.shutdown()
    fake_server.server_close()
    posting_client.close()
    with pytest.raises(OSError, match="refused"):
        posting_client.get("/yes")
