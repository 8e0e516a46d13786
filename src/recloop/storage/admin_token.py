"""Admin token of a project folder, generated once and readable by its owner only."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

from recloop.errors import UserError
from recloop.files import write_private
from recloop.records import now
from recloop.storage import ControlStore, audit
from recloop.storage.audit import AuditAction, AuditEntry

FILE_NAME = "admin-token"
"""File name in the project's ``store/``."""
TOKEN_BYTES = 32
TOKEN_PATTERN = re.compile(r"[A-Za-z0-9_-]{43}")  # 32 bytes in URL-safe base64


def path(root: Path) -> Path:
    """Return the path of the token file."""
    return root / "store" / FILE_NAME


def read(root: Path) -> str:
    """Read the token; empty if it does not exist yet.

    Raises:
        UserError: the file does not contain a token.
    """
    file = path(root)
    try:
        text = file.read_text("ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
    if not TOKEN_PATTERN.fullmatch(text):
        raise UserError("token", file, "a file with 43 characters: letters, digits, - and _", "recloop token --new")
    return text


def ensure(root: Path) -> str:
    """Read the token, generating it if needed; sets the file's mode to 0600.

    Two processes that start at the same time get the same token.

    Raises:
        UserError: the file does not contain a token.
    """
    if not read(root):
        _write(root, keep=True)
    path(root).chmod(0o600)
    return read(root)


def renew(root: Path, control: ControlStore) -> str:
    """Replace the token; a running service uses the old one until it restarts.

    ``control``: Store of the audit log, which has the row before the new token.
    """
    control.record([AuditEntry(audit.command("token --new"), AuditAction.RENEWED, "", {}, now())])
    _write(root, keep=False)
    return read(root)


def _write(root: Path, keep: bool) -> None:
    """Write a new token; ``keep`` preserves a token written concurrently."""
    write_private(path(root), secrets.token_urlsafe(TOKEN_BYTES).encode() + b"\n", keep)
