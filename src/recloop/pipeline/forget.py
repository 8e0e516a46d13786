"""Erasure of users, by the running service or here."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Sequence
from contextlib import closing

from recloop.errors import Locked, UserError
from recloop.files import JsonTree
from recloop.ingest.client import Client
from recloop.privacy import erasure
from recloop.project import Project
from recloop.storage import admin_token, locks

ROUTE = "/v1/admin/forget"


def forget(project: Project, users: Sequence[str]) -> JsonTree:
    """Erase users from ``store/`` at once; the next update erases the rest.

    Returns:
        The dated lines of `recloop.privacy.erasure.receipt`.

    Raises:
        UserError: no id is given, or nothing is stored of one.
        Refused: no other user would be left, or a store is in use for too long.
        Locked: another writer than a service uses the folder.
    """
    ids = erasure.check(project, users)
    try:
        with locks.writer_lock(project.root, "forget"), project.open_log(write=True) as log:
            erasure.resume(project, log)
            erasure.erase(project, log, ids)
    except Locked:
        url = locks.server_url(project.root)
        if not url:
            raise
        _ask(url, admin_token.read(project.root), ids)
    return erasure.receipt(project, ids)


def _ask(url: str, token: str, users: Sequence[str]) -> None:
    """Let the running service erase users.

    Raises:
        UserError: the service refuses or fails.
    """
    try:
        with closing(Client(url, token=token)) as client:
            client.post(ROUTE, {"users": list(users)})
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace")
        try:
            text = str(json.loads(text)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            text = text[:300]
        raise UserError("serve", url, f"a service that forgets ({error.code}: {text})", "recloop forget USER") from None
    except OSError as error:
        raise UserError("serve", url, f"a service that answers ({error})", "recloop forget USER") from None
