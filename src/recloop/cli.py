"""The command line: one thin command per verb; results on stdout, progress and errors on stderr.

Imports stand inside the commands, so that ``recloop --help`` answers at once and a verb that needs no torch never
loads it. ``-C DIR`` and ``--set a.b=c`` may stand before or after the verb.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import rich.console
import typer

from recloop import shell
from recloop.errors import UserError
from recloop.shell import Place, Teller, out, project

if TYPE_CHECKING:
    from recloop.loop import Turn

LOOK, START, MOVE, DEEPER = "look", "start", "move", "deeper"
app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="recloop turns a raw interaction log into a recommender that is served, watched, and keeps learning.",
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="stdout is exactly one JSON object")]
Yes = Annotated[bool, typer.Option("--yes", help="never ask")]


@app.callback()
def _options(
    directory: Annotated[str, typer.Option("-C", metavar="DIR", help="the project folder (default: this one)")] = ".",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="beats recloop.toml; repeatable")
    ] = None,
) -> None:
    """Both are taken out of the arguments by `main`, wherever they stand; here they are declared for --help."""


# ---- start


@app.command(rich_help_panel=START)
def init(
    file: str,
    items: Annotated[str, typer.Option(help="the catalogue")] = "",
    users: Annotated[str, typer.Option(help="attributes of users")] = "",
    yes: Yes = False,
    force: Annotated[bool, typer.Option("--force", help="write over a recloop.toml")] = False,
    as_json: Json = False,
) -> None:
    """Read a log once, guess its columns, write a commented recloop.toml."""
    from recloop.collect import guess

    found = guess.init(file, items, users, Place.root, yes, force)
    if as_json:
        _print_json(found.to_json())
        return
    for one in found.guesses:
        out.print(f"{one['key']} = {one['value']}   ({one['why']})", markup=False, highlight=False)
    out.print(f"wrote {Place.root / 'recloop.toml'}; next: recloop update", markup=False, highlight=False)


@app.command(rich_help_panel=START)
def update(
    full: Annotated[bool, typer.Option("--full", help="train from scratch")] = False,
    reset: Annotated[bool, typer.Option("--reset-optimizer", help="from live's weights, its optimizer anew")] = False,
    every: Annotated[str, typer.Option(help="again each 30m, 1h, 1d, until told to stop")] = "",
    as_json: Json = False,
) -> None:
    """One turn: from the log to a live bundle; with one, from what came since to a candidate that passed its gate."""
    from recloop import loop, standing

    here = project()
    if every:
        words = {"--full": full, "--reset-optimizer": reset, "--json": as_json}
        shell.repeat(["update", *(word for word, asked in words.items() if asked)], every)
        return
    if standing.live_bundle(here) is None:
        _first(loop.turn(here, Teller()), as_json)
        return
    made = loop.update(here, Teller(), full, reset)
    if as_json:
        _print_json({**vars(made), "seconds": round(made.seconds, 2)})
    elif made.verdict == "nothing":
        _plain(f"nothing new since seq {made.from_seq}: {made.bundle} stays live")
    elif made.bundle is not None:
        _plain(f"registered: {made.bundle} ({made.seconds:.0f} s); next: recloop promote {made.bundle}")
    else:
        said = ", ".join(f"{one['name']}={one['value']}, threshold {one['threshold']}" for one in made.failed)
        _plain(f"{made.verdict}: {said}; nothing has moved, the rows are read again next time")
    if made.failed:
        raise typer.Exit(1)


def _first(made: Turn, as_json: bool) -> None:
    """What the first turn did."""
    report = made.prepared.report
    if as_json:
        _print_json(
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
    _plain(f"live: {made.bundle.id} ({made.seconds:.0f} s); next: recloop serve")


@app.command(rich_help_panel=START)
def serve(
    host: Annotated[str, typer.Option(help="beats serve.host")] = "",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="beats serve.port; 0: a free one")] = None,
    workers: Annotated[int, typer.Option(hidden=True)] = 1,
    as_json: Json = False,
) -> None:
    """Answer over HTTP until told to stop."""
    from recloop.serve import app as service
    from recloop.serve import desk

    if workers != 1:
        raise UserError("--workers", workers, "1: one process writes the log", "recloop serve")
    here = project()
    host, port = host or here.config.serve.host, here.config.serve.port if port is None else port
    service.run(here, host, port, as_json, dress=_console() or desk.hint)


def _console() -> Callable[[Any, Any], None] | None:
    """The console over a service; None where its extra is not installed."""
    if importlib.util.find_spec("nicegui") is None:
        return None
    from recloop.serve.desk import ServiceDesk
    from recloop.watch import console

    return lambda app, service: console.mount(app, ServiceDesk(service))


@app.command(rich_help_panel=START)
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
        from recloop.demo.world import run

        done = run(Path(directory or "recloop-world"), Teller(), screen)
    else:
        from recloop.demo.chain import run

        done = run(Path(directory or "recloop-demo"), Teller(), screen)
    if as_json:
        _print_json(done)


# ---- look


@app.command(rich_help_panel=LOOK)
def doctor(
    signals: Annotated[
        bool, typer.Option("--signals", help="each rule of [events]: its events, five examples")
    ] = False,
    as_json: Json = False,
) -> None:
    """Read the log and judge it; write nothing."""
    from recloop.collect import doctor as collected
    from recloop.collect import signals as asked

    if signals:
        found = asked.examine_signals(project())
        if as_json:
            _print_json({**collected.examine(project()).to_json(), **found.to_json()})
        else:
            out.print(asked.render(found))
        return
    report = collected.examine(project())
    if as_json:
        _print_json(report.to_json())
    else:
        out.print(collected.render(report))


@app.command(rich_help_panel=LOOK)
def evaluate(
    bundles: Annotated[list[str] | None, typer.Argument(metavar="[BUNDLE]...")] = None,
    protocol: Annotated[str, typer.Option(help="beats split.protocol")] = "",
    as_json: Json = False,
) -> None:
    """One table: counting rows, models, and the list as served."""
    from recloop import turn

    if protocol:
        Place.sets = (*Place.sets, f"split.protocol={protocol}")
    table = turn.evaluate_bundles(project(), bundles or [], Teller())
    if as_json:
        _print_json(table.to_json())
    else:
        out.print(table.render())


@app.command(rich_help_panel=LOOK)
def recommend(
    user: str,
    k: Annotated[int, typer.Option("-k", help="how many (default: the placement's)")] = 0,
    placement: Annotated[str, typer.Option(help="where on the page")] = "home",
    bundle: Annotated[str, typer.Option(help="another bundle than the live one")] = "",
    item: Annotated[str, typer.Option(help="what a list about an item is about (placement similar)")] = "",
    as_json: Json = False,
) -> None:
    """The service's answer without the service; logs nothing."""
    from recloop.serve import offline

    answer = offline.recommend(project(), user, k, placement, bundle, item)
    if as_json:
        _print_json(answer)
    else:
        out.print(offline.render(answer))


@app.command(rich_help_panel=LOOK)
def status(as_json: Json = False) -> None:
    """What is live, what is tried, since when."""
    from recloop import standing

    found = standing.status(project())
    if as_json:
        _print_json(found)
        return
    _plain(f"live: {found['live'] or 'nothing yet; next: recloop update'}")
    _plain(f"generation {found['generation']}, last seq {found['last_seq']}, learned up to seq {found['watermark']}")
    for row in found["bundles"]:
        _plain(f"  {row['state']:<11} {row['bundle']}  {row['reason']}")


@app.command(rich_help_panel=LOOK)
def report(
    start: Annotated[str, typer.Option("--from", help="first moment, ISO 8601")] = "",
    end: Annotated[str, typer.Option("--to", help="last moment, ISO 8601")] = "",
    file: Annotated[str, typer.Option("--out", help="where to write the page")] = "",
    as_json: Json = False,
) -> None:
    """One HTML page: the last evaluation, and the health of what was shown."""
    from recloop.watch import report as page

    done = page.write(project(), start, end, file)
    if as_json:
        _print_json(done)
    else:
        _plain(f"wrote {done['path']} over {done['requests']} requests")


@app.command(rich_help_panel=LOOK)
def verify(
    last: Annotated[int, typer.Option(min=1, help="how many of the newest decisions")] = 1000,
    as_json: Json = False,
) -> None:
    """Rebuild logged decisions from the log by the other path; exit 1 on any unexplained difference."""
    from recloop import standing
    from recloop.watch import parity

    here = project()
    found = parity.verify(here, last)
    parity.keep(here, found, standing.now())
    if as_json:
        _print_json(found)
    else:
        line = "{checked} decisions checked: {equal} equal, {late} late, {unexplained} unexplained"
        _plain(line.format(**found) + f"; largest score difference {found['max_score_diff']:.2g}")
        for one in found["differences"][:10]:
            _plain(f"  {one['request_id']}: {one['name']} was {one['was']}, is {one['is']}")
    if found["unexplained"]:
        raise typer.Exit(1)


# ---- move


Reason = Annotated[str, typer.Option(help="kept in the release table")]


@app.command(rich_help_panel=MOVE)
def promote(
    bundle: str,
    to: Annotated[str, typer.Option(help="shadow, experiment or live; without it live, where both were earned")] = "",
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Move a bundle on, after its gate where that has not run; a running `serve` takes it up within a second."""
    from recloop.later import promotion

    _print_move(promotion.promote(project(), bundle, to, reason, Teller()), as_json)


@app.command(rich_help_panel=MOVE)
def rollback(reason: Reason = "", as_json: Json = False) -> None:
    """Bring back the bundle that was live before."""
    from recloop.serve import moves

    _print_move(moves.rollback(project(), reason), as_json)


@app.command(rich_help_panel=MOVE)
def refuse(bundle: str, reason: Reason = "", as_json: Json = False) -> None:
    """Take a bundle out for good."""
    from recloop.serve import moves

    _print_move(moves.refuse(project(), bundle, reason), as_json)


def _print_move(moved: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(moved)
    else:
        _plain(f"{moved['bundle']}: {moved['from']} -> {moved['to']} (generation {moved['generation']})")
        if "not_earned" in moved["evidence"]:
            _plain(f"  ahead of: {'; '.join(moved['evidence']['not_earned'])}")


# ---- deeper


@app.command(rich_help_panel=DEEPER)
def prepare(as_json: Json = False) -> None:
    """Read, clean and split the log into data/."""
    from recloop import loop
    from recloop.backends import locks
    from recloop.collect import doctor as collected

    here = project()
    with locks.turn_lock(here.root, "prepare"):
        made = loop.collect(here, Teller())
    if as_json:
        sizes = {"train": made.train, "valid": made.valid, "test": made.test}
        _print_json({**made.report.to_json(), "fingerprint": made.fingerprint, "cut": made.cut, **sizes})
    else:
        out.print(collected.render(made.report))


@app.command(rich_help_panel=DEEPER)
def train(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="a model in place of [model]")] = "",
    as_json: Json = False,
) -> None:
    """Fit a model on data/, write a bundle and register it."""
    from recloop import loop, standing
    from recloop.backends import locks

    here = project()
    with locks.turn_lock(here.root, "train"):
        made = loop.train(here, Teller(), standing.named_model(here, name))
    if as_json:
        trained = made.bundle.manifest["train"]
        _print_json(
            {
                "bundle": made.bundle.id,
                "run": made.run,
                "epochs": trained["epochs"],
                "seconds": round(made.seconds, 2),
                "metrics": made.bundle.metrics,
            }
        )
    else:
        out.print(made.table.render())
        _plain(f"registered: {made.bundle.id}; next: recloop promote {made.bundle.id}")


@app.command(rich_help_panel=DEEPER)
def ingest(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="CSV, JSON lines or Parquet; -: JSON lines from stdin")],
    url: Annotated[str, typer.Option(help="post to this running service, such as http://127.0.0.1:8088")] = "",
    as_json: Json = False,
) -> None:
    """Rows into the log as if posted; safe to repeat where they carry an event_id."""
    from recloop import ingest as arrivals

    taken = arrivals.ingest(project(), file, url, Teller())
    if as_json:
        _print_json(taken.to_json())
    else:
        said = ", ".join(f"{count:,} {status}" for status, count in taken.to_json().items())
        _plain(f"{said} ({taken.seconds:.1f} s); next: recloop update")
    if not taken.whole:
        raise typer.Exit(1)


# ---- the door


def main() -> NoReturn:
    """The entry point of the command ``recloop``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code."""
    return shell.run(app, arguments)


def _print_json(tree: Any) -> None:
    print(json.dumps(tree, ensure_ascii=False, allow_nan=False))


def _plain(line: str) -> None:
    out.print(line, markup=False, highlight=False, soft_wrap=True)
