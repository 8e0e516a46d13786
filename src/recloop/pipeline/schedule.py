"""Repetition of updates at an interval until a stop signal or a failed gate."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NamedTuple, Protocol

from recloop.errors import Locked
from recloop.pipeline.journal import Journal
from recloop.project import Project
from recloop.release.gate_result import GateResult
from recloop.storage import locks


class Ended(NamedTuple):
    """End of a loop: exit code, reason and number of updates.

    Exit codes: 0 after a stop signal, 1 after a failed gate, 2 and 70 as for an update.
    """

    code: int
    reason: str
    updates: int


class Clock(Protocol):
    """Clock of the loop, in seconds."""

    def now(self) -> float: ...
    def wait(self, seconds: float) -> bool: ...  # False: stop requested


class WallClock:
    """Clock of the machine."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, seconds: float) -> bool:
        time.sleep(seconds)
        return True


class Terminated(BaseException):
    """SIGTERM was received."""


def repeat(
    update: Callable[[], int], interval: float, clock: Clock, say: Callable[[str], None], reason: Callable[[int], str]
) -> Ended:
    """Run updates in sequence, ``interval`` seconds from start to start.

    An update that takes longer delays the next one.

    Args:
        update: Run one update and return its exit code. 0 continues the loop; 3 (a lock is held) is skipped; any other
            code ends the loop.
        reason: Explain an exit code that ends the loop.
    """
    updates = 0
    while True:
        started = clock.now()
        code = update()
        updates += 1
        if code == Locked.exit_code:
            say("skipped: a lock is held (see the message above)")
        elif code != 0:
            return Ended(code, reason(code), updates)
        if not clock.wait(max(0.0, interval - (clock.now() - started))):
            return Ended(0, "stop requested", updates)


def run(project: Project, command: Sequence[str], interval: float, say: Callable[[str], None]) -> Ended:
    """Repeat a command as a child process, so each update starts with fresh memory.

    SIGTERM ends the child and the loop with exit code 0; an interrupted update resumes at the next start.

    Raises:
        Locked: another loop repeats updates in this project.
    """
    with locks.schedule_lock(project.root), _terminable():
        children: list[subprocess.Popen[bytes]] = []

        def update() -> int:
            children.append(subprocess.Popen(command))
            return children[-1].wait()

        def reason(code: int) -> str:
            return last_reason(project) if code == 1 else f"the update ended with exit code {code}"

        try:
            return repeat(update, interval, WallClock(), say, reason)
        except Terminated:
            for child in children[-1:]:
                child.terminate()
                child.wait()
            return Ended(0, "stopped by SIGTERM", len(children))


def last_reason(project: Project) -> str:
    """Return the reason why the newest update registered no bundle."""
    journal = next(iter(Journal.ended(project.runs)), None)
    if journal is None:
        return "no update has run"
    facts = [journal.facts(step) for step in ("check", "enough", "judge", "finish") if journal.is_done(step)]
    failed = [
        gate for step in facts for gate in map(GateResult.from_json, step["gates"]) if not gate.ok and not gate.waits
    ]
    return f"{journal.verdict}: {'; '.join(gate.reason for gate in failed)}"


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise `Terminated` in the main thread on SIGTERM."""

    def raise_terminated(_: int, __: FrameType | None) -> None:
        raise Terminated

    previous_handler = signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
