"""The frame of the command line: where it works, what it tells on the way, and how it ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich.console
import typer
from rich.progress import Progress

from recloop.config import Project, open_project, seconds
from recloop.errors import RecloopError, UserError

out = rich.console.Console(width=None if sys.stdout.isatty() else 132)
err = rich.console.Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 132)


class Place:
    """Where and how this run was asked to work: ``-C`` and ``--set``, taken out of the arguments before the verb."""

    root = Path()
    sets: tuple[str, ...] = ()


def project() -> Project:
    """The project of this run."""
    return open_project(Place.root, Place.sets)


class Teller:
    """Tells on stderr what came out of each step; a bar where a terminal watches a long one."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None

    def say(self, chapter: str, line: str) -> None:
        err.print(f"[bold]{chapter:>9}[/]  ", end="")
        err.print(line, markup=False, emoji=False)

    def show(self, chapter: str, drawn: Any) -> None:
        if chapter != "evaluate":  # verbs put the table on stdout
            err.print(drawn)

    def bar(self, chapter: str, done: int, total: int) -> None:
        if self._progress is None:
            self._progress = Progress(console=err, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(f"{chapter:>9}", total=total)
        self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self._progress.stop()
            self._progress = None


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; see the interface, section 2."""
    try:
        code = app(_take_place(list(arguments)), prog_name="recloop", standalone_mode=False)
        return int(code or 0)
    except RecloopError as error:
        for sample in getattr(error, "samples", ()):
            print(sample, file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the last door: nobody outside sees a traceback
        if hasattr(error, "format_message"):  # what typer (or the click inside it) says of a wrong command line
            return _wrong(arguments, error)
        with tempfile.NamedTemporaryFile("w", prefix="recloop-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        print(
            f"error: a bug in recloop; the traceback is in {file.name}; try: report it with that file", file=sys.stderr
        )
        return 70


def repeat(verb: Sequence[str], every: str) -> None:
    """Start this command line as a child each ``every`` (1h, 30m), counted from start to start, until interrupted.

    A child that fails has said why on stderr; the next one is started all the same.
    """
    pause = seconds("--every", every)
    place = ["-C", str(Place.root), *(word for setting in Place.sets for word in ("--set", setting))]
    while True:
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", "recloop", *place, *verb], check=False)
        time.sleep(max(0.0, pause - (time.monotonic() - begin)))


def _wrong(arguments: Sequence[str], error: Any) -> int:
    """The answer to a command line that cannot be: an unknown verb or option, a value that does not fit."""
    if not arguments:
        print(error.format_message(), file=sys.stderr)  # no verb at all: the help
        return 2
    verb = getattr(getattr(error, "ctx", None), "info_name", None)
    usage = "recloop --help" if verb in {None, "recloop"} else f"recloop {verb} --help"
    said = error.format_message().rstrip(".")
    print(f"error: command={' '.join(arguments)}: expected what --help says ({said}); try: {usage}", file=sys.stderr)
    return 2


def _take_place(arguments: list[str]) -> list[str]:
    """Take ``-C DIR`` and ``--set KEY=VALUE`` out of the arguments, wherever they stand."""
    rest: list[str] = []
    Place.root, Place.sets = Path(), ()
    while arguments:
        word = arguments.pop(0)
        if word == "--":
            rest += [word, *arguments]
            break
        if word in {"-C", "--set"}:
            if not arguments:
                raise UserError(word, "", "a value after it", "recloop --help")
            value = arguments.pop(0)
        elif word.startswith("--set="):
            word, value = "--set", word.removeprefix("--set=")
        else:
            rest.append(word)
            continue
        if word == "-C":
            Place.root = Path(value)
        else:
            Place.sets = (*Place.sets, value)
    return rest
