"""Clients of a service under faults: one posts events until they are acknowledged, one asks for lists."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from servers import PATIENCE

BATCH = 10
"""Rows of one post."""


@dataclass
class Sender(threading.Thread):
    """A client that posts batches and sends each again, with the same event ids, until it is acknowledged."""

    number: int
    url: str
    token: str
    until: threading.Event
    acknowledged: list[str] = field(default_factory=list)
    attempts: int = 0
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def __hash__(self) -> int:
        return self.number

    def run(self) -> None:
        headers = {"Authorization": f"Bearer {self.token}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE) as client:
            batch = 0
            while not self.until.is_set():
                names = [f"{self.number}-{batch}-{row}" for row in range(BATCH)]
                self._send(client, [{"user_id": name, "item_id": "i14", "event_id": name} for name in names])
                self.acknowledged += names
                batch += 1
                time.sleep(0.02)

    def _send(self, client: httpx.Client, rows: list[dict[str, str]]) -> None:
        while True:
            self.attempts += 1
            try:
                answer = client.post("/v1/events", json=[{**row, "event_type": "view"} for row in rows])
            except httpx.HTTPError:
                time.sleep(0.05)
                continue
            if answer.status_code in (200, 207) and answer.json()["accepted"] + answer.json()["duplicate"] == len(rows):
                return
            if answer.status_code != 503:
                self.refused.append(answer.text)
                return


@dataclass
class Shopper(threading.Thread):
    """A client that asks for lists without a pause and never asks twice.

    Attributes:
        keeps: Keep the answers.
    """

    number: int
    url: str
    until: threading.Event
    keeps: bool = True
    answered: int = 0
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as client:
            while not self.until.is_set():
                user = f"u{self.answered % 60:02d}"
                try:
                    answer = client.get(f"/v1/recommend/{user}", params={"n": 5})
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                    continue
                self.answered += 1
                if answer.status_code == 200 and self.keeps:
                    self.answers[answer.json()["request_id"]] = answer.json()
                elif answer.status_code != 200:
                    self.failed.append(answer.text)
                time.sleep(0.01)
