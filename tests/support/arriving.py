"""Rows written to a project's log as by the server, and an update killed after a step."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

import polars as pl

from recloop.features.labels import EventLabeler
from recloop.project import Project
from recloop.records import Event

STEPS = ("collect", "check", "learn", "judge", "finish", "publish")
"""Steps of an update in order."""
KILL = """
import os, signal, sys
from recloop.pipeline.journal import Journal
from recloop.cli import run
record = Journal.record
def dying(self, step, **facts):
    record(self, step, **facts)
    if step == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
Journal.record = dying
sys.exit(run(sys.argv[2:]))
"""


def post(project: Project, rows: pl.DataFrame) -> None:
    """Store rows with rules and seqs; each row's arrival is its timestamp."""
    with project.open_log(write=True) as log:
        rules = EventLabeler(project.config.events, project.config.clean).causal_rule(rows).to_list()
        events = [
            Event(
                **{name: value for name, value in row.items() if value is not None},
                received_at=row["timestamp"],
                rule=rule,
            )
            for row, rule in zip(rows.iter_rows(named=True), rules, strict=True)
        ]
        log.append_events(events)


def die_after(step: str, project: Project, sets: Sequence[str]) -> None:
    """Run ``recloop update`` in a process that is killed after the step."""
    words = [word for one in sets for word in ("--set", one)]
    verb = [sys.executable, "-c", KILL, step, "-C", str(project.root), *words, "update", "--json"]
    killed = subprocess.run(verb, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
