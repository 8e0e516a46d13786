"""Users that were forgotten, by keyed hashes of their ids.

``store/forgotten.json`` has one erasure per user and no id. The hash is BLAKE2b under the key in ``store/person-key``, so
it tells nothing about an id without that file. Rows of a user in ``data/`` are ignored until an update has removed them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import polars as pl

from recloop.errors import UserError
from recloop.files import private_folder, write_private
from recloop.records import SEQ, TIMESTAMP, USER_ID, max_int

FILE_NAME: Final = "forgotten.json"
KEY_FILE: Final = "person-key"
LOCK_FILE: Final = "forgotten.lock"
"""File names in the project's ``store/``."""
KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 16
LAST_SEQ: Final = 2**63 - 1


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """Erasure of one user; times are microseconds since 1970 UTC, None: not done yet.

    Attributes:
        user: Keyed hash of the id.
        requested: Time of the request. Rows of files of ``[data]`` up to it are not imported again.
        seq: Rows with a smaller seq are erased, later ones are of a new user; None until the log has numbered it.
        stores: Time at which ``store/`` was free of the user.
        data: Time at which ``data/`` and ``bundles/`` were free of the user.
    """

    user: str
    requested: int
    seq: int | None = None
    stores: int | None = None
    data: int | None = None


class _File(msgspec.Struct):
    users: list[Erasure]
    format: int = 1
    key: str = ""  # `_check_value` of the key; empty in a file of an earlier version


class ForgottenUsers:
    """Erasures of a project.

    Args:
        key: Key of the hashes; empty without erasures.
    """

    def __init__(self, key: bytes = b"", erasures: Iterable[Erasure] = ()) -> None:
        self._key = key
        self._erasures = {erasure.user: erasure for erasure in erasures}
        self._is_pending = any(erasure.data is None for erasure in self._erasures.values())

    @classmethod
    def read(cls, root: Path) -> ForgottenUsers:
        """Read the erasures of a project folder; none without the file.

        Raises:
            UserError: the file is damaged, or its key is missing, damaged or another one.
        """
        file = root / "store" / FILE_NAME
        try:
            content = msgspec.json.decode(file.read_bytes(), type=_File)
        except FileNotFoundError:
            return cls()
        except (msgspec.MsgspecError, OSError) as error:
            raise UserError(FILE_NAME, file, f"a list of erasures ({error})", f"restore {file} from a backup") from None
        key = _read_key(root)
        if content.key and content.key != _check_value(key):
            raise _wrong_key(root)
        return cls(key, content.users)

    def __len__(self) -> int:
        return len(self._erasures)

    def __iter__(self) -> Iterator[Erasure]:
        return iter(self._erasures.values())

    def get(self, user_id: str) -> Erasure | None:
        """Return the last erasure of a user."""
        return self._erasures.get(digest(self._key, user_id)) if self._erasures else None

    @property
    def pending(self) -> list[Erasure]:
        """Erasures whose rows are still in ``data/``."""
        return [erasure for erasure in self._erasures.values() if erasure.data is None]

    def former_until(self, user_id: str) -> int:
        """Return the seq below which rows of ``data/`` are ignored; 0 for none."""
        if not self._is_pending:
            return 0
        erasure = self.get(user_id)
        if erasure is None or erasure.data is not None:
            return 0
        return LAST_SEQ if erasure.seq is None else erasure.seq

    def former_rows(self, frame: pl.DataFrame) -> pl.Series:
        """(n,) True for the rows of ``data/`` to ignore; needs user_id and seq."""
        limits = {}
        if self._is_pending:
            limits = {user: limit for user in frame[USER_ID].unique() if (limit := self.former_until(user))}
        return _below(frame, SEQ, limits)

    def imported_rows(self, frame: pl.DataFrame) -> pl.Series:
        """(n,) True for the rows of an input file to leave out; needs user_id, timestamp."""
        limits = {}
        if self._erasures:
            found = ((user, self.get(user)) for user in frame[USER_ID].unique())
            limits = {user: erasure.requested + 1 for user, erasure in found if erasure is not None}
        return _below(frame, TIMESTAMP, limits)

    def without(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Rows of ``data/`` without those to ignore."""
        return frame.filter(~self.former_rows(frame)) if self._is_pending else frame


def _below(frame: pl.DataFrame, column: str, limits: Mapping[str, int]) -> pl.Series:
    """(n,) True where a column is below the limit of the row's user."""
    if not limits:
        return pl.repeat(value=False, n=len(frame), dtype=pl.Boolean, eager=True)
    return frame[column] < frame[USER_ID].replace_strict(limits, default=-LAST_SEQ, return_dtype=pl.Int64)


def digest(key: bytes, user_id: str) -> str:
    """Hash an id under a key, 32 hex digits."""
    return hashlib.blake2b(user_id.encode("utf-8", "surrogatepass"), key=key, digest_size=DIGEST_BYTES).hexdigest()


def person_hash(root: Path, user_id: str) -> str:
    """Hash an id under the key of a project, which is made if needed."""
    return digest(_key(root), user_id)


def record(root: Path, erasures: Iterable[Erasure]) -> ForgottenUsers:
    """Add erasures, or replace those of the same users; return all."""
    with _changing(root):
        present = ForgottenUsers.read(root)
        merged = {**{one.user: one for one in present}, **{one.user: one for one in erasures}}
        _write(root, merged.values())
    return ForgottenUsers(_key(root), merged.values())


def finish_data(root: Path, done: Iterable[Erasure], at: int) -> None:
    """Record that ``data/`` is free of these users, unless one was forgotten again."""
    finished = {erasure.user: erasure.seq for erasure in done}
    with _changing(root):
        _write(
            root,
            [
                msgspec.structs.replace(one, data=at) if one.data is None and finished.get(one.user) == one.seq else one
                for one in ForgottenUsers.read(root)
            ],
        )


def check_key(root: Path) -> None:
    """Raise `UserError` if the key of the hashes is missing or damaged."""
    _read_key(root)


def newest_seq(erasures: Iterable[Erasure]) -> int:
    """Return the largest seq of erasures; 0 without one."""
    return max_int(pl.Series([erasure.seq for erasure in erasures], dtype=pl.Int64))


def _key(root: Path) -> bytes:
    """Read the key of the hashes, and write it if it is missing."""
    file = root / "store" / KEY_FILE
    if not file.exists():
        write_private(file, secrets.token_bytes(KEY_BYTES), keep=True)
    return _read_key(root)


def _read_key(root: Path) -> bytes:
    """Read the key of the hashes.

    Raises:
        UserError: it is missing or has another length; users would not be found under their hashes.
    """
    try:
        key = (root / "store" / KEY_FILE).read_bytes()
    except OSError:
        raise _wrong_key(root) from None
    if len(key) != KEY_BYTES:
        raise _wrong_key(root)
    return key


def _check_value(key: bytes) -> str:
    """Return a value that differs for another key, and is not the hash of an id."""
    return digest(key, "")


def _wrong_key(root: Path) -> UserError:
    file = root / "store" / KEY_FILE
    return UserError(
        KEY_FILE, file, f"the key of the hashes in {FILE_NAME}, {KEY_BYTES} bytes", f"restore {file} from a backup"
    )


def _write(root: Path, erasures: Iterable[Erasure]) -> None:
    listed = _File(list(erasures), key=_check_value(_key(root)))
    content = msgspec.json.format(msgspec.json.encode(listed), indent=1)
    write_private(root / "store" / FILE_NAME, content + b"\n")


@contextmanager
def _changing(root: Path) -> Iterator[None]:
    """Hold the lock of the file; another process waits."""
    private_folder(root / "store")
    handle = os.open(root / "store" / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
