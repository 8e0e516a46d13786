"""Verbs that move a bundle: on, back, or out for good."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from recloop.cli.terminal import Json, plain, print_json, project
from recloop.progress import ConsoleProgress

Reason = Annotated[str, typer.Option(help="kept in the release table")]


def promote(
    bundle: str,
    to: Annotated[str, typer.Option(help="shadow, experiment or live; without it live, where both were earned")] = "",
    reason: Reason = "",
    as_json: Json = False,
) -> None:
    """Move a bundle on, after its gate where that has not run; a running `serve` takes it up within a second."""
    from recloop.pipeline import promotion

    _print_move(promotion.promote(project(), bundle, to, reason, ConsoleProgress()), as_json)


def rollback(reason: Reason = "", as_json: Json = False) -> None:
    """Bring back the bundle that was live before."""
    from recloop.release import transitions

    _print_move(transitions.rollback(project(), reason), as_json)


def refuse(bundle: str, reason: Reason = "", as_json: Json = False) -> None:
    """Take a bundle out for good."""
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
            plain(f"  ahead of: {'; '.join(moved['evidence']['not_earned'])}")
