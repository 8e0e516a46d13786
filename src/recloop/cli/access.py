"""Verbs token and keys: who may use the service."""

from __future__ import annotations

from typing import Annotated

import typer

from recloop.cli.terminal import Json, plain, print_json, project
from recloop.config import seconds
from recloop.records import SECOND, now, utc_minute

KeyName = Annotated[str, typer.Argument(help="name of the key")]

keys = typer.Typer(name="keys", help="Add, list and revoke the API keys of the project.", no_args_is_help=True)


def token(
    new: Annotated[bool, typer.Option("--new", help="replace the token; a running serve keeps the old one")] = False,
    as_json: Json = False,
) -> None:
    """Show the project's admin token."""
    from recloop.storage import admin_token

    here = project()
    secret = admin_token.renew(here.root, here.open_control()) if new else admin_token.ensure(here.root)
    if as_json:
        print_json({"token": secret})
    else:
        plain(secret)


@keys.command("add")
def add_key(
    name: KeyName,
    scope: Annotated[list[str], typer.Option(help="read, ingest, admin, or page alone; a list with commas")],
    expires: Annotated[str, typer.Option(metavar="TIME", help="expire after a time such as 90d")] = "",
    rate: Annotated[float | None, typer.Option(help="allow this many requests per second and process")] = None,
    origin: Annotated[list[str] | None, typer.Option(help="page key: origin of pages; may be repeated")] = None,
    placement: Annotated[list[str] | None, typer.Option(help="page key: only this placement; may be repeated")] = None,
    event_type: Annotated[list[str] | None, typer.Option(help="page key: only this type; may be repeated")] = None,
    as_json: Json = False,
) -> None:
    """Add a key and print it once.

    A running serve accepts it within a second. From the first key on, every request needs a key.
    """
    from recloop.storage import api_keys

    scopes = [name for names in scope for name in names.split(",")]
    expires_at = now() + round(seconds("--expires", expires) * SECOND) if expires else None
    page = api_keys.PageLimits(tuple(origin or ()), tuple(placement or ()), tuple(event_type or ()))
    here = project()
    key, secret = api_keys.add(here.root, here.open_control(), name, scopes, expires_at, rate, page)
    if as_json:
        print_json({**api_keys.to_json(here.root, key), "key": secret})
    else:
        plain(secret)


@keys.command("list")
def list_keys(as_json: Json = False) -> None:
    """List the keys with scopes, expiry and last use."""
    from recloop.storage import api_keys

    root = project().root
    stored = api_keys.read(root)
    if as_json:
        print_json({"required": stored is not None, "keys": [api_keys.to_json(root, key) for key in stored or ()]})
        return
    for key in stored or ():
        used = api_keys.last_used(root, key.name)
        expires = "never" if key.expires is None else utc_minute(key.expires)
        rate = "" if key.rate is None else f"  rate {key.rate:g}/s"
        last = "never" if used is None else utc_minute(used)
        limits = "".join(f"  {value}" for value in (*key.origins, *key.placements, *key.event_types))
        plain(f"{key.name}  {','.join(key.scopes)}  expires {expires}  last used {last}{rate}{limits}")
    if stored is None:
        plain("no keys: requests from this machine need none. To add one: recloop keys add NAME --scope read,ingest")
    elif not stored:
        plain("no keys: every request is refused. To serve without keys, remove store/api-keys.json and restart")


@keys.command("revoke")
def revoke_key(name: KeyName, as_json: Json = False) -> None:
    """Revoke a key; a running serve refuses it within a second."""
    from recloop.storage import api_keys

    here = project()
    key = api_keys.revoke(here.root, here.open_control(), name)
    if as_json:
        print_json({"revoked": key.name})
    else:
        plain(f"revoked {key.name}")
