"""Record of the last finished `recloop update`, in ``reports/update.json``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

from recloop.files import replace_json
from recloop.project import Project

RESULT_FILE: Final = "update.json"


@dataclass(frozen=True)
class LastUpdate:
    """Result of an update.

    Attributes:
        at: Time of its end, int64 microseconds.
        seconds: Its duration.
        is_stopped: A gate, a check or an error stopped it.
    """

    at: int
    verdict: str
    seconds: float
    is_stopped: bool


def save(project: Project, update: LastUpdate) -> None:
    """Replace ``reports/update.json``."""
    replace_json(project.reports / RESULT_FILE, asdict(update))


def read(project: Project) -> LastUpdate | None:
    """Read the last update; None without one."""
    try:
        tree: dict[str, Any] = json.loads((project.reports / RESULT_FILE).read_text("utf-8"))
        return LastUpdate(int(tree["at"]), str(tree["verdict"]), float(tree["seconds"]), bool(tree["is_stopped"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
