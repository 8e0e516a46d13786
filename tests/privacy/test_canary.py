"""Keys, tokens and ids of persons in logs, metrics, status and answers of errors: none, whatever a client sends.

Each secret or id is a text that nothing else contains. Requests of all routes carry them in every place, valid and not.
"""

from __future__ import annotations

import itertools
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import servers
from access import control_of

import recloop
from recloop.serve import openapi
from recloop.storage import api_keys

PERSON = "person-canary-7"
ANONYMOUS = "browser-canary-7"
MAIL = "canary-7@shop.example"
MISPLACED = "misplaced-canary-7"
"""A value in a place where no id belongs; the answer of the error may repeat it."""
FORGED = "recloop_canary-7" + "x" * 30
PUBLIC = ("/v1/health/live", "/v1/health/ready", "/v1/status", "/metrics", "/openapi.json", "/", "/nothing")


@dataclass
class Watched:
    """A service that was sent every canary, its canaries, and the answers that were errors."""

    server: servers.Server
    canaries: dict[str, str]
    errors: list[httpx.Response]

    def found_in(self, text: str) -> list[str]:
        """Names of the canaries in a text."""
        return [name for name, canary in self.canaries.items() if canary in text]


def rows() -> Iterator[Any]:
    """Bodies with ids of a person: events, users and identifications, right and wrong in many ways."""
    good = {"user_id": PERSON, "item_id": "i001", "event_type": "purchase", "event_id": f"order of {MAIL}"}
    yield good
    yield {**good, "item_id": "i002"}  # the event id conflicts
    yield {**good, "event_id": MAIL, "anonymous_id": ANONYMOUS, "context": {"mail": MAIL}}
    yield {"anonymous_id": ANONYMOUS, "user_id": PERSON, "timestamp": "2025-01-01T00:00:00Z"}
    yield {"user_id": PERSON, "attributes": {"age": MAIL, "name": [MAIL], "text": {"deep": MAIL}}}
    for name in ("user_id", "item_id", "event_type", "event_id", "timestamp", "request_id", "anonymous_id", "quantity"):
        for value in (None, [PERSON], {"id": PERSON}, PERSON + "\0", PERSON * 100, MAIL):
            yield {**good, name: value}
            yield [{**good, name: value}]
    yield from (PERSON, [PERSON], {MISPLACED: PERSON}, [[{MISPLACED: MAIL}]])


def bodies() -> Iterator[tuple[bytes, Mapping[str, str]]]:
    """Bodies and headers that cannot be read."""
    json = {"Content-Type": "application/json"}
    text = f'{{"user_id": "{PERSON}", "event_id": "{MAIL}"'.encode()
    yield text, json
    yield text, {"Content-Type": "application/x-ndjson"}
    yield text, {**json, "Content-Encoding": "gzip"}
    yield text, {"Content-Type": MISPLACED}
    yield text, {**json, "Idempotency-Key": MAIL, "X-Recloop-Now": MAIL, "Content-Encoding": MISPLACED}
    yield text + b"\xff\xfe", json


def addresses(path: str) -> Iterator[str]:
    """Addresses of a route with ids of a person in the path and the parameters."""
    named = re.sub(r"\{\w+(:path)?\}", PERSON, path)
    yield named
    yield from (f"{named}?{name}={PERSON}" for name in ("anonymous_id", "session_id"))
    yield from (f"{named}?{name}={MISPLACED}" for name in ("n", "placement", "filter", "context", "mail"))
    yield f"{named}/{PERSON}%00"


def send_all(server: servers.Server, keys: Mapping[str, str]) -> list[httpx.Response]:
    """Send the canaries to every route with every key; return the answers that are errors."""
    answers: list[httpx.Response] = []
    with httpx.Client(base_url=server.url, timeout=servers.PATIENCE) as client:
        for path, methods in openapi.document()["paths"].items():
            if path.startswith("/v1/admin"):
                continue
            for method, key in itertools.product(methods, keys.values()):
                headers = {"Authorization": f"Bearer {key or None}", "Cookie": f"session={key}", "X-Request-Id": MAIL}
                answers += [client.request(method, address, headers=headers) for address in addresses(path)]
        answers += [client.get(f"/{PERSON}/{MAIL}?key={key}") for key in keys.values()]
        answers += [
            client.request("PURGE", f"/v1/recommend/{PERSON}"),
            client.get("/v1/recommend/", headers={"Host": "evil.example"}),
        ]
    for path in ("/v1/events", "/v1/users", "/v1/identify"):
        answers += [server.client.post(path, json=row) for row in rows()]
        answers += [server.client.post(path, content=body, headers=headers) for body, headers in bodies()]
    move = {"bundle": PERSON, "to": MAIL, "reason": 7}
    answers.append(server.client.post("/v1/admin/promote", json=move))
    return [answer for answer in answers if answer.status_code >= 400]


def send_to_broken_parts(server: servers.Server) -> list[httpx.Response]:
    """Send the canaries after the log was moved away."""
    (server.root / "store/log.db").rename(server.root / "store/away.db")
    end = time.monotonic() + servers.PATIENCE
    while server.client.get("/v1/health/ready").status_code == 200 and time.monotonic() < end:
        time.sleep(0.1)
    row = {"user_id": PERSON, "item_id": "i001", "event_type": "purchase", "event_id": f"late {MAIL}"}
    answers = [server.client.post("/v1/events", json=row), server.client.post("/v1/identify", json=row)]
    assert answers[0].status_code == 503, answers[0].text
    answers += [server.client.get(path) for path in (f"/v1/recommend/{PERSON}", f"/v1/users/{PERSON}")]
    return [answer for answer in answers if answer.status_code >= 400]


@pytest.fixture(scope="module")
def watched(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = shutil.copytree(trained_folder, tmp_path_factory.mktemp("canary") / "shop")
    control = control_of(folder)
    secrets = {scope: api_keys.add(folder, control, f"{scope}-key", [scope])[1] for scope in api_keys.KEY_SCOPES}
    control.close()
    secrets["own page token"] = recloop.sign(PERSON, "page-key", secrets["page"])
    secrets["page token of another"] = recloop.sign("u001", "page-key", secrets["page"])
    server = servers.start(folder)
    canaries = {
        "person": PERSON,
        "anonymous id": ANONYMOUS,
        "mail": MAIL,
        "misplaced": MISPLACED,
        "forged key": FORGED,
        "token": server.token,
    }
    try:
        errors = send_all(server, {**secrets, "forged": FORGED, "none": ""})
        errors += send_to_broken_parts(server)
        yield Watched(server, {**canaries, **secrets}, errors)
    finally:
        server.close()


def test_answers_of_errors_hold_no_canary(watched: Watched) -> None:
    assert len(watched.errors) > 500
    assert {answer.status_code for answer in watched.errors} >= {400, 401, 403, 404, 405, 503}
    named = {
        f"{answer.request.method} {answer.url.path}: {answer.text}": names
        for answer in watched.errors
        if (names := [name for name in watched.found_in(answer.text) if name != "misplaced"])
    }
    assert named == {}


@pytest.mark.parametrize("path", PUBLIC)
def test_pages_about_the_service_hold_no_canary(watched: Watched, path: str) -> None:
    answer = watched.server.client.get(path)
    assert watched.found_in(f"{answer.headers}{answer.text}") == []


def test_logs_hold_no_canary(watched: Watched) -> None:
    assert watched.server.stop() == 0
    output = watched.server.process.stdout
    assert output is not None
    assert watched.found_in(watched.server.errors.read_text() + output.read()) == []
    assert watched.server.errors.read_text(), "the log is expected to have lines"
