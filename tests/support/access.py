"""Access checks without a service: an application over a folder and a browser with cookies."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from recloop.config import Stores
from recloop.project import Project
from recloop.records import now
from recloop.serve.app import build
from recloop.serve.live_config import LiveConfig
from recloop.settings import build as config_of
from recloop.storage import ControlStore, open_control

TOKEN = "t" * 43
"""The admin token of `application`."""


class _Service:
    """The parts of a service that the access checks read."""

    def __init__(self, root: Path) -> None:
        self.project = Project(root, config_of({"serve": {"hosts": ["shop.example"]}}, environment={}))
        self.live = LiveConfig(self.project.config.serve)
        self.token = TOKEN
        self.clock = now


def application(root: Path, host: str = "127.0.0.1") -> Starlette:
    """Build the application of a folder; ``shop.example`` is a known host, and only access checks can answer."""
    return build(_Service(root), host)  # type: ignore[arg-type]


class Browser:
    """Requests to an application of this process, with the cookies that it set."""

    def __init__(self, app: Starlette) -> None:
        self._app, self.cookies = app, httpx.Cookies()

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        async def one() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://localhost:8088", cookies=self.cookies
            ) as client:
                answer = await client.request(method, path, **more)
                self.cookies = client.cookies
                return answer

        return asyncio.run(one())

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self.request("POST", path, **more)


def status_and_code(client: Any, path: str = "/v1/health/live", method: str = "GET", **headers: str) -> tuple[int, str]:
    answer = client.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
    code = answer.json()["error"]["code"] if answer.status_code >= 400 else ""
    return answer.status_code, code


def control_of(root: Path) -> ControlStore:
    """The control store of a folder, which has the audit log of its keys."""
    return open_control(Stores().control, root)
