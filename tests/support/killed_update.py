"""Command line of recloop that kills itself after a step of an update.

``RECLOOP_KILL_AFTER=learn python tests/support/killed_update.py -C shop update`` runs ``recloop -C shop update`` and
sends SIGKILL to itself as soon as the journal names the step. Only this module reads the variable.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from recloop.cli import run
from recloop.pipeline import update_run
from recloop.pipeline.journal import Journal

VARIABLE = "RECLOOP_KILL_AFTER"


class KillingJournal(Journal):
    """Journal that kills its process once the chosen step is on the disk."""

    def record(self, step: str, **facts: Any) -> None:
        super().record(step, **facts)
        if step == os.environ[VARIABLE]:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    """Run a command line whose updates write a killing journal."""
    update_run.Journal = KillingJournal  # type: ignore[misc]
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
