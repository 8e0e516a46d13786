"""Verbs init, update, serve and demo."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import rich.console
import typer

from recloop.cli.terminal import CliContext, Json, command, out, plain, print_json, project
from recloop.config import seconds
from recloop.errors import UserError
from recloop.progress import ConsoleProgress

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from recloop.loop import FirstRun
    from recloop.pipeline.update_run import UpdateResult
    from recloop.project import Project
    from recloop.serve.service import Service


def init(
    file: Annotated[str, typer.Argument(help="read the log from this file")],
    items: Annotated[str, typer.Option(help="read the catalog from this file")] = "",
    users: Annotated[str, typer.Option(help="read user attributes from this file")] = "",
    orders: Annotated[str, typer.Option(help="join the log with this file of orders")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="accept all guesses without asking")] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite an existing recloop.toml")] = False,
    as_json: Json = False,
) -> None:
    """Detect the columns of a log and write recloop.toml."""
    from recloop.init import detect

    found = detect.init(file, items, users, CliContext.root, yes, force, orders, CliContext.sets)
    replaced, restart = _replaced()
    if restart:
        found = dataclasses.replace(found, next=found.next.replace("recloop update", "recloop update --restart"))
    if as_json:
        print_json({**found.to_json(), "living": replaced})
        return
    for guess in found.guesses:
        out.print(f"{guess.key} = {guess.value}   ({guess.why})", markup=False, highlight=False)
    rows = found.rows
    removed = ", ".join(f"{rule} {count:,}" for rule, count in rows.removed.items()) or "none"
    why = f" ({rows.reasons})" if rows.rejected else ""
    part = "rows of a sample (update checks all rows)" if rows.sampled else "rows"
    plain(f"{part}: {rows.read:,} read = {rows.kept:,} kept + {removed} removed + {rows.rejected:,} rejected{why}")
    for line in replaced:
        plain(line)
    keep = f"   (keep it in recloop.toml, [clean]: {found.keep})" if found.keep else ""
    plain(f"wrote {CliContext.root / 'recloop.toml'}; next: {found.next}{keep}")


def _replaced() -> tuple[list[str], bool]:
    """Describe the effect of an overwritten recloop.toml on a live project.

    Returns lines to print (empty if nothing is live), and True if the next update needs ``--restart``.
    """
    if not (CliContext.root / "store" / "control.db").exists():
        return [], False
    from recloop.pipeline import restart

    here = project()
    if here.live_bundle_id() is None:
        return [], False
    asked = not restart.reason(here) and restart.changed_files(here)
    return restart.consequences(here), asked


def update(
    full: Annotated[bool, typer.Option("--full", help="train from scratch")] = False,
    reset: Annotated[bool, typer.Option("--reset-optimizer", help="use a fresh optimizer for the warm start")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="repeat the first run and keep posted rows")] = False,
    every: Annotated[str, typer.Option(help="repeat at this interval: 30m, 1h, 1d")] = "",
    as_json: Json = False,
) -> None:
    """Train on new events and register a bundle that passes.

    First run: train on the whole log and deploy. Later runs: train a candidate on new events, and register it if it
    passes the gates.
    """
    from recloop import loop
    from recloop.recommend.loading import check_unused

    here = project()
    if every and restart:
        raise UserError("--restart", "with --every", "a single run without --every", "recloop update --restart")
    if every:
        words = {"--full": full, "--reset-optimizer": reset, "--json": as_json}
        _repeat(here, ["update", *(word for word, asked in words.items() if asked)], every)
        return
    if here.live_bundle_id() is None:
        check_unused(here)
        _first(loop.first_run(here, ConsoleProgress()), as_json)
        return
    made = loop.update(here, ConsoleProgress(), full, reset, restart)
    if as_json:
        print_json({**vars(made), "seconds": round(made.seconds, 2)})
    elif made.verdict == "restarted":
        plain(f"live: {made.bundle}, a new first run ({made.seconds:.0f} s); next: recloop serve")
    elif made.verdict == "nothing":
        plain(f"nothing new since seq {made.from_seq}; {made.bundle} stays live")
        _print_changed(here, made)
    elif made.bundle is not None and made.state == "live":
        plain(f"live: {made.bundle}, a refresh with a passed gate ({made.seconds:.0f} s)")
    elif made.bundle is not None:
        plain(f"registered: {made.bundle} ({made.seconds:.0f} s); next: recloop promote {made.bundle}")
    else:
        plain(f"{made.verdict}: {made.reason}; nothing was changed, and the next update reads these rows again")
    if made.failed:
        raise typer.Exit(1)


def _repeat(here: Project, words: Sequence[str], every: str) -> None:
    """Run updates until one is refused or blocked, or until SIGTERM or SIGINT."""
    from recloop.pipeline import schedule as loops

    ended = loops.run(
        here, command(words), seconds("--every", every), lambda line: ConsoleProgress().say("update", line)
    )
    ConsoleProgress().say("update", f"stopped: {ended.reason}")
    if ended.code:
        raise typer.Exit(ended.code)


def _print_changed(here: Project, made: UpdateResult) -> None:
    """Print the command that applies settings that differ from the live bundle's."""
    from recloop.pipeline import update_run as runs

    if not made.changed:
        return
    waiting = runs.waiting_reason(here, here.config, made.bundle or "")
    how = f"recloop promote {waiting}" if waiting else "recloop update --full (or with the next rows)"
    plain(f"recloop.toml differs from {made.bundle} in {', '.join(made.changed)}; next: {how}")


def _first(made: FirstRun, as_json: bool) -> None:
    """Print the result of the first run."""
    report = made.prepared.report
    if as_json:
        print_json(
            {
                "from_seq": 1,
                "to_seq": made.prepared.watermark,
                "read": report.read,
                "kept": report.kept,
                "new_users": report.users,
                "new_items": report.items,
                "bundle": made.bundle.id,
                "verdict": "first",
                "gates": [],
                "seconds": round(made.seconds, 2),
            }
        )
        return
    out.print(made.table.render())
    plain(f"live: {made.bundle.id} ({made.seconds:.0f} s); next: recloop serve")


def serve(
    host: Annotated[str, typer.Option(help="override serve.host")] = "",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="override serve.port; 0 selects a free port")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="override serve.workers, the number of processes")] = None,
    force: Annotated[bool, typer.Option(help="serve a log that ends before rows that decisions name")] = False,
    fd: Annotated[int | None, typer.Option(min=0, help="use this open socket, as of systemd, not a port")] = None,
    as_json: Json = False,
) -> None:
    """Serve recommendations over HTTP."""
    from recloop.serve import app as service

    here = project()
    if fd is not None and (host or port is not None):
        raise UserError("--fd", fd, "no --host and no --port, which the socket has", f"recloop serve --fd {fd}")
    host, port = host or here.config.serve.host, here.config.serve.port if port is None else port
    service.run(here, host, port, as_json, workers, force, fd, mount=_mount_console)


def _mount_console(app: Starlette, service: Service) -> None:
    """Mount the console at ``/``, or a page with the command that installs it.

    Importing the console takes a second, so it is mounted after the checks at startup.
    """
    from recloop.serve import console_backend

    if importlib.util.find_spec("nicegui") is None:
        console_backend.install_hint(app, service)
        return
    from recloop.serve import console

    console.mount(app, console_backend.ServiceConsoleBackend(service))


def demo(
    directory: Annotated[str, typer.Option("--dir", help="create this folder (recloop-demo, -world or -quick)")] = "",
    world: Annotated[bool, typer.Option("--world", help="use simulated data, without download and torch")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="run the loop once on a small simulated shop")] = False,
    as_json: Json = False,
) -> None:
    """Run the whole loop on grocery or simulated data."""
    screen = rich.console.Console(stderr=True) if as_json else out
    if quick:
        from recloop.demo.quick import run

        done = run(Path(directory or "recloop-quick"), ConsoleProgress(), screen)
    elif world:
        from recloop.demo.simulated import run

        done = run(Path(directory or "recloop-world"), ConsoleProgress(), screen)
    else:
        from recloop.demo.grocery import run

        done = run(Path(directory or "recloop-demo"), ConsoleProgress(), screen)
    if as_json:
        print_json(done)
