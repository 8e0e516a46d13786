"""Clients that post batches and send each again until it is acknowledged."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import httpx
from servers import PATIENCE

BATCH = 10
N_USERS = 1_000
"""Users of each sender; so few that their histories grow, so many that no row is part of a burst."""


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
                users = [f"{self.number}-{(batch * BATCH + row) % N_USERS}" for row in range(BATCH)]
                self._send(client, [_row(user, name) for user, name in zip(users, names, strict=True)])
                self.acknowledged += names
                batch += 1
                time.sleep(0.05)

    def _send(self, client: httpx.Client, rows: list[dict[str, str]]) -> None:
        while True:
            self.attempts += 1
            try:
                answer = client.post("/v1/events", json=rows)
            except httpx.HTTPError:
                time.sleep(0.05)
                continue
            if answer.status_code in (200, 207) and answer.json()["accepted"] + answer.json()["duplicate"] == len(rows):
                return
            if answer.status_code != 503:
                self.refused.append(answer.text)
                return


def _row(user_id: str, event_id: str) -> dict[str, str]:
    return {"user_id": user_id, "item_id": "i14", "event_type": "purchase", "event_id": event_id}
