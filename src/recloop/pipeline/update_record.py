"""Record of each finished run, which `/metrics` shows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from recloop.monitoring import last_update
from recloop.monitoring.last_update import LastUpdate
from recloop.pipeline.update_run import UpdateResult
from recloop.project import Project
from recloop.records import now


class Finished(Protocol):
    """Result of a run."""

    @property
    def seconds(self) -> float: ...


P = ParamSpec("P")
R = TypeVar("R", bound=Finished)


def recorded(run: Callable[Concatenate[Project, P], R]) -> Callable[Concatenate[Project, P], R]:
    """Wrap a first run or an update so that its result is the last update."""

    def wrapped(project: Project, /, *arguments: P.args, **options: P.kwargs) -> R:
        result = run(project, *arguments, **options)
        verdict, is_stopped = "first", False
        if isinstance(result, UpdateResult):
            verdict, is_stopped = result.verdict, bool(result.failed)
        last_update.save(project, LastUpdate(now(), verdict, result.seconds, is_stopped))
        return result

    functools.update_wrapper(wrapped, run)
    return wrapped
