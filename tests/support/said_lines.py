"""Progress that keeps its lines."""

from __future__ import annotations

from recloop.progress import NullProgress


class Lines(NullProgress):
    """Progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, chapter: str, line: str) -> None:
        self.said.append(line)
