"""The command line: one thin command per verb, a file per panel; results on stdout, progress and errors on stderr.

Imports stand inside the commands, so that ``recloop --help`` answers at once and a verb that needs no torch never
loads it. ``-C DIR`` and ``--set a.b=c`` may stand before or after the verb.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated, NoReturn

import typer

from recloop.cli import get_started, inspect, pipeline_steps, release, terminal

PANELS: tuple[tuple[str, tuple[Callable[..., None], ...]], ...] = (
    ("start", (get_started.init, get_started.update, get_started.serve, get_started.demo)),
    (
        "look",
        (
            inspect.doctor,
            inspect.evaluate,
            inspect.recommend,
            inspect.status,
            inspect.token,
            inspect.report,
            inspect.verify,
        ),
    ),
    ("move", (release.promote, release.rollback, release.refuse)),
    (
        "deeper",
        (
            pipeline_steps.prepare,
            pipeline_steps.train,
            pipeline_steps.ingest,
            pipeline_steps.quarantine,
            pipeline_steps.gc,
        ),
    ),
)
"""Panels and verbs in the order of --help."""

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="recloop turns a raw interaction log into a recommender that is served, watched, and keeps learning.",
)  # fmt: skip


@app.callback()
def _options(
    directory: Annotated[str, typer.Option("-C", metavar="DIR", help="the project folder (default: this one)")] = ".",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="beats recloop.toml; repeatable")
    ] = None,
) -> None:
    """Both are taken out of the arguments by `main`, wherever they stand; here they are declared for --help."""


for _panel, _verbs in PANELS:
    for _verb in _verbs:
        app.command(rich_help_panel=_panel)(_verb)


def main() -> NoReturn:
    """The entry point of the command ``recloop``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and give its exit code."""
    return terminal.run(app, arguments)
