"""Verbs ingest, items, export, quarantine and forget: rows and catalog."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from recloop.cli.terminal import Json, plain, print_json, project
from recloop.progress import ConsoleProgress

MAX_PRINTED_REJECTS: Final = 100


def ingest(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="read CSV, JSON lines or Parquet; - is stdin")],
    url: Annotated[str, typer.Option(help="post to this service, e.g. http://127.0.0.1:8088")] = "",
    as_json: Json = False,
) -> None:
    """Add rows to the log, once per event_id."""
    from recloop.ingest import bulk as arrivals

    taken = arrivals.ingest(project(), file, url, ConsoleProgress())
    if as_json:
        print_json(taken.to_json())
    else:
        counts = ", ".join(f"{count:,} {status}" for status, count in taken.to_json().items())
        plain(f"{counts} ({taken.seconds:.1f} s); next: recloop update")
    if not taken.whole:
        raise typer.Exit(1)


def export(
    what: Annotated[
        str, typer.Argument(metavar="split|log|person", help="export split, log, or all that is stored of a person")
    ],
    user: Annotated[str, typer.Argument(metavar="[USER]", help="export this person")] = "",
    form: Annotated[str, typer.Option("--format", help="parquet, hdf5 (split) or jsonl (log)")] = "parquet",
    folder: Annotated[str, typer.Option("--out", metavar="PATH", help="write this new folder; a person: file")] = "",
    as_json: Json = False,
) -> None:
    """Export the split, the log for a new project, or a person."""
    from recloop.data import export as exports

    here = project()
    if what == "person":
        _export_person(user, folder)
        return
    done = exports.export(here, what, form, Path(folder or f"export-{what}"))
    if as_json:
        print_json(done.to_json())
        return
    for name, rows in done.rows.items():
        plain(f"{name}: {rows:,} rows")
    plain(f"wrote {', '.join(str(file) for file in done.files)}")


def _export_person(user: str, file: str) -> None:
    """Print all that is stored of a user as JSON, or write it to a new private file."""
    from recloop.errors import UserError
    from recloop.files import private_file, replace_json
    from recloop.privacy.person_export import export_person

    if not user:
        raise UserError("USER", user, "a user id", "recloop export person USER")
    if file and Path(file).exists():
        raise UserError("--out", file, "a file that does not exist yet", f"--out {file}.new")
    tree = export_person(project(), user)
    if not file:
        print_json(tree)
        return
    private_file(Path(file))
    replace_json(Path(file), tree)
    Path(file).chmod(0o600)
    plain(f"wrote {file}: {len(tree['events']):,} events, {len(tree['decisions']):,} decisions")


def quarantine(
    where: Annotated[str, typer.Option(metavar="CONDITION", help="select rows by this SQL condition on event fields")],
    reason: Annotated[str, typer.Option(help="store this reason with the rows")],
    start: Annotated[str, typer.Option("--from", help="start the period at this time, ISO 8601")] = "",
    end: Annotated[str, typer.Option("--to", help="end the period before this time, ISO 8601")] = "",
    restore: Annotated[bool, typer.Option("--restore", help="restore quarantined rows")] = False,
    force: Annotated[bool, typer.Option("--force", help="allow more than clean.max_removed")] = False,
    as_json: Json = False,
) -> None:
    """Quarantine or restore rows."""
    from recloop.pipeline import quarantine as rows

    done = rows.quarantine(project(), where, reason, start, end, restore, force)
    if as_json:
        print_json(done.to_json())
        return
    verb = "restored" if restore else "quarantined"
    others = "not in quarantine" if restore else "already quarantined"
    plain(f"{done.new:,} rows {verb} of {done.matched:,} matching rows ({done.already:,} {others})")
    if not done.new:
        return
    types = ", ".join(f"{name} {count:,}" for name, count in done.types.items())
    plain(f"  {done.share:.2%} of {done.rows:,} rows, {done.users:,} users ({done.user_share:.2%}): {types}")
    for row in done.samples:
        plain("  " + " ".join(f"{name}={value}" for name, value in row.items()))
    if done.waiting:
        plain(f"  {done.waiting:,} rows are queued; the running service applies them within a second")
    plain("next: recloop update")


def forget(
    users: Annotated[list[str], typer.Argument(metavar="USER...", help="forget these users")],
    as_json: Json = False,
) -> None:
    """Erase users from log, decisions and states at once.

    The next update erases them from archive and bundles. Later events with the same ids are of new users.
    """
    from recloop.pipeline import forget as erasures

    tree = erasures.forget(project(), users)
    if as_json:
        print_json(tree)
        return
    for row in tree["users"]:
        plain(row["user_id"])
        plain(f"  {row['stores']}  log, decisions and states are free of the user")
        plain(f"  {row['data'] or 'next recloop update'}  archive, split and bundles")
        plain(f"  {row['backups'] or 'retention.backups later'}  the last backup with the user is deleted")
    if tree["files"]:
        plain(f"your files are unchanged: {', '.join(tree['files'])}; their rows of these users are not imported again")


items = typer.Typer(name="items", help="Change the catalog of the project.", no_args_is_help=True)


@items.command("sync")
def sync_items(
    file: Annotated[
        str, typer.Argument(metavar="FILE|URL", help="feed: CSV, TSV, JSON lines, Parquet or Merchant XML")
    ],
    id_column: Annotated[str, typer.Option("--id", help="column of the item id; default: that of data.items")] = "",
    force: Annotated[bool, typer.Option("--force", help="hide more than 20 % of the visible items")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="count the changes only")] = False,
    as_json: Json = False,
) -> None:
    """Bring the catalog to a feed of all items.

    Items that the feed leaves out are hidden, and items that return are shown.
    """
    from recloop.ingest import item_sync

    result, rejected = item_sync.sync(project(), file, id_column, force, dry_run)
    for place, reason in rejected[:MAX_PRINTED_REJECTS]:
        ConsoleProgress().say("items", f"{place}: {reason}")
    if as_json:
        print_json(result.to_json())
    else:
        counts = ("new", "changed", "shown", "hidden", "unchanged")
        text = ", ".join(f"{getattr(result, name):,} {name}" for name in counts)
        plain(f"{result.read:,} rows read, {result.rejected:,} rejected; {text}{' (dry run)' * dry_run}")
    if result.rejected:
        raise typer.Exit(1)
