"""Client of a service under faults that asks for lists."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
from servers import PATIENCE


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
