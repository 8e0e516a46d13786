"""Rows written to a project's log as by the server, and an update killed after a step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

import killed_update
import polars as pl

from recloop.features.labels import EventLabeler
from recloop.project import Project
from recloop.records import Event

STEPS = ("collect", "check", "learn", "judge", "finish", "publish")
"""Steps of an update in order."""


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
    options = [word for setting in sets for word in ("--set", setting)]
    command = [sys.executable, killed_update.__file__, "-C", str(project.root), *options, "update", "--json"]
    environment = {**os.environ, killed_update.VARIABLE: step}
    killed = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
