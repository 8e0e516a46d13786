"""Verbs promote, rollback and refuse."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from recloop.cli.terminal import Json, plain, print_json, project
from recloop.progress import ConsoleProgress

Reason = Annotated[str, typer.Option(help="reason, stored in the release table")]


def promote(
    bundle: str,
    to: Annotated[str, typer.Option(help="shadow, experiment or live (default: live, if earned)")] = "",
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Promote a bundle to shadow, experiment or live.

    Runs the bundle's gate first if it has not run. A running `serve` deploys the bundle within a second.
    """
    from recloop.pipeline import promotion

    _print_move(promotion.promote(project(), bundle, to, reason, ConsoleProgress()), as_json)


def rollback(reason: Reason = "", as_json: Json = False) -> None:
    """Restore the previous live bundle."""
    from recloop.release import transitions

    _print_move(transitions.rollback(project(), reason), as_json)


def refuse(bundle: str, reason: Reason = "", as_json: Json = False) -> None:
    """Exclude a bundle permanently."""
    from recloop.release import transitions

    _print_move(transitions.refuse(project(), bundle, reason), as_json)


def _print_move(moved: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(moved)
    else:
        plain(f"{moved['bundle']}: {moved['from']} -> {moved['to']} (generation {moved['generation']})")
        if "shadow_requirement" in moved["evidence"]:
            plain(f"  shadow: {moved['evidence']['shadow_requirement']['text']}")
        if "not_earned" in moved["evidence"]:
            plain(f"  overridden: {'; '.join(moved['evidence']['not_earned'])}")
