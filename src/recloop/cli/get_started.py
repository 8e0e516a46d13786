"""Verbs that start: a project from a log, a turn, the service, the demo."""

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
    file: str,
    items: Annotated[str, typer.Option(help="the catalogue")] = "",
    users: Annotated[str, typer.Option(help="attributes of users")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="never ask")] = False,
    force: Annotated[bool, typer.Option("--force", help="write over a recloop.toml")] = False,
    as_json: Json = False,
) -> None:
    """Read a log once, guess its columns, write a commented recloop.toml."""
    from recloop.init import detect

    found = detect.init(file, items, users, CliContext.root, yes, force)
    replaced, restart = _replaced()
    if restart:
        found = dataclasses.replace(found, next=found.next.replace("recloop update", "recloop update --restart"))
    if as_json:
        print_json({**found.to_json(), "living": replaced})
        return
    for one in found.guesses:
        out.print(f"{one.key} = {one.value}   ({one.why})", markup=False, highlight=False)
    rows = found.rows
    removed = ", ".join(f"{rule} {count:,}" for rule, count in rows.removed.items()) or "none"
    why = f" ({rows.reasons})" if rows.rejected else ""
    plain(f"rows: {rows.read:,} read = {rows.kept:,} kept + {removed} removed + {rows.rejected:,} rejected{why}")
    for line in replaced:
        plain(line)
    keep = f"   (keep it in recloop.toml, [clean]: {found.keep})" if found.keep else ""
    plain(f"wrote {CliContext.root / 'recloop.toml'}; next: {found.next}{keep}")


def _replaced() -> tuple[list[str], bool]:
    """What becomes of the data of a living project whose recloop.toml was written over (empty: nothing is live here).

    The second value: whether the next update must be asked for a new first run.
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
    reset: Annotated[bool, typer.Option("--reset-optimizer", help="from live's weights, its optimizer anew")] = False,
    restart: Annotated[bool, typer.Option("--restart", help="a new first run; posted rows are kept")] = False,
    every: Annotated[str, typer.Option(help="again each 30m, 1h, 1d, until told to stop")] = "",
    as_json: Json = False,
) -> None:
    """One turn: from the log to a live bundle; with one, from what came since to a candidate that passed its gate."""
    from recloop import loop

    here = project()
    if every and restart:
        raise UserError("--restart", "with --every", "one new first run", "recloop update --restart")
    if every:
        words = {"--full": full, "--reset-optimizer": reset, "--json": as_json}
        _repeat(here, ["update", *(word for word, asked in words.items() if asked)], every)
        return
    if here.live_bundle_id() is None:
        _first(loop.first_run(here, ConsoleProgress()), as_json)
        return
    made = loop.update(here, ConsoleProgress(), full, reset, restart)
    if as_json:
        print_json({**vars(made), "seconds": round(made.seconds, 2)})
    elif made.verdict == "restarted":
        plain(f"live: {made.bundle}, a new first run ({made.seconds:.0f} s); next: recloop serve")
    elif made.verdict == "nothing":
        plain(f"nothing new since seq {made.from_seq}: {made.bundle} stays live")
        _print_changed(here, made)
    elif made.bundle is not None and made.state == "live":
        plain(f"live: {made.bundle}, a refresh that passed its gate ({made.seconds:.0f} s)")
    elif made.bundle is not None:
        plain(f"registered: {made.bundle} ({made.seconds:.0f} s); next: recloop promote {made.bundle}")
    else:
        plain(f"{made.verdict}: {made.reason}; nothing has moved, the rows are read again next time")
    if made.failed:
        raise typer.Exit(1)


def _repeat(here: Project, words: Sequence[str], every: str) -> None:
    """Run updates until one is refused or held, or this process is told to stop."""
    from recloop.pipeline import schedule as loops

    ended = loops.run(
        here, command(words), seconds("--every", every), lambda line: ConsoleProgress().say("update", line)
    )
    ConsoleProgress().say("update", f"stopped: {ended.reason}")
    if ended.code:
        raise typer.Exit(ended.code)


def _print_changed(here: Project, made: UpdateResult) -> None:
    """How settings that differ from live's come into force, where nothing had to be done for them now."""
    from recloop.pipeline import update_run as runs

    if not made.changed:
        return
    waiting = runs.waiting_reason(here, here.config, made.bundle or "")
    how = f"recloop promote {waiting}" if waiting else "recloop update --full (or with the next rows)"
    plain(f"recloop.toml differs from {made.bundle} in {', '.join(made.changed)}; next: {how}")


def _first(made: FirstRun, as_json: bool) -> None:
    """What the first turn did."""
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
    host: Annotated[str, typer.Option(help="beats serve.host")] = "",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="beats serve.port; 0: a free one")] = None,
    workers: Annotated[int, typer.Option(hidden=True)] = 1,
    as_json: Json = False,
) -> None:
    """Answer over HTTP until told to stop."""
    if workers != 1:
        raise UserError("--workers", workers, "1: one process writes the log", "recloop serve")
    from recloop.serve import app as service

    here = project()
    host, port = host or here.config.serve.host, here.config.serve.port if port is None else port
    service.run(here, host, port, as_json, dress=_dress)


def _dress(app: Starlette, service: Service) -> None:
    """Put the console at ``/``, or how to install it; its import takes a second, so errors of the start come first."""
    from recloop.serve import console_backend

    if importlib.util.find_spec("nicegui") is None:
        console_backend.install_hint(app, service)
        return
    from recloop.serve import console

    console.mount(app, console_backend.ServiceConsoleBackend(service))


def demo(
    directory: Annotated[
        str, typer.Option("--dir", help="its project folder (default: recloop-demo; of the world recloop-world)")
    ] = "",
    world: Annotated[
        bool, typer.Option("--world", help="the seeded world: no download, no torch, two experiments with known truth")
    ] = False,
    as_json: Json = False,
) -> None:
    """The whole loop on a grocery chain's year, or on a world whose truth is known; a project like any other."""
    screen = rich.console.Console(stderr=True) if as_json else out
    if world:
        from recloop.demo.simulated import run

        done = run(Path(directory or "recloop-world"), ConsoleProgress(), screen)
    else:
        from recloop.demo.grocery import run

        done = run(Path(directory or "recloop-demo"), ConsoleProgress(), screen)
    if as_json:
        print_json(done)
