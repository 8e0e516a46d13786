"""A client of the service as a shop's back end would write it, and the service as a child process: for demo and trials."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from recloop.errors import UserError

WAIT = 60.0  # seconds that a service may take to start or to end


@dataclass
class Client:
    """A few calls of the service, as a shop's back end would make them; ``now``: the time that requests carry."""

    url: str
    now: int = 0

    def get(self, path: str, **query: str) -> dict[str, Any]:
        text = urllib.parse.urlencode(query)
        return self._call(urllib.request.Request(f"{self.url}{path}" + (f"?{text}" if text else "")))  # noqa: S310

    def post(self, path: str, body: Any) -> dict[str, Any]:
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        return self._call(urllib.request.Request(f"{self.url}{path}", data, kind, method="POST"))  # noqa: S310 - loopback

    def recommend(self, user_id: str, **query: str) -> dict[str, Any]:
        return self.get(f"/v1/recommend/{urllib.parse.quote(user_id, safe='')}", **query)

    def _call(self, request: urllib.request.Request) -> dict[str, Any]:
        if self.now:
            request.add_header("X-Recloop-Now", iso(self.now))
        with urllib.request.urlopen(request, timeout=WAIT) as answer:  # noqa: S310 - loopback
            tree: dict[str, Any] = json.load(answer)
        return tree


@contextmanager
def serving(root: Path, command: tuple[str, ...] = ()) -> Iterator[Client]:
    """``recloop serve`` on a free port as a child; ended by SIGTERM, which lets it drain."""
    words = command or (sys.executable, "-m", "recloop", "-C", str(root), "serve", "--port", "0")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None
            ready = re.match(r"ready (http://\S+) bundle=(\S+)", child.stdout.readline())
            if ready is None:
                raise UserError("serve", child.wait(WAIT), "a line that begins with: ready", f"recloop -C {root} serve")
            yield Client(ready[1])
        finally:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(WAIT)
            except subprocess.TimeoutExpired:
                child.kill()


def iso(stamp: int) -> str:
    """Microseconds as ISO 8601 in UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=stamp)).isoformat()
