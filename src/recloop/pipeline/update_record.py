"""Record of each finished run, which `/metrics` shows."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

from recloop.errors import Locked, UserError
from recloop.monitoring import last_update
from recloop.monitoring.last_update import LastUpdate
from recloop.pipeline.update_run import UpdateResult
from recloop.project import Project
from recloop.records import now

FAILED: Final = "failed"
"""Verdict of a run that ended with an error."""


class Finished(Protocol):
    """Result of a run."""

    @property
    def seconds(self) -> float: ...


P = ParamSpec("P")
R = TypeVar("R", bound=Finished)


def recorded(run: Callable[Concatenate[Project, P], R]) -> Callable[Concatenate[Project, P], R]:
    """Wrap a first run or an update so that its result is the last update.

    An error is recorded too, but neither that of an argument nor that of a project without a record.
    """

    def wrapped(project: Project, /, *arguments: P.args, **options: P.kwargs) -> R:
        begin = time.monotonic()
        try:
            result = run(project, *arguments, **options)
        except Locked:  # the other run records its own result
            raise
        except Exception as error:
            is_argument = bool(project.sets) or (isinstance(error, UserError) and error.name.startswith("--"))
            if not is_argument and last_update.read(project) is not None:
                with contextlib.suppress(OSError):  # such as a full disk, which is the error to show
                    last_update.save(project, LastUpdate(now(), FAILED, time.monotonic() - begin, is_stopped=True))
            raise
        verdict, is_stopped = "first", False
        if isinstance(result, UpdateResult):
            verdict, is_stopped = result.verdict, bool(result.failed)
        last_update.save(project, LastUpdate(now(), verdict, result.seconds, is_stopped))
        return result

    functools.update_wrapper(wrapped, run)
    return wrapped
