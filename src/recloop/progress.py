"""Progress reports of a run: protocol, null object and console implementation."""

from __future__ import annotations

import sys
from typing import Any, Final, Protocol

import rich.console
import rich.progress

STDERR: Final = rich.console.Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 132)


class Progress(Protocol):
    """Receiver of step results and of the progress of long steps."""

    def say(self, chapter: str, line: str) -> None: ...
    def show(self, chapter: str, drawn: Any) -> None: ...
    def bar(self, chapter: str, done: int, total: int) -> None: ...


class NullProgress:
    """Discard all reports."""

    def say(self, chapter: str, line: str) -> None: ...
    def show(self, chapter: str, drawn: Any) -> None: ...
    def bar(self, chapter: str, done: int, total: int) -> None: ...


class ConsoleProgress:
    """Print step results to stderr, with a progress bar for long steps on a terminal."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None

    def say(self, chapter: str, line: str) -> None:
        STDERR.print(f"[bold]{chapter:>9}[/]  ", end="")
        STDERR.print(line, markup=False, emoji=False)

    def show(self, chapter: str, drawn: Any) -> None:
        if chapter != "evaluate":  # commands print the table to stdout
            STDERR.print(drawn)

    def bar(self, chapter: str, done: int, total: int) -> None:
        if self._progress is None:
            self._progress = rich.progress.Progress(console=STDERR, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(f"{chapter:>9}", total=total)
        self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self._progress.stop()
            self._progress = None


def printable(text: str) -> str:
    """Replace the control characters of a text that another program wrote."""
    return "".join(character if character.isprintable() else " " for character in text)
