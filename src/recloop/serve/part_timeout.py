"""Time limit of the parts of a list: a signal interrupts the thread that answers.

A Python loop, a wait and a read of a socket or pipe are interrupted. One call of a C library, and a read of a disk that
does not answer, are not, before they return.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection
from types import FrameType
from typing import Final

SIGNAL: Final = signal.SIGUSR2
CHECK_SECONDS: Final = 0.05
"""Time between two checks, and the time that each further part of an interrupted list has."""
PAUSE_SECONDS: Final = 10.0
"""Time for which lists leave out a part that was interrupted, so that a part that hangs does not delay each list."""


class PartTimeoutError(Exception):
    """A part of a list took too long."""


class PartTimer:
    """Time limit of the lists of a process; used on its main thread.

    Args:
        limit: Returns the seconds after which the part at work is interrupted.

    Attributes:
        interrupted: Parts that were interrupted so far.
    """

    def __init__(self, limit: Callable[[], float]) -> None:
        self._limit = limit
        self._began = 0.0  # by `time.monotonic`; 0 while no list is made
        self._paused: dict[str, float] = {}
        self.interrupted = 0

    def start(self) -> None:
        """Interrupt lists from now on; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return  # Python runs signal handlers on the main thread only
        signal.signal(SIGNAL, self._interrupt)
        threading.Thread(target=self._watch, name="part timer", daemon=True).start()

    def begin(self) -> None:
        """Limit the time of a list from now on, until `end`."""
        self._began = time.monotonic()

    def end(self) -> None:
        self._began = 0.0

    @property
    def paused(self) -> frozenset[str]:
        """Parts that lists leave out at the moment."""
        if not self._paused:
            return frozenset()
        now = time.monotonic()
        self._paused = {part: until for part, until in self._paused.items() if until > now}
        return frozenset(self._paused)

    def pause(self, parts: Collection[str]) -> None:
        """Leave parts out of the next lists."""
        until = time.monotonic() + PAUSE_SECONDS
        self._paused |= dict.fromkeys(parts, until)

    def _is_late(self) -> bool:
        began = self._began
        return began > 0 and time.monotonic() - began > self._limit()

    def _interrupt(self, _number: int, _frame: FrameType | None) -> None:
        if self._is_late():
            self.interrupted += 1
            raise PartTimeoutError

    def _watch(self) -> None:
        while True:
            time.sleep(CHECK_SECONDS)
            if self._is_late():
                signal.pthread_kill(threading.main_thread().ident, SIGNAL)  # type: ignore[arg-type] # of a living thread
