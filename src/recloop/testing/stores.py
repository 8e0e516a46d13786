"""Stores of a contract test, and rows for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recloop.files import JsonTree
from recloop.records import Decision, Event
from recloop.storage import (
    ControlStore,
    DecisionLog,
    EventLog,
    open_control,
    open_decisions,
    open_log,
)


@dataclass(frozen=True)
class Stores:
    """The three stores of a project, open for writing; they can be reopened."""

    root: Path
    urls: tuple[str, str, str]
    opened: list[EventLog | DecisionLog] = field(default_factory=list)

    def log(self, write: bool = True) -> EventLog:
        self.opened.append(open_log(self.urls[0], self.root, write))
        return self.opened[-1]  # type: ignore[return-value]

    def decisions(self, write: bool = True) -> DecisionLog:
        self.opened.append(open_decisions(self.urls[1], self.root, write))
        return self.opened[-1]  # type: ignore[return-value]

    def control(self) -> ControlStore:
        return open_control(self.urls[2], self.root)

    def close(self) -> None:
        while self.opened:
            self.opened.pop().close()


def some_event(item_id: str = "i", **fields: Any) -> Event:
    """Build an event of user ``u`` with the given fields."""
    return Event(**{"user_id": "u", "item_id": item_id, "timestamp": 1, "received_at": 2, **fields})


def some_decision(request_id: str, **fields: Any) -> Decision:
    """Build a decision for user ``u`` with the given fields."""
    plain: JsonTree = {
        "role": "answer", "user_id": "u", "served_at": 10, "as_of_seq": 3, "bundle": "b", "generation": 1, "variant": "live",
        "placement": "home", "n": 2, "query": {"exclude": []}, "items": ["é", "01"], "scores": [0.5, -1.0],
        "sources": ["history", "popular"], "inputs": {"state": "0123abcd"},
    }  # fmt: skip
    return Decision(request_id=request_id, **{**plain, **fields})
