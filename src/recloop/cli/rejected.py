"""Verb rejected: rows that were not stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from recloop.cli.terminal import Json, plain, print_json, project
from recloop.errors import UserError
from recloop.progress import printable

MAX_TEXT: Final = 200
Numbers = Annotated[list[int] | None, typer.Argument(metavar="[ID...]", help="only these rows")]

rejected = typer.Typer(name="rejected", help="List, replay and drop rows that were not stored.", no_args_is_help=True)


@rejected.command("list")
def list_rows(
    newest: Annotated[int, typer.Option("-n", min=1, help="show the newest rows")] = 20,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="show rows that a cleaning rule removed")] = False,
    as_json: Json = False,
) -> None:
    """List rows that were not stored, with route, time and reason."""
    from recloop.pipeline import rejected as rows

    if quarantined:
        _list_quarantined(rows.quarantined(project(), newest), as_json)
        return
    tree = rows.listing(project(), newest)
    if as_json:
        print_json(tree)
        return
    for row in tree["rows"]:
        plain(f"{row['id']}  {row['at']}  {row['route']}  {_shown(row)}")
    for row in tree["files"]:
        plain(f"{row['file']}:{row['line']}  {_shown(row)}")
    removed = ", ".join(f"{rule} {count:,}" for rule, count in tree["quarantined"].items())
    plain(f"{tree['total']:,} rejected rows of requests, {len(tree['files']):,} of files shown")
    if removed:
        plain(f"quarantined: {removed}; to list them: recloop rejected list --quarantined")


def _shown(row: Mapping[str, Any]) -> str:
    """Reason and text of a row without the control characters that a sender chose."""
    return printable(f"{row['reason']}: {row['raw'][:MAX_TEXT]}")


def _list_quarantined(rows: list[dict[str, object]], as_json: bool) -> None:
    if as_json:
        print_json({"rows": rows})
        return
    for row in rows:
        plain("  ".join(f"{name}={value}" for name, value in row.items() if value is not None))


@rejected.command()
def replay(ids: Numbers = None, as_json: Json = False) -> None:
    """Check rejected events again and store the valid ones."""
    from recloop.pipeline import rejected as rows

    tree = rows.replay(project(), ids or ())
    if as_json:
        print_json(tree)
    else:
        for row in tree["problems"]:
            plain(f"{row['id']}  {row['status']}  {_shown(row)}")
        plain(", ".join(f"{count:,} {status}" for status, count in tree.items() if status != "problems"))
    if tree["problems"]:
        raise typer.Exit(1)


@rejected.command()
def drop(
    ids: Numbers = None,
    all_rows: Annotated[bool, typer.Option("--all", help="drop every rejected row of requests")] = False,
    as_json: Json = False,
) -> None:
    """Delete rejected rows of requests."""
    from recloop.pipeline import rejected as rows

    if not ids and not all_rows:
        raise UserError("ID", "", "numbers of rejected rows, or --all", "recloop rejected list")
    dropped = rows.drop(project(), ids or ())
    if as_json:
        print_json({"dropped": dropped})
    else:
        plain(f"{dropped:,} rows dropped")
