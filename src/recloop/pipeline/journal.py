"""Journal of an update: finished steps and their results, to resume a killed run.

A run's folder holds the output of its steps; ``journal.json`` names the finished ones. It is written by rename after
the step's own files are on the disk. So a named step is complete, and any other step is repeated from its start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from recloop.files import JsonTree, replace_json

JOURNAL_FILE = "journal.json"
STAGED_FOLDERS = ("data", "candidate", "bundles", "rest")
"""Folders of a run with intermediate results; deleted once the run has a verdict."""


class Journal:
    """Steps of one run.

    Attributes:
        started: The start of the run, kept when it resumes after a kill.
        head: The inputs of the run: seqs, live bundle, settings. A run resumes only with the same inputs.
    """

    def __init__(self, folder: Path, tree: JsonTree) -> None:
        self.folder = folder
        self._tree = tree

    @classmethod
    def begin(cls, folder: Path, started: datetime, head: Mapping[str, Any]) -> Journal:
        """Start a new run in an existing folder."""
        journal = cls(folder, {"started": started.isoformat(), "head": dict(head), "steps": {}, "verdict": None})
        journal._write()
        return journal

    @classmethod
    def unfinished(cls, runs: Path) -> Journal | None:
        """Return the newest run without a verdict; None if all are finished."""
        for file in sorted(runs.glob(f"*/{JOURNAL_FILE}"), reverse=True):
            tree = json.loads(file.read_text("utf-8"))
            if tree["verdict"] is None:
                return cls(file.parent, tree)
        return None

    @classmethod
    def ended(cls, runs: Path) -> Iterator[Journal]:
        """Return the runs with a verdict, newest first."""
        for file in sorted(runs.glob(f"*/{JOURNAL_FILE}"), reverse=True):
            tree = json.loads(file.read_text("utf-8"))
            if tree["verdict"] is not None:
                yield cls(file.parent, tree)

    @property
    def verdict(self) -> str | None:
        """Return the run's verdict; None if it is unfinished."""
        verdict: str | None = self._tree["verdict"]
        return verdict

    @property
    def started(self) -> datetime:
        return datetime.fromisoformat(self._tree["started"])

    @property
    def head(self) -> JsonTree:
        head: JsonTree = self._tree["head"]
        return head

    def is_done(self, step: str) -> bool:
        """Return whether a step is done."""
        return step in self._tree["steps"]

    def facts(self, step: str) -> JsonTree:
        """Return the result of a finished step."""
        facts: JsonTree = self._tree["steps"][step]
        return facts

    def record(self, step: str, **facts: Any) -> None:
        """Record a step as finished."""
        self._tree["steps"][step] = facts
        self._write()

    def close(self, verdict: str) -> None:
        """Record the verdict and delete intermediate results."""
        self._tree["verdict"] = verdict
        self._write()
        for name in STAGED_FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _write(self) -> None:
        replace_json(self.folder / JOURNAL_FILE, self._tree)
