"""Comparisons of a service in a child process, so that they do not delay answers.

    compare(project, "shadow", bundle)       # the shadow report, computed by `main` in a child process

A comparison reads many decisions and rows. The child has a lower priority and a time limit. Request and result are pickled
over its stdin and stdout; both ends are this module.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from recloop.errors import RecloopError, Refused, UserError
from recloop.monitoring import experiment, shadow_report
from recloop.project import Project
from recloop.records import SECOND, now
from recloop.release import transitions

Kind = Literal["shadow", "experiment", "steps"]
KINDS: Final[dict[Kind, Callable[..., Any]]] = {
    "shadow": shadow_report.shadow_report,
    "experiment": experiment.analyze,
    "steps": transitions.measure_steps,
}
COMPARISON_SECONDS: Final = 300.0
"""Longest time of a comparison."""
FRESH_SECONDS: Final = 60.0
"""Time for which the console uses a result again."""
NICE: Final = 10


@dataclass(frozen=True)
class Failure:
    """Error of a comparison: its class and arguments."""

    error: type[RecloopError]
    arguments: tuple[Any, ...]

    @classmethod
    def of(cls, error: RecloopError) -> Failure:
        """Describe an error; values are formatted, so that any can be sent."""
        if isinstance(error, Refused):
            return cls(type(error), (error.gate, str(error.number), str(error.threshold), error.reason))
        if isinstance(error, UserError):
            return cls(type(error), (error.name, str(error.value), error.expected, error.fix, error.samples))
        return cls(RecloopError, (str(error),))


def compare(project: Project, kind: Kind, *arguments: object, seconds: float = COMPARISON_SECONDS) -> Any:
    """Compute a comparison in a child process; call it off the event loop.

    Args:
        arguments: Arguments of the function in `KINDS`, after the project.
        seconds: Time limit.

    Raises:
        UserError: the time limit passed, or the child failed.
        RecloopError: raised by the comparison.
    """
    request = pickle.dumps((project, kind, arguments))
    command = [sys.executable, "-c", "from recloop.serve.comparisons import main; main()"]
    try:
        child = subprocess.run(command, input=request, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        fix = "recloop status, or recloop promote on the command line"
        raise UserError("comparison", kind, f"a result within {seconds:g} s", fix) from None
    if child.returncode:
        reason = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise UserError("comparison", kind, f"a child process without an error ({reason})", "recloop status")
    result = pickle.loads(child.stdout)  # noqa: S301 written by `main`
    if isinstance(result, Failure):
        raise result.error(*result.arguments)
    return result


def measure_steps(project: Project, bundle: str, with_experiment: bool) -> transitions.StepEvidence:
    """Measure the steps of a bundle, the experiment in a child process.

    See `transitions.measure_steps`; without the experiment it only counts rows of an index.
    """
    if not with_experiment:
        return transitions.measure_steps(project, bundle, with_experiment)
    evidence: transitions.StepEvidence = compare(project, "steps", bundle, with_experiment)
    return evidence


@dataclass(frozen=True)
class Comparison:
    """Last comparison: its ``result`` or ``problem``, and the time of its start."""

    result: Any
    problem: str
    at: int


class Comparisons:
    """Last comparisons of a service, one child process at a time; thread-safe."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._lock = threading.Lock()
        self._last: dict[tuple[Kind, str], Comparison] = {}

    def last(self, kind: Kind, bundle: str) -> Comparison | None:
        """Return the last comparison of a bundle; None before the first one."""
        return self._last.get((kind, bundle))

    def refresh(self, kind: Kind, bundle: str) -> Comparison:
        """Return a comparison of the last minute, computed now if necessary."""
        with self._lock:
            last = self.last(kind, bundle)
            started = now()
            if last is not None and started - last.at < FRESH_SECONDS * SECOND:
                return last
            try:
                comparison = Comparison(compare(self._project, kind, bundle), "", started)
            except RecloopError as error:
                comparison = Comparison(None, str(error), started)
            self._last = {key: value for key, value in self._last.items() if key[0] != kind}
            self._last[kind, bundle] = comparison
            return comparison


def main() -> None:
    """Compute the comparison of stdin and write its result to stdout."""
    os.nice(NICE)
    project, kind, arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 written by `compare`
    output = sys.stdout.buffer
    sys.stdout = sys.stderr  # prints of libraries
    try:
        result = KINDS[kind](project, *arguments)
    except RecloopError as error:
        result = Failure.of(error)
    output.write(pickle.dumps(result))
