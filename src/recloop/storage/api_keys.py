"""API keys of a project folder: names, scopes and hashes in a private file."""

from __future__ import annotations

import hashlib
import re
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from recloop.errors import UserError
from recloop.files import JsonTree, private_file, private_folder, write_private
from recloop.records import iso, now
from recloop.storage import ControlStore, audit, locks
from recloop.storage.audit import AuditAction, AuditEntry

FILE_NAME: Final = "api-keys.json"
"""File name in the project's ``store/``."""
USE_FOLDER: Final = "api-key-use"
"""Folder in ``store/`` with one empty file per used key; its modification time is that of the last use."""
KEY_PREFIX: Final = "recloop_"
"""Start of every key, so that a scan for secrets finds one in a repository."""
KEY_BYTES: Final = 32
NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ORIGIN_PATTERN: Final = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
HASH_PATTERN: Final = re.compile(r"[0-9a-f]{64}")
ADD_FIX: Final = "recloop keys add NAME --scope read,ingest"


class KeyScope(StrEnum):
    """Right that a route needs; `ADMIN` includes the others."""

    PUBLIC = "public"
    """No key is needed; a key cannot have it."""
    READ = "read"
    INGEST = "ingest"
    ADMIN = "admin"
    PAGE = "page"
    """The key signs page tokens and opens no route itself."""


ROUTE_SCOPES: Final = (KeyScope.READ, KeyScope.INGEST, KeyScope.ADMIN)
KEY_SCOPES: Final = (*ROUTE_SCOPES, KeyScope.PAGE)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its secret.

    Attributes:
        sha256: Hash of the secret, in hex.
        created, expires: Microseconds since 1970 UTC; ``expires`` None: never.
        rate: Largest number of requests per second and process, of a page key for each user; None: no limit.
        origins: Origins of pages that may use tokens of a page key, such as ``https://shop.example``.
        placements, event_types: What tokens of a page key may request and post; empty: all.
    """

    name: str
    sha256: str
    scopes: tuple[KeyScope, ...]
    created: int
    expires: int | None = None
    rate: float | None = None
    origins: tuple[str, ...] = ()
    placements: tuple[str, ...] = ()
    event_types: tuple[str, ...] = ()

    def allows(self, scope: KeyScope) -> bool:
        """Return True if the key has a scope."""
        return scope in self.scopes or KeyScope.ADMIN in self.scopes

    def is_expired(self, stamp: int) -> bool:
        """Return True from ``expires`` on."""
        return self.expires is not None and stamp >= self.expires


class PageLimits(NamedTuple):
    """Limits of a page key; see `ApiKey`."""

    origins: tuple[str, ...] = ()
    placements: tuple[str, ...] = ()
    event_types: tuple[str, ...] = ()


NO_PAGE: Final = PageLimits()


class _File(msgspec.Struct):
    keys: list[ApiKey]
    format: int = 1


def path(root: Path) -> Path:
    """Return the path of the file of keys."""
    return root / "store" / FILE_NAME


def sha256(secret: bytes) -> str:
    """Return the hash under which a secret is stored."""
    return hashlib.sha256(secret).hexdigest()


def read(root: Path) -> tuple[ApiKey, ...] | None:
    """Read the keys; None if the file does not exist, so that no request needs a key.

    The file without a key, after the last one was revoked, lets no request pass.

    Raises:
        UserError: other users can read the file, or its content is not a list of keys.
    """
    file = path(root)
    try:
        mode, content = file.stat().st_mode, file.read_bytes()
    except FileNotFoundError:
        return None
    if stat.S_IMODE(mode) & 0o077:
        raise UserError("keys", file, f"a file of mode 0600, not {stat.S_IMODE(mode):04o}", f"chmod 600 {file}")
    try:
        keys = tuple(msgspec.json.decode(content, type=_File).keys)
        _check(keys)
    except (msgspec.MsgspecError, ValueError) as error:
        raise UserError("keys", file, f"a list of keys ({error})", f"rm {file}; {ADD_FIX}") from None
    return keys


def add(
    root: Path,
    control: ControlStore,
    name: str,
    scopes: Iterable[str],
    expires: int | None = None,
    rate: float | None = None,
    page: PageLimits = NO_PAGE,
) -> tuple[ApiKey, str]:
    """Add a key and return it with its secret, which is not stored.

    Args:
        control: Store of the audit log, which has the row before the key is in force.
        expires: Microseconds since 1970 UTC. rate: See `ApiKey`.
        page: Limits of a page key.

    Raises:
        UserError: the name is in use, an argument is invalid, or the file is damaged.
        Locked: another process changes the keys.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise UserError("NAME", name, "1 to 64 letters, digits, dots, - or _", "recloop keys add shop --scope read")
    if rate is not None and not 0 < rate < float("inf"):
        raise UserError("--rate", rate, "requests per second, above 0", "--rate 100")
    secret = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    created = now()
    if expires is not None and expires <= created:
        raise UserError("--expires", expires, "a time in the future", "--expires 90d")
    chosen = _scopes(scopes)
    _check_page(chosen, page)
    key = ApiKey(
        name=name, sha256=sha256(secret.encode()), scopes=chosen, created=created, expires=expires, rate=rate,
        origins=page.origins, placements=page.placements, event_types=page.event_types,
    )  # fmt: skip
    with locks.keys_lock(root):
        keys = read(root) or ()
        if any(present.name == name for present in keys):
            raise UserError("NAME", name, "a name that is not in use", f"recloop keys revoke {name}")
        _record(control, AuditAction.KEY_ADDED, key)
        _write(root, (*keys, key))
    return key, secret


def revoke(root: Path, control: ControlStore, name: str) -> ApiKey:
    """Remove a key and return it.

    Raises:
        UserError: the key does not exist, or the file is damaged.
        Locked: another process changes the keys.
    """
    with locks.keys_lock(root):
        keys = read(root) or ()
        key = next((key for key in keys if key.name == name), None)
        if key is None:
            raise UserError("NAME", name, "the name of a key", "recloop keys list")
        _record(control, AuditAction.KEY_REVOKED, key)
        _write(root, tuple(kept for kept in keys if kept is not key))
        _use_file(root, name).unlink(missing_ok=True)
    return key


def to_json(root: Path, key: ApiKey) -> JsonTree:
    """Build the public fields of a key, with its last use; times are ISO 8601 or None."""
    return {
        "name": key.name,
        "scopes": [scope.value for scope in key.scopes],
        "created": iso(key.created),
        "expires": None if key.expires is None else iso(key.expires),
        "rate": key.rate,
        "origins": list(key.origins),
        "placements": list(key.placements),
        "event_types": list(key.event_types),
        "last_used": None if (used := last_used(root, key.name)) is None else iso(used),
    }


def record_use(root: Path, name: str) -> None:
    """Record that a key is used now; errors of the disk are ignored."""
    with suppress(OSError):
        file = _use_file(root, name)
        private_folder(file.parent)
        private_file(file)
        file.touch()


def last_used(root: Path, name: str) -> int | None:
    """Return the time of the last use in microseconds since 1970, or None."""
    try:
        return _use_file(root, name).stat().st_mtime_ns // 1000
    except FileNotFoundError:
        return None


def _record(control: ControlStore, action: AuditAction, key: ApiKey) -> None:
    verb = "keys add" if action is AuditAction.KEY_ADDED else "keys revoke"
    details = {"scopes": list(key.scopes), "expires": None if key.expires is None else iso(key.expires)}
    control.record([AuditEntry(audit.command(verb), action, key.name, details, now())])


def _use_file(root: Path, name: str) -> Path:
    return root / "store" / USE_FOLDER / name


def _scopes(names: Iterable[str]) -> tuple[KeyScope, ...]:
    chosen = [name.strip() for name in names]
    known = [scope.value for scope in KEY_SCOPES]
    unknown = next((name for name in chosen if name not in known), None)
    if unknown is not None or not chosen:
        raise UserError("--scope", unknown or "", f"one or more of {', '.join(known)}", "--scope read,ingest")
    return tuple(scope for scope in KEY_SCOPES if scope.value in chosen)


def _check_page(scopes: tuple[KeyScope, ...], page: PageLimits) -> None:
    if KeyScope.PAGE not in scopes:
        if page != NO_PAGE:
            raise UserError("--scope", ",".join(scopes), "page, for origins, placements or events", "--scope page")
        return
    if len(scopes) > 1:
        raise UserError("--scope", ",".join(scopes), "page alone, because the key signs for others", "--scope page")
    for origin in page.origins:
        if not ORIGIN_PATTERN.fullmatch(origin):
            expected = "scheme and host in lower case, without a path"
            raise UserError("--origin", origin, expected, "--origin https://shop.example")


def _check(keys: tuple[ApiKey, ...]) -> None:
    if len({key.name for key in keys}) < len(keys):
        raise ValueError("two keys have one name")
    for key in keys:
        if not NAME_PATTERN.fullmatch(key.name) or not HASH_PATTERN.fullmatch(key.sha256):
            raise ValueError(f"the key {key.name[:64]!r} has an invalid name or hash")
        if not key.scopes or KeyScope.PUBLIC in key.scopes:
            raise ValueError(f"the key {key.name} has no scope of {', '.join(KEY_SCOPES)}")


def _write(root: Path, keys: tuple[ApiKey, ...]) -> None:
    write_private(path(root), msgspec.json.format(msgspec.json.encode(_File(list(keys))), indent=1) + b"\n")
