"""Atomic writes of files and folders; typed reader of JSON objects."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_type_hints

import msgspec

from recloop.errors import BundleError, UserError, is_failure

T = TypeVar("T")

MAX_PARALLEL_WRITES: Final = 8
"""Number of files of a folder that are flushed or deleted in parallel."""
SETTLED_SECONDS: Final = 2
"""Age of a change from which another one has other times, also on file systems with coarse clocks."""


def private_folder(folder: Path) -> None:
    """Create a folder that only its owner can read.

    Parents get the usual mode; an existing folder keeps its own.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def private_file(file: Path) -> None:
    """Create an empty file that only its owner can read.

    An existing file of this user loses the rights of others.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(handle).st_mode & 0o077 and os.fstat(handle).st_uid == os.geteuid():
            os.fchmod(handle, 0o600)
    finally:
        os.close(handle)


def write_private(file: Path, content: bytes, keep: bool = False) -> None:
    """Write a file that only its owner can read.

    It is whole or not there, also after a power cut.

    Args:
        keep: Keep a file that exists, also one that another process writes at the same time.
    """
    private_folder(file.parent)
    beside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    private_file(beside)
    try:
        write_file(beside, content)
        if keep:
            os.link(beside, file)
        else:
            beside.replace(file)
    except FileExistsError:
        if not keep:
            raise
    finally:
        beside.unlink(missing_ok=True)
        sync_folder(file.parent)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Yield a temporary path; fsync its file and rename it to ``target``.

    A reader sees the old file or the new one. An error in the block removes the new file and keeps the old one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    beside.unlink(missing_ok=True)
    try:
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(target.parent)


def replace_file(target: Path, content: str | bytes) -> None:
    """Replace a file atomically; text is written as UTF-8."""
    with replacing(target) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


def replace_json(target: Path, tree: Any) -> None:
    """Replace a JSON file atomically: sorted keys, one space of indent, UTF-8."""
    replace_file(target, json.dumps(tree, indent=1, sort_keys=True, ensure_ascii=False) + "\n")


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unchanged_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which is read again only if the file has changed.

    A change is seen by inode, size and times. A file that changed within `SETTLED_SECONDS` is read each time, because two
    changes within one tick of a file system's clock have equal times.
    """
    facts = path.stat()
    if time.time_ns() - max(facts.st_mtime_ns, facts.st_ctime_ns) < SETTLED_SECONDS * 1_000_000_000:
        return file_sha256(path)
    return _settled_sha256(path, facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


@lru_cache(maxsize=1_000)
def _settled_sha256(path: Path, *_identity: int) -> str:
    return file_sha256(path)


def write_file(path: Path, content: Any) -> None:
    """Write bytes to a file of a staged folder and fsync it.

    Args:
        content: Bytes, or another object with the buffer protocol.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """Raise a `BundleError` that names the file for any error of its content."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, BundleError) or not is_failure(error) or getattr(error, "errno", None) is not None:
            raise  # an errno is of the disk and says nothing about the content
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise BundleError(file.name, file, f"a readable file ({cause})", "recloop update --full") from None


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that its new and renamed files survive a crash."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder over ``target``.

    A missing source is ignored, so that a second call has no effect.
    """
    if not source.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    source.rename(target)
    sync_folder(target.parent)


def swap_folder(staged: Path, target: Path) -> None:
    """Replace a folder by a staged one.

    `recover_folder` completes a swap that a crash interrupted.
    """
    old = _old(target)
    if target.exists():
        target.rename(old)
    staged.rename(target)
    sync_folder(target.parent)
    remove_folder(old)


def recover_folder(target: Path) -> None:
    """Complete or undo a `swap_folder` that a crash interrupted."""
    old = _old(target)
    if old.exists():
        if target.exists():
            remove_folder(old)
        else:
            old.rename(target)


def remove_folder(folder: Path) -> None:
    """Delete a folder.

    Its ``archive/*`` folders hold many files, so they are deleted in parallel.
    """
    days = [path for path in folder.glob("archive/*") if path.is_dir()]
    with ThreadPoolExecutor(MAX_PARALLEL_WRITES) as pool:
        list(pool.map(lambda day: shutil.rmtree(day, ignore_errors=True), days))
    shutil.rmtree(folder, ignore_errors=True)


def _old(target: Path) -> Path:
    return target.with_name(target.name + ".old")


JsonTree = dict[str, Any]
"""Untyped JSON object: a request or response body, a JSON file, a row of a raw file, a JSON column of a store."""
AttributeValues = dict[str, Any]
"""Attributes of an item or a user, by name."""


class JsonObject:
    """Reader of one JSON object, key by key.

    ``unread`` holds the keys that were not read.

    Args:
        tree: The parsed JSON.
        where: File and position, for errors.
        error: The exception type for a missing value or a wrong type.
        fix: The command that recreates the file.
    """

    def __init__(
        self, tree: Any, where: str, error: type[UserError] = BundleError, fix: str = "recloop update --full"
    ) -> None:
        self._where, self._error, self._fix = where, error, fix
        if not isinstance(tree, dict):
            raise error(where, tree, "a JSON object", fix)
        self.unread: JsonTree = dict(tree)

    def required(self, key: str, kind: type[T]) -> T:
        """Return the value of a key.

        Raises:
            UserError: the key is missing, or its value has another type.
        """
        if key not in self.unread:
            raise self._error(f"{self._where}.{key}", "missing", "this key", self._fix)
        return self._convert(key, self.unread.pop(key), kind)

    def optional(self, key: str, kind: type[T]) -> T | None:
        """Return the value of a key, or None if it is absent or null.

        Raises:
            UserError: its value has another type.
        """
        if self.unread.get(key) is None:
            return None
        return self._convert(key, self.unread.pop(key), kind)

    def nullable(self, key: str, kind: type[T]) -> T | None:
        """Return the value of a key, or None if it is null.

        As `optional`, for a key that is also written when it is null.
        """
        value = self.optional(key, kind)
        self.unread.pop(key, None)
        return value

    def number(self, key: str) -> float | None:
        """Return an optional number as written: 60 stays an int."""
        return self.optional(key, int | float)  # type: ignore[arg-type]

    def fields(self, record: type) -> JsonTree:
        """Read the fields of a dataclass by name.

        A field that may be None is optional; ``other_keys`` is left out.

        Raises:
            UserError: a key is missing, or its value has another type.
        """
        types = get_type_hints(record)
        values = {}
        for name in (field.name for field in dataclasses.fields(record) if field.name != "other_keys"):
            read = self.optional if type(None) in get_args(types[name]) else self.required
            values[name] = read(name, types[name])
        return values

    def check(self, key: str, names: Iterable[str], known: Collection[str]) -> None:
        """Check names that were read under a key against a closed list.

        Raises:
            UserError: a name is not in the list.
        """
        for name in names:
            if name not in known:
                raise self._error(f"{self._where}.{key}", name, f"one of {', '.join(known)}", self._fix)

    def child(self, key: str) -> JsonObject:
        """Return the object under a key.

        Raises:
            UserError: the key is missing, or its value is not an object.
        """
        return self._object(self.required(key, dict), key)

    def children(self, key: str) -> dict[str, JsonObject]:
        """Return the objects under a key by name, in file order."""
        objects = self.required(key, dict)
        return {name: self._object(tree, f"{key}.{name}") for name, tree in objects.items()}

    def _object(self, tree: Any, place: str) -> JsonObject:
        return JsonObject(tree, f"{self._where}.{place}", self._error, self._fix)

    def _convert(self, key: str, value: Any, kind: type[T]) -> T:
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            raise self._error(f"{self._where}.{key}", value, str(error), self._fix) from None


def without_none(**values: Any) -> JsonTree:
    """Return a JSON object of the values that are not None."""
    return {key: value for key, value in values.items() if value is not None}
