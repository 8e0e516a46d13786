"""The command line: one thin command per verb; results on stdout, progress and errors on stderr.

Imports stand inside the commands, so that ``recloop --help`` answers at once and a verb that needs no torch never
loads it. ``-C DIR`` and ``--set a.b=c`` may stand before or after the verb.
"""

from __future__ import annotations

import json
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import rich.console
import typer

from recloop.config import Project, open_project
from recloop.errors import RecloopError, UserError

LOOK, START, MOVE, DEEPER = "look", "start", "move", "deeper"
app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="recloop turns a raw interaction log into a recommender that is served, watched, and keeps learning.",
)  # fmt: skip
out = rich.console.Console(width=None if sys.stdout.isatty() else 132)
err = rich.console.Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 132)

Json = Annotated[bool, typer.Option("--json", help="stdout is exactly one JSON object")]
Yes = Annotated[bool, typer.Option("--yes", help="never ask")]


class _Place:
    """Where and how this run was asked to work: ``-C`` and ``--set``, taken out of the arguments before the verb."""

    root = Path()
    sets: tuple[str, ...] = ()


def project() -> Project:
    """The project of this run."""
    return open_project(_Place.root, _Place.sets)


class Teller:
    """Tells on stderr what came out of each step; a bar where a terminal watches a long one."""

    def __init__(self) -> None:
        self._progress: Any = None
        self._task: Any = None

    def say(self, chapter: str, line: str) -> None:
        err.print(f"[bold]{chapter:>9}[/]  ", end="")
        err.print(line, markup=False)

    def show(self, chapter: str, drawn: Any) -> None:
        if chapter != "evaluate":  # verbs put the table on stdout
            err.print(drawn)

    def bar(self, chapter: str, done: int, total: int) -> None:
        from rich.progress import Progress

        if self._progress is None:
            self._progress = Progress(console=err, transient=True)
            self._progress.start()
            self._task = self._progress.add_task(f"{chapter:>9}", total=total)
        self._progress.update(self._task, completed=done, total=total)
        if done >= total:
            self._progress.stop()
            self._progress = None


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

    found = guess.init(file, items, users, _Place.root, yes, force)
    if as_json:
        _print_json(found.to_json())
        return
    for one in found.guesses:
        out.print(f"{one['key']} = {one['value']}   ({one['why']})", markup=False, highlight=False)
    out.print(f"wrote {_Place.root / 'recloop.toml'}; next: recloop update", markup=False, highlight=False)


@app.command(rich_help_panel=START)
def update(
    full: Annotated[bool, typer.Option("--full", help="train from scratch")] = False,
    as_json: Json = False,
) -> None:
    """One turn: from the log to a live bundle."""
    from recloop import loop, standing

    here = project()
    del full  # the first turn is always from scratch
    live = standing.live_bundle(here)
    if live is not None:
        _print_later(here, live, as_json)
        return
    made = loop.turn(here, Teller())
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


def _print_later(here: Project, live: str, as_json: bool) -> None:
    """With a live bundle: nothing new is done at once, new rows wait for the incremental turn."""
    from recloop import standing

    first, last = standing.new_rows(here)
    if last > first:
        expected = "no row since the import (learning from new rows comes with a later version)"
        raise UserError("new rows", last - first, expected, "recloop train, then recloop promote BUNDLE")
    if as_json:
        done = {"from_seq": first, "to_seq": last, "read": 0, "kept": 0, "new_users": 0, "new_items": 0}
        _print_json({**done, "bundle": live, "verdict": "nothing", "gates": [], "seconds": 0.0})
    else:
        _plain(f"nothing new since seq {first}: {live} stays live")


@app.command(rich_help_panel=START)
def serve(
    host: Annotated[str, typer.Option(help="beats serve.host")] = "",
    port: Annotated[int, typer.Option(help="beats serve.port; 0: a free one")] = -1,
    workers: Annotated[int, typer.Option(hidden=True)] = 1,
    as_json: Json = False,
) -> None:
    """Answer over HTTP until told to stop."""
    from recloop.serve import app as service

    if workers != 1:
        raise UserError("--workers", workers, "1: one process writes the log", "recloop serve")
    here = project()
    service.run(here, host or here.config.serve.host, here.config.serve.port if port < 0 else port, as_json)


@app.command(rich_help_panel=START)
def demo(
    directory: Annotated[str, typer.Option("--dir", help="the demo's project folder")] = "recloop-demo",
    as_json: Json = False,
) -> None:
    """The whole loop on a grocery chain's year, a project like any other."""
    from recloop import demo as shown

    done = shown.run(Path(directory), Teller(), rich.console.Console(stderr=True) if as_json else out)
    if as_json:
        _print_json(done)


# ---- look


@app.command(rich_help_panel=LOOK)
def doctor(as_json: Json = False) -> None:
    """Read the log and judge it; write nothing."""
    from recloop.collect import doctor as collected

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
        _Place.sets = (*_Place.sets, f"split.protocol={protocol}")
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
    as_json: Json = False,
) -> None:
    """The service's answer without the service; logs nothing."""
    from recloop.serve import offline

    answer = offline.recommend(project(), user, k, placement, bundle)
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
    from recloop.watch import parity

    found = parity.verify(project(), last)
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


@app.command(rich_help_panel=MOVE)
def promote(
    bundle: str,
    to: Annotated[str, typer.Option(help="live")] = "live",
    reason: Annotated[str, typer.Option(help="kept in the release table")] = "",
    as_json: Json = False,
) -> None:
    """Make a bundle live: it is loaded and checked first; `serve` takes it up at its next start."""
    from recloop import standing

    moved = standing.promote(project(), bundle, to, reason)
    if as_json:
        _print_json(moved)
    else:
        _plain(f"{moved['bundle']}: {moved['from']} -> {moved['to']} (generation {moved['generation']})")


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


# ---- the door


def main() -> NoReturn:
    """The entry point: run the verb, turn what was raised into one last line of stderr and an exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code; see the interface, section 2."""
    try:
        code = app(_take_place(list(arguments)), prog_name="recloop", standalone_mode=False)
        return int(code or 0)
    except RecloopError as error:
        for sample in getattr(error, "samples", ()):
            print(sample, file=sys.stderr)
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001 - the last door: nobody outside sees a traceback
        if hasattr(error, "format_message"):  # what typer (or the click inside it) says of a wrong command line
            return _wrong(arguments, error)
        with tempfile.NamedTemporaryFile("w", prefix="recloop-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        print(
            f"error: a bug in recloop; the traceback is in {file.name}; try: report it with that file", file=sys.stderr
        )
        return 70


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
    _Place.root, _Place.sets = Path(), ()
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
            _Place.root = Path(value)
        else:
            _Place.sets = (*_Place.sets, value)
    return rest


def _print_json(tree: Any) -> None:
    print(json.dumps(tree, ensure_ascii=False, allow_nan=False))


def _plain(line: str) -> None:
    out.print(line, markup=False, highlight=False, soft_wrap=True)
