"""Verbs backup, restore and gc: work on the project folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recloop.cli.terminal import Json, plain, print_json, project
from recloop.progress import ConsoleProgress


def backup(
    to: Annotated[str, typer.Argument(metavar="TO", help="write into this new folder")], as_json: Json = False
) -> None:
    """Copy the project while it is served and updated."""
    from recloop.pipeline import backup as steps

    done = steps.backup(project(), Path(to), ConsoleProgress())
    if as_json:
        print_json(done.to_json())
    else:
        plain(f"{done.files:,} files, {done.bytes / 1e6:,.1f} MB, log up to seq {done.last_seq}: {done.path}")


def restore(
    source: Annotated[str, typer.Argument(metavar="FROM", help="folder of a backup")],
    to: Annotated[str, typer.Option(help="write into this new folder")],
    as_json: Json = False,
) -> None:
    """Copy a backup into a new project folder and verify it."""
    from recloop.pipeline import backup as steps

    done = steps.restore(Path(source), Path(to), ConsoleProgress())
    if as_json:
        print_json(done.to_json())
        return
    checked = done.verified or {}
    plain(
        f"{done.files:,} files with equal hashes, {checked['checked']} decisions rebuilt; next: recloop -C {to} serve"
    )


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be removed and remove nothing")] = False,
    as_json: Json = False,
) -> None:
    """Remove expired bundles, runs and rows."""
    from recloop.pipeline import retention
    from recloop.storage import locks

    here = project()
    with locks.run_lock(here.root, "gc"):
        done = retention.collect(here, dry_run)
    if as_json:
        print_json(done.to_json())
        return
    for line in done.lines:
        plain(line)
