"""Verbs items: changes of the catalog."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from recloop.cli.terminal import Json, plain, print_json, project
from recloop.progress import ConsoleProgress

MAX_PRINTED_REJECTS: Final = 100

group = typer.Typer(name="items", help="Change the catalog of the project.", no_args_is_help=True)


@group.command("sync")
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
