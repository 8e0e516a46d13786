"""The frame of the command line: where it works, what it tells on the way, and how it ends."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import rich.console
import typer

from recloop.errors import RecloopError, UserError

if TYPE_CHECKING:
    from recloop.project import Project

INTERRUPTED: Final = 130
WRITABLE: Final = "a place that this user may read and write"
ROOM: Final = "room on its disk"
BARRED: Final = {
    errno.EACCES: WRITABLE, errno.EPERM: WRITABLE, errno.EROFS: WRITABLE, errno.ENOSPC: ROOM, errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM, errno.ENOTDIR: "folders on the way to it", errno.EEXIST: "folders on the way to it", errno.EISDIR: "a file, not a folder",
    errno.ENOENT: "a file that is there", errno.ENAMETOOLONG: "a shorter name",
}  # fmt: skip
"""What was expected of a file where the system refuses it."""
BARRED_STORE: Final = {
    sqlite3.SQLITE_PERM: WRITABLE, sqlite3.SQLITE_READONLY: WRITABLE, sqlite3.SQLITE_CANTOPEN: WRITABLE,
    sqlite3.SQLITE_FULL: ROOM, sqlite3.SQLITE_IOERR: "a disk that can be read and written",
    sqlite3.SQLITE_BUSY: "stores that no other program keeps locked", sqlite3.SQLITE_CORRUPT: "stores that are whole",
    sqlite3.SQLITE_NOTADB: "stores that are whole",
}  # fmt: skip
"""The same of a store."""

out = rich.console.Console(width=None if sys.stdout.isatty() else 132)

Json = Annotated[bool, typer.Option("--json", help="stdout is exactly one JSON object")]


class CliContext:
    """Where and how this run was asked to work: ``-C`` and ``--set``, taken out of the arguments before the verb."""

    root = Path()
    sets: tuple[str, ...] = ()


def project() -> Project:
    """The project of this run."""
    from recloop.project import open_project  # the stores take a second to import: not for --help

    return open_project(CliContext.root, CliContext.sets)


def plain(line: str) -> None:
    """One line on stdout: no markup read into it, none of it wrapped."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(tree: Any) -> None:
    """The one object that ``--json`` promises."""
    print(json.dumps(tree, ensure_ascii=False, allow_nan=False))


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; see docs/reference/cli.md."""
    try:
        code = app(_take_place(list(arguments)), prog_name="recloop", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            print("interrupted", file=sys.stderr)  # typer makes the code of it, and says nothing
        return int(code or 0)
    except RecloopError as error:
        return _said(error)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (BrokenPipeError, SystemExit) as ended:
        if not isinstance(ended, BrokenPipeError) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        return _unread()
    except Exception as error:  # noqa: BLE001 - the last door: nobody outside sees a traceback
        if hasattr(error, "format_message"):  # what typer (or the click inside it) says of a wrong command line
            return _wrong(arguments, error)
        barred = _as_user_error(error)
        if barred is not None:
            return _said(barred)
        with tempfile.NamedTemporaryFile("w", prefix="recloop-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        print(
            f"error: a bug in recloop; the traceback is in {file.name}; try: report it with that file", file=sys.stderr
        )
        return 70


def command(verb: Sequence[str]) -> list[str]:
    """The command line of this program for a child process, in the same folder with the same settings."""
    place = ["-C", str(CliContext.root), *(word for setting in CliContext.sets for word in ("--set", setting))]
    return [sys.executable, "-m", "recloop", *place, *verb]


def _said(error: RecloopError) -> int:
    for sample in getattr(error, "samples", ()):
        print(sample, file=sys.stderr)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _unread() -> int:
    """Who read our output has gone (``recloop status | head -1``): that is no answer, so no error; rich and click say 1."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's own last flush complains
    return 0


def _as_user_error(error: Exception) -> UserError | None:
    """What the place itself refused (rights, a disk that is full or read-only, a folder where a file should be) is no bug."""
    if isinstance(error, sqlite3.Error):
        expected = BARRED_STORE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)
        path: object = CliContext.root / "store"
    elif isinstance(error, OSError):
        expected = BARRED.get(error.errno or 0)
        path = error.filename2 or error.filename or CliContext.root
    else:
        return None
    if expected is None:
        return None
    why = str(getattr(error, "strerror", None) or error)
    return UserError("file", path, f"{expected} ({why})", f"ls -ld {path}")


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
    CliContext.root, CliContext.sets = Path(), ()
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
            CliContext.root = Path(value)
        else:
            CliContext.sets = (*CliContext.sets, value)
    return rest
