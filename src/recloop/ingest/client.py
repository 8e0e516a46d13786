"""HTTP client of the command line and the demo, and a service as a child process.

It needs no extra; applications use `recloop.client`.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

from recloop.errors import UserError
from recloop.storage import admin_token

TIMEOUT_SECONDS = 60.0  # seconds that a service may take to start or to end


class Client:
    """HTTP client with one persistent connection, for one thread.

    Args:
        url: URL of the service.
        token: API key or admin token; empty for none.

    Attributes:
        now: int64 microseconds; the time sent with requests, 0: none.
    """

    def __init__(self, url: str, now: int = 0, token: str = "") -> None:
        self.url = url
        self.now = now
        self._token = token
        address = urllib.parse.urlsplit(url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._kept = kind(address.hostname or "", address.port, timeout=TIMEOUT_SECONDS)
        self._path = address.path

    def get(self, path: str, **query: str) -> dict[str, Any]:
        text = urllib.parse.urlencode(query)
        return self._call("GET", f"{path}?{text}" if text else path, None, {})

    def post(self, path: str, body: Any) -> dict[str, Any]:
        return self.send("POST", path, json.dumps(body).encode())

    def send(self, method: str, path: str, body: bytes, content_type: str = "application/json") -> dict[str, Any]:
        """Send a body of JSON, or of JSON lines."""
        return self._call(method, path, body, {"Content-Type": content_type})

    def recommend(self, user_id: str, **query: str) -> dict[str, Any]:
        return self.get(f"/v1/recommend/{urllib.parse.quote(user_id, safe='')}", **query)

    def close(self) -> None:
        """Close the connection; the next call connects again."""
        self._kept.close()

    def _call(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
        """Send one request.

        If the service has closed the persistent connection, the request is sent again on a new one.

        Raises:
            HTTPError: the status is 400 or more; its body can be read.
        """
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        if self.now:
            headers["X-Recloop-Now"] = iso(self.now)
        was_connected = self._kept.sock is not None
        try:
            response = self._send(method, path, body, headers)
        except ConnectionError:
            self._kept.close()
            if not was_connected:
                raise
            response = self._send(method, path, body, headers)
        text = response.read()
        if response.status >= HTTPStatus.BAD_REQUEST:
            content = io.BytesIO(text)
            raise urllib.error.HTTPError(self.url + path, response.status, response.reason, response.headers, content)
        tree: dict[str, Any] = json.loads(text)
        return tree

    def _send(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> http.client.HTTPResponse:
        self._kept.request(method, self._path + path, body, headers)
        return self._kept.getresponse()


@contextmanager
def serving(root: Path, command: tuple[str, ...] = ()) -> Iterator[Client]:
    """Run ``recloop serve`` on a free port as a child process.

    SIGTERM drains and ends it.
    """
    arguments = command or (sys.executable, "-m", "recloop", "-C", str(root), "serve", "--port", "0")
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready = re.match(r"ready (http://\S+) bundle=(\S+)", process.stdout.readline())
            if ready is None:
                raise UserError(
                    "serve",
                    process.wait(TIMEOUT_SECONDS),
                    "a first line that starts with ready",
                    f"recloop -C {root} serve",
                )
            with closing(
                Client(ready[1], token=admin_token.read(root))
            ) as client:  # an idle connection would delay the shutdown
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def iso(stamp: int) -> str:
    """Format microseconds as ISO 8601 in UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=stamp)).isoformat()
