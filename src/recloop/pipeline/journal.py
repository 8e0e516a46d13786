"""The journal of an update: which steps of a run are done and what they left, so that a killed run goes on.

A run's folder holds what its steps wrote; ``journal.json`` names the finished ones. It is written by rename after the
step's own files are on the disk, so a step that is named is whole; one that is not is done again from its start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from recloop.files import replace_json
from recloop.json_object import JsonTree

FILE = "journal.json"
STAGED = ("data", "candidate", "bundles", "rest")
"""Folders of a run that hold what its steps hand on; gone once it has its verdict."""


class Journal:
    """The steps of one run.

    Attributes:
        started: The start of the run, kept when it goes on after a kill.
        head: What the run was begun with: seqs, live bundle, settings. A run goes on only under the same.
    """

    def __init__(self, folder: Path, tree: JsonTree) -> None:
        self.folder, self._tree = folder, tree

    @classmethod
    def begin(cls, folder: Path, started: datetime, head: Mapping[str, Any]) -> Journal:
        """A new run in a folder that is there."""
        journal = cls(folder, {"started": started.isoformat(), "head": dict(head), "steps": {}, "verdict": None})
        journal._write()
        return journal

    @classmethod
    def unfinished(cls, runs: Path) -> Journal | None:
        """The newest run that has no verdict; None: all came to their end."""
        for file in sorted(runs.glob(f"*/{FILE}"), reverse=True):
            tree = json.loads(file.read_text("utf-8"))
            if tree["verdict"] is None:
                return cls(file.parent, tree)
        return None

    @classmethod
    def ended(cls, runs: Path) -> Iterator[Journal]:
        """The runs that have a verdict, the newest first."""
        for file in sorted(runs.glob(f"*/{FILE}"), reverse=True):
            tree = json.loads(file.read_text("utf-8"))
            if tree["verdict"] is not None:
                yield cls(file.parent, tree)

    @property
    def verdict(self) -> str | None:
        """How the run ended; None: it has not."""
        verdict: str | None = self._tree["verdict"]
        return verdict

    @property
    def started(self) -> datetime:
        return datetime.fromisoformat(self._tree["started"])

    @property
    def head(self) -> JsonTree:
        head: JsonTree = self._tree["head"]
        return head

    def has(self, step: str) -> bool:
        """Whether a step is done."""
        return step in self._tree["steps"]

    def facts(self, step: str) -> JsonTree:
        """What a finished step left."""
        facts: JsonTree = self._tree["steps"][step]
        return facts

    def done(self, step: str, **facts: Any) -> None:
        """A step is whole."""
        self._tree["steps"][step] = facts
        self._write()

    def close(self, verdict: str) -> None:
        """The run has come to its end: what its steps handed on is no longer needed."""
        self._tree["verdict"] = verdict
        self._write()
        for name in STAGED:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _write(self) -> None:
        replace_json(self.folder / FILE, self._tree)
