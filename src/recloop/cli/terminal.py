"""Command-line runtime: global options, output, errors and exit codes."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import rich.console
import typer

from recloop.errors import RecloopError, StoreError, UserError, is_failure

if TYPE_CHECKING:
    from recloop.project import Project

INTERRUPTED: Final = 130
RENAMED_VERBS: Final = {"refuse": "reject"}
RENAMED_OPTIONS: Final = {"-k": "-n"}
WRITABLE: Final = "a path with read and write permission"
ROOM: Final = "free space on its disk"
BARRED: Final = {
    errno.EACCES: WRITABLE, errno.EPERM: WRITABLE, errno.EROFS: WRITABLE, errno.ENOSPC: ROOM, errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM, errno.ENOTDIR: "parents that are folders, not files", errno.EEXIST: "parents that are folders, not files", errno.EISDIR: "a file, not a folder",
    errno.ENOENT: "an existing file", errno.ENAMETOOLONG: "a shorter name",
}  # fmt: skip
"""Expectation in the error message, by error code of the file system."""
BARRED_STORE: Final = {
    sqlite3.SQLITE_PERM: WRITABLE, sqlite3.SQLITE_READONLY: WRITABLE, sqlite3.SQLITE_CANTOPEN: WRITABLE,
    sqlite3.SQLITE_FULL: ROOM, sqlite3.SQLITE_IOERR: "a readable and writable disk",
    sqlite3.SQLITE_BUSY: "stores that no other program has locked", sqlite3.SQLITE_CORRUPT: "undamaged stores",
    sqlite3.SQLITE_NOTADB: "undamaged stores",
}  # fmt: skip
"""Expectation in the error message, by error code of SQLite."""

out = rich.console.Console(width=None if sys.stdout.isatty() else 132)

Json = Annotated[bool, typer.Option("--json", help="print exactly one JSON object")]


class CliContext:
    """Global options of this run: ``-C`` and ``--set``."""

    root = Path()
    sets: tuple[str, ...] = ()


def project() -> Project:
    """Open the project of this run."""
    from recloop.project import open_project  # importing the stores takes a second, too long for --help

    return open_project(CliContext.root, CliContext.sets)


def plain(line: str) -> None:
    """Print one line to stdout without markup or wrapping."""
    out.print(line, markup=False, highlight=False, soft_wrap=True)


def print_json(tree: Any) -> None:
    """Print the single object of ``--json``."""
    print(json.dumps(tree, ensure_ascii=False, allow_nan=False))


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; see docs/reference/cli.md."""
    try:
        words = _extract_global_options(list(arguments)) or ["--help"]
        _refuse_old_names(words)
        code = app(words, prog_name="recloop", standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:
            print("interrupted", file=sys.stderr)  # typer sets the code and prints nothing
        return int(code or 0)
    except RecloopError as error:
        return _print_error(error)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except (BrokenPipeError, SystemExit) as ended:
        if not isinstance(ended, BrokenPipeError) and not isinstance(ended.__context__, BrokenPipeError):
            raise
        return _discard_output()
    except BaseException as error:
        if not is_failure(error):
            raise
        if hasattr(error, "format_message"):  # a usage error of typer or click
            return _print_usage_error(arguments, error)
        user_error = _as_user_error(error)
        if user_error is not None:
            return _print_error(user_error)
        with tempfile.NamedTemporaryFile("w", prefix="recloop-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        print(
            f"error: a bug in recloop, with its traceback in {file.name}; try: report it with this file",
            file=sys.stderr,
        )
        return 70


def command(verb: Sequence[str]) -> list[str]:
    """Build the command line of a child process with the same folder and settings."""
    options = ["-C", str(CliContext.root), *(word for setting in CliContext.sets for word in ("--set", setting))]
    return [sys.executable, "-m", "recloop", *options, *verb]


def _print_error(error: RecloopError) -> int:
    for sample in getattr(error, "samples", ()):
        print(sample, file=sys.stderr)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _discard_output() -> int:
    """Return exit code 0 after the reader closed stdout.

    ``recloop status | head -1`` is such a reader; rich and click would exit 1.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python's final flush raises again
    return 0


def _as_user_error(error: BaseException) -> UserError | None:
    """Convert permission, disk and path errors to a `UserError`; None for others."""
    if isinstance(error, StoreError):
        answers = f"a PostgreSQL database that answers ({error.reason})"
        return UserError(error.key, error.address, answers, f'psql "{error.address}"')
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


def _print_usage_error(arguments: Sequence[str], error: Any) -> int:
    """Print an unknown verb or option, or an invalid value; return exit code 2."""
    verb = getattr(getattr(error, "ctx", None), "info_name", None)
    id_word = _id_like_option(arguments) if verb == "recommend" else ""
    if id_word:
        words = [word for word in arguments if word != id_word]
        print(
            f"error: USER={id_word}: expected -- before an id that begins with -; "
            f"try: recloop {shlex.join([*words, '--', id_word])}",
            file=sys.stderr,
        )
        return 2
    usage = "recloop --help" if verb in {None, "recloop"} else f"recloop {verb} --help"
    problem = error.format_message().rstrip(".")
    print(
        f"error: command={' '.join(arguments)}: expected a valid command line ({problem}); try: {usage}",
        file=sys.stderr,
    )
    return 2


def _id_like_option(arguments: Sequence[str]) -> str:
    """Return the first word with ``-`` that is not an option of `recommend`, or empty."""
    known = {"-n", "-C", "-h"}
    for word in arguments:
        if word == "--":
            return ""
        if re.match("-[^-]", word) and word[:2] not in known:
            return word
    return ""


def _refuse_old_names(words: Sequence[str]) -> None:
    """Raise a `UserError` that names the new verb or option in place of an old one."""
    verb, *options = words
    if verb in RENAMED_VERBS:
        new = RENAMED_VERBS[verb]
        raise UserError("command", verb, f"{new}, the new name of {verb}", f"recloop {shlex.join([new, *options])}")
    for option in options[: options.index("--") if "--" in options else None]:
        if option[:2] in RENAMED_OPTIONS:
            old, new = option[:2], RENAMED_OPTIONS[option[:2]]
            raise UserError("option", option, f"{new}, the new name of {old}", f"recloop {verb} --help")


def _extract_global_options(arguments: list[str]) -> list[str]:
    """Move ``-C`` and ``--set`` from the arguments into `CliContext`.

    Returns the remaining arguments.
    """
    rest: list[str] = []
    CliContext.root, CliContext.sets = Path(), ()
    while arguments:
        word = arguments.pop(0)
        if word == "--":
            rest += [word, *arguments]
            break
        if word in {"-C", "--set"}:
            if not arguments:
                raise UserError(word, "", "a value after this option", "recloop --help")
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
