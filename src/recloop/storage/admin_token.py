"""The admin token of a project folder: made once, kept readable by its owner alone."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path

from recloop.errors import UserError

FILE = "admin-token"
"""Its name in the project's ``store/``."""
TOKEN_BYTES = 32
SHAPE = re.compile(r"[A-Za-z0-9_-]{43}")  # 32 bytes in URL-safe base64


def path(root: Path) -> Path:
    """The file of a project folder's token."""
    return root / "store" / FILE


def read(root: Path) -> str:
    """The token of a project folder, empty where none was made yet.

    Raises:
        UserError: the file holds something else.
    """
    file = path(root)
    try:
        text = file.read_text("ascii", errors="replace").strip()
    except FileNotFoundError:
        return ""
    if not SHAPE.fullmatch(text):
        raise UserError("token", file, "a file with 43 letters, digits, - and _", "recloop token --new")
    return text


def ensure(root: Path) -> str:
    """The token of a project folder; made where there is none. The file's mode is set to 0600.

    Two processes that start at once agree on one token.

    Raises:
        UserError: the file holds something else.
    """
    if not read(root):
        _write(root, keep=True)
    path(root).chmod(0o600)
    return read(root)


def renew(root: Path) -> str:
    """Replace the token; a running service keeps the old one until it starts again."""
    _write(root, keep=False)
    return read(root)


def _write(root: Path, keep: bool) -> None:
    """Put a new token in place in one step; ``keep``: a token that is there meanwhile stays."""
    file = path(root)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{FILE}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(secrets.token_urlsafe(TOKEN_BYTES) + "\n")
    if not keep:
        beside.replace(file)
        return
    try:
        os.link(beside, file)
    except FileExistsError:
        pass
    finally:
        beside.unlink()
