"""Demo output: numbered steps, and the folder that a demo may overwrite."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console

from recloop.errors import UserError
from recloop.features import state_store
from recloop.files import JsonTree
from recloop.progress import Progress

MARK = "# The demo of recloop."


class DemoNarrator:
    """Prints the demo step by step and keeps each step's lines for ``--json``."""

    def __init__(self, progress: Progress, out: rich.console.Console) -> None:
        self.steps: list[JsonTree] = []
        self._progress, self._out = progress, out
        self._started = self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the demo began."""
        return time.monotonic() - self._started

    def say(self, chapter: str, line: str) -> None:
        """Print a line of a chapter; a new chapter starts a step."""
        if not self.steps or self.steps[-1]["name"] != chapter:
            self.end()
            self.steps.append({"name": chapter, "seconds": 0.0, "out": []})
            self._begin = time.monotonic()
            self._out.print(f"\n[bold]{len(self.steps)}. {chapter}[/]", highlight=False)
        self.steps[-1]["out"].append(line)
        self._out.print(f"   {line}", markup=False, highlight=False, emoji=False)

    def show(self, chapter: str, drawn: Any) -> None:  # noqa: ARG002 - same signature as `Progress`
        """Print a renderable such as a table or the doctor's report."""
        self._out.print(drawn)

    def bar(self, chapter: str, done: int, total: int) -> None:
        self._progress.bar(chapter, done, total)

    def end(self) -> None:
        """Record and print the seconds of the finished step."""
        if self.steps:
            self.steps[-1]["seconds"] = round(time.monotonic() - self._begin, 2)
            self._out.print(f"   [dim]{self.steps[-1]['seconds']:.1f} s[/]", highlight=False)


def write_config(folder: Path, template: str, words: str, **values: str) -> None:
    """Extend the ``recloop.toml`` of a simulated shop by the template of a demo.

    Args:
        template: TOML with ``mark``, ``words``, ``project`` (the present content) and the keys of ``values``.
    """
    config = folder / "recloop.toml"
    config.write_text(template.format(mark=MARK, words=words, project=config.read_text("utf-8"), **values), "utf-8")


def written_paths(folder: Path) -> list[str]:
    """Files below a folder, sorted; a folder of the archive or of states is one path."""
    paths = []
    for root, folders, names in os.walk(folder):
        listed = [name for name in folders if name == "archive" or name.startswith(state_store.PREFIX)]
        folders[:] = [name for name in folders if name not in listed]
        paths += [str(Path(root) / name) for name in [*names, *listed]]
    return sorted(paths)


def end_demo(shown: DemoNarrator, folder: Path, commands: Sequence[str]) -> JsonTree:
    """Show seconds, files and next commands; return each step's lines and the files."""
    files = written_paths(folder)
    shown.say("files", f"the whole loop took {shown.seconds:.0f} s and wrote {len(files)} files to {folder}")
    for words in commands:
        shown.say("files", f"next: recloop -C {folder} {words}")
    shown.end()
    return {"steps": shown.steps, "files": files}


def fresh_folder(folder: Path) -> Path:
    """Empty the folder; an earlier demo in it is removed.

    Raises:
        UserError: the folder contains other files.
    """
    config = folder / "recloop.toml"
    if folder.exists() and any(folder.iterdir()):
        if not config.exists() or not config.read_text("utf-8").startswith(MARK):
            raise UserError("--dir", folder, "an empty folder, or one of an earlier demo", "recloop demo --dir NEW")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
