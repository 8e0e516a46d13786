"""Verbs promote, rollback and reject."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from recloop.cli.terminal import Json, plain, print_json, project
from recloop.progress import ConsoleProgress

Reason = Annotated[str, typer.Option(help="store this reason in the release table")]


def promote(
    bundle: Annotated[str, typer.Argument(help="promote this bundle")],
    to: Annotated[str, typer.Option(help="move to shadow, experiment or live (default: live)")] = "",
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Promote a bundle to shadow, experiment or live.

    Runs the gate of the bundle first if it has not run. A running serve deploys the bundle within a second.
    """
    from recloop.pipeline import promotion

    _print_move(promotion.promote(project(), bundle, to, reason, ConsoleProgress()), as_json)


def rollback(reason: Reason = "", as_json: Json = False) -> None:
    """Restore the previous live bundle."""
    from recloop.release import transitions

    _print_move(transitions.rollback(project(), reason), as_json)


def reject(
    bundle: Annotated[str, typer.Argument(help="exclude this bundle")],
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Exclude a bundle permanently."""
    from recloop.release import transitions

    _print_move(transitions.reject(project(), bundle, reason), as_json)


def _print_move(moved: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(moved)
    else:
        plain(f"{moved['bundle']}: {moved['from']} -> {moved['to']} (generation {moved['generation']})")
        if "shadow_requirement" in moved["evidence"]:
            plain(f"  shadow: {moved['evidence']['shadow_requirement']['text']}")
        if "waived_requirements" in moved["evidence"]:
            plain(f"  overridden: {'; '.join(moved['evidence']['waived_requirements'])}")
