"""Command line: one thin command per verb, one file per panel of --help.

Results go to stdout; progress and errors go to stderr. Commands import what they need when they run, so that
``recloop --help`` is fast and a verb that does not need torch never loads it. ``-C DIR`` and ``--set a.b=c`` may be
given before or after the verb.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from recloop import __version__
from recloop.cli import access, data, get_started, inspect, operation, pipeline_steps, rejected, release, terminal

PANELS: tuple[tuple[str, tuple[Callable[..., None] | typer.Typer, ...]], ...] = (
    ("Get started", (get_started.init, get_started.update, get_started.serve, get_started.demo)),
    (
        "Inspect",
        (
            inspect.doctor,
            inspect.evaluate,
            inspect.recommend,
            inspect.status,
            inspect.report,
            inspect.verify,
        ),
    ),
    ("Data", (data.ingest, data.items, rejected.rejected, data.export, data.quarantine, data.forget)),
    ("Release", (release.promote, release.rollback, release.reject)),
    ("Access", (access.token, access.keys)),
    ("Operation", (operation.backup, operation.restore, operation.migrate, operation.gc, operation.audit)),
    ("Pipeline steps", (pipeline_steps.prepare, pipeline_steps.train, pipeline_steps.tune)),
)
"""Panels of --help with their verbs and groups of verbs, in display order."""


class _InOrderOfPanels(TyperGroup):
    """Group that lists its commands as in `PANELS`; typer lists groups of verbs first."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is click's
        return [_name(verb) for _, verbs in PANELS for verb in verbs]


app = typer.Typer(
    cls=_InOrderOfPanels,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Turn a raw interaction log into a served, monitored and retrained recommender.",
)  # fmt: skip


def _name(verb: Callable[..., None] | typer.Typer) -> str:
    return str(verb.info.name) if isinstance(verb, typer.Typer) else verb.__name__


def _print_version(wanted: bool) -> None:
    if wanted:
        terminal.plain(f"recloop {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    directory: Annotated[str, typer.Option("-C", metavar="DIR", help="use this project folder")] = ".",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="override a key of recloop.toml; may be repeated"),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
) -> None:
    """Declare the global options; `terminal.run` parses ``-C`` and ``--set``."""


for _panel, _verbs in PANELS:
    for _verb in _verbs:
        if isinstance(_verb, typer.Typer):
            app.add_typer(_verb, rich_help_panel=_panel)
        else:
            app.command(rich_help_panel=_panel)(_verb)


def main() -> NoReturn:
    """Entry point of the command ``recloop``."""
    # The threads of torch and LightGBM sleep while they wait; OpenMP reads this once, before the first of them.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    return terminal.run(app, arguments)
