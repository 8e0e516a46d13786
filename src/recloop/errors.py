"""Exception tree of recloop, with exit codes and message formats.

    RecloopError                 every error that recloop raises on purpose
    ├── UserError      exit 2    invalid input: name, value, expectation and fix
    │   └── BundleError          bundle that must not be served: file and defect
    ├── Refused        exit 1    failed gate or check: name, number and threshold
    └── Locked         exit 3    lock held by another run: command, process, since when
    OSError
    └── StoreError     exit 2    database server that does not answer

The command line prints ``error: NAME=VALUE: expected ...; try: COMMAND`` and never a traceback for these.
"""

from __future__ import annotations

from typing import Any


def printable(value: object) -> str:
    """Format a value as one printable line for a message.

    The middle of a long value is left out.
    """
    text = str(value)
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= 200 else f"{text[:97]}...{text[-100:]}"


class RecloopError(Exception):
    """Base of every intended error; ``exit_code`` is that of the command line."""

    exit_code = 70


class UserError(RecloopError):
    """Invalid input of the user.

    Args:
        name: The invalid key, column, file or argument.
        value: The value found.
        expected: The expected value.
        fix: The command or edit that corrects it.
        samples: Rows to show above the message.
    """

    exit_code = 2

    def __init__(self, name: str, value: Any, expected: str, fix: str = "", samples: tuple[str, ...] = ()) -> None:
        self.name, self.value, self.expected, self.fix, self.samples = name, value, expected, fix, samples
        super().__init__(f"{name}={printable(value)}: expected {expected}" + (f"; try: {fix}" if fix else ""))


class BundleError(UserError):
    """Invalid bundle: wrong hash, missing or extra file, link, unknown format."""

    def with_fix(self, fix: str) -> BundleError:
        """Return the same error with another fix."""
        return BundleError(self.name, self.value, self.expected, fix, self.samples)


class Refused(RecloopError):
    """Failed gate or check."""

    exit_code = 1

    def __init__(self, gate: str, number: object, threshold: object, reason: str = "") -> None:
        self.gate, self.number, self.threshold, self.reason = gate, number, threshold, reason
        super().__init__(
            f"refused: {gate}={printable(number)}, threshold {threshold}" + (f": {reason}" if reason else "")
        )


class Locked(RecloopError):
    """Lock of a folder held by another run.

    ``fix`` is the advice for the user.
    """

    exit_code = 3

    def __init__(self, lock: str, holder: str, fix: str = "wait for it to end, or end it") -> None:
        self.lock, self.holder = lock, holder
        super().__init__(f"{lock} is held by {holder}; try: {fix}")


class StoreError(OSError):
    """A database server that does not answer or refuses a statement.

    Args:
        key: Key of the store, such as ``stores.log``.
        address: Its address without the password.
        reason: Message of the server or of the connection.
    """

    def __init__(self, key: str, address: str, reason: str) -> None:
        super().__init__(f"{key}={address}: {reason}")
        self.key, self.address, self.reason = key, address, reason


def is_failure(error: BaseException) -> bool:
    """Return True for an error of code or data.

    A panic of Polars, which a damaged Parquet file causes, counts. An interrupt does not.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"
