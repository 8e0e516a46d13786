"""Verbs backup, restore, migrate, gc and audit: work on the project folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recloop.cli.terminal import Json, plain, print_json, project
from recloop.errors import UserError
from recloop.progress import ConsoleProgress

if TYPE_CHECKING:
    from recloop.storage.audit import AuditCheck


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
    stores: Annotated[str, typer.Option(help="database for log and control store, or files")] = "",
    as_json: Json = False,
) -> None:
    """Copy a backup into a new project folder and verify it."""
    from recloop.pipeline import backup as steps

    done = steps.restore(Path(source), Path(to), ConsoleProgress(), stores)
    if as_json:
        print_json(done.to_json())
        return
    checked = done.verified or {}
    plain(
        f"{done.files:,} files with equal hashes, {checked['checked']} decisions rebuilt; next: recloop -C {to} serve"
    )


def migrate(
    to: Annotated[str, typer.Option("--backup", metavar="DIR", help="back up into this new folder first")] = "",
    no_backup: Annotated[bool, typer.Option("--no-backup", help="migrate without a backup")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the steps and change nothing")] = False,
    as_json: Json = False,
) -> None:
    """Migrate the stores to the schemas of this version.

    Stop serve first; serve and update also migrate a store when they open it.
    """
    from recloop.pipeline import migration

    done = migration.migrate(project(), to, dry_run, ConsoleProgress(), no_backup)
    if as_json:
        print_json(done.to_json())
        return
    for step in done.steps:
        plain(step)
    if not done.steps:
        plain("every store has the newest schema")
    elif done.backup:
        plain(f"backup: {done.backup}; to return: recloop restore {done.backup} --to DIR, with the earlier version")


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


def audit(
    user: Annotated[str, typer.Option(help="show the rows of this person")] = "",
    verify: Annotated[bool, typer.Option("--verify", help="check the hash chain; exit 1 on a break")] = False,
    as_json: Json = False,
) -> None:
    """Show who changed keys, releases and persons' data."""
    from recloop.privacy.audit_rows import audit_rows

    here = project()
    if verify:
        if user:
            raise UserError("--user", user, "audit without --verify, which checks all rows", "recloop audit --verify")
        _check_audit(here.open_control().check_audit(), as_json)
        return
    rows = audit_rows(here, user)
    if as_json:
        print_json({"rows": rows})
        return
    for row in rows:
        details = " ".join(f"{name}={value}" for name, value in row["details"].items())
        plain(
            f"{row['id']}  {row['at']}  {row['action']}  {row['subject'] or '-'}  by {row['who']}  {details}".rstrip()
        )


def _check_audit(check: AuditCheck, as_json: bool) -> None:
    if as_json:
        print_json(check._asdict())
    else:
        plain(f"{check.rows:,} rows: {check.problem or 'the chain is whole'}; last hash {check.last or 'none'}")
    if check.problem:
        raise typer.Exit(1)
