"""The exception tree: what can go wrong, and what each error says to the person who sees it.

    RecloopError                 every error that recloop raises on purpose
    ├── UserError      exit 2    a mistake of the user's: name, value, what was expected, the command that mends it
    │   └── BundleError          a bundle that may not be served: the file and what is wrong with it
    ├── Refused        exit 1    done, and the answer is no: the gate or check, its number, its threshold
    └── Locked         exit 3    another run holds the lock: the verb, the process, since when

The command line prints ``error: NAME=VALUE: expected ...; try: COMMAND`` and never a traceback for these.
"""

from __future__ import annotations

from typing import Any


def printable(value: object) -> str:
    """A value as it stands in a message: on one line, printable, its middle left out where it is long."""
    text = str(value)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= 200 else f"{text[:97]}...{text[-100:]}"


class RecloopError(Exception):
    """Base of every error raised on purpose; ``exit_code`` is the command line's."""

    exit_code = 70


class UserError(RecloopError):
    """A mistake of the user's.

    Args:
        name: What is wrong: a key, a column, a file, an argument.
        value: The value found there.
        expected: What was expected instead.
        fix: The command or edit that corrects it.
        samples: Rows to show above the message.
    """

    exit_code = 2

    def __init__(self, name: str, value: Any, expected: str, fix: str = "", samples: tuple[str, ...] = ()) -> None:
        self.name, self.value, self.expected, self.fix, self.samples = name, value, expected, fix, samples
        super().__init__(f"{name}={printable(value)}: expected {expected}" + (f"; try: {fix}" if fix else ""))


class BundleError(UserError):
    """A bundle that may not be served: a hash differs, a file is missing or extra, a link, an unknown format."""


class Refused(RecloopError):
    """Done, and the answer is no."""

    exit_code = 1

    def __init__(self, gate: str, number: object, threshold: object, reason: str = "") -> None:
        self.gate, self.number, self.threshold, self.reason = gate, number, threshold, reason
        super().__init__(
            f"refused: {gate}={printable(number)}, threshold {threshold}" + (f": {reason}" if reason else "")
        )


class Locked(RecloopError):
    """Another run holds the lock of this folder; ``fix``: what to do about it."""

    exit_code = 3

    def __init__(self, lock: str, holder: str, fix: str = "wait for it to end, or end it") -> None:
        self.lock, self.holder = lock, holder
        super().__init__(f"{lock} is held by {holder}; try: {fix}")
