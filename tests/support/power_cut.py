"""Disk of a process that loses power: what its system calls wrote, and what of it survives.

`trace` runs a command under strace and returns its writes, syncs and printed lines in order. `Disk` applies them to a
model of a disk: bytes and names that were not synced may be lost, one sector at a time and in any order.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
"""Bytes that a disk writes whole."""
CALLS = "openat,pwrite64,write,fsync,fdatasync,ftruncate,unlink"
CALL = re.compile(r"^\d+ +(\w+)\((.*)\) = (\d+)(<.*>)?$")
DESCRIPTOR = re.compile(r"^(?:AT_FDCWD|\d+)<([^>]*)>(?:, )?")
TEXT = re.compile(r'^"([^"]*)"(?:, )?')


@dataclass(frozen=True)
class Call:
    """One finished system call: its name, path, bytes and number (offset or length)."""

    name: str
    path: str
    data: bytes = b""
    number: int = 0


def trace(command: Sequence[str], folder: Path, output: Path) -> list[Call]:
    """Run a command and return its calls on files of a folder and on stdout (``write``), in order."""
    strace = ["strace", "-f", "-y", "-xx", "-s", "10000000", "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", str(output)]
    done = subprocess.run([*strace, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(calls_in(output, folder))


def calls_in(output: Path, folder: Path) -> Iterator[Call]:
    """Yield the finished calls that a file of strace holds, on files of a folder and on stdout."""
    encoded = "".join(f"\\x{byte:02x}" for byte in os.fsencode(folder))
    with output.open() as lines:
        for line in lines:
            assert "<unfinished" not in line or encoded not in line, f"calls of two threads overlap: {line}"
            matched = CALL.match(line.rstrip("\n"))
            if matched is None:
                continue  # a call that failed, a signal or an exit
            call = _parsed(matched[1], matched[2])
            is_stdout = call.name == "write" and matched[2].startswith("1<")
            if is_stdout or call.path.startswith(str(folder)):
                yield call


def _parsed(name: str, words: str) -> Call:
    descriptor = DESCRIPTOR.match(words)
    path = _decoded(descriptor[1]).decode() if descriptor else ""
    rest = words[descriptor.end() :] if descriptor else words
    texts = []
    while found := TEXT.match(rest):
        texts.append(_decoded(found[1]))
        rest = rest[found.end() :]
    if name in ("openat", "unlink"):
        target = (Path(path) / texts[0].decode()).as_posix()
        return Call("create" if "O_CREAT" in rest else name, target)
    if name == "pwrite64":
        return Call(name, path, texts[0], int(rest.rpartition(", ")[2]))
    if name == "ftruncate":
        return Call(name, path, b"", int(rest))
    return Call("sync" if name in ("fsync", "fdatasync") else name, path, texts[0] if texts else b"")


def _decoded(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


@dataclass
class File:
    """A file: bytes on the disk, and changes since its last sync (offset and bytes, or a new length)."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def content(self, draw: random.Random | None) -> bytes:
        """Content with all pending changes, or with those that a draw keeps."""
        content = bytearray(self.durable)
        for offset, data in self.pending:
            if data is None:
                if draw is None or draw.random() < 0.5:
                    _resize(content, offset)
                continue
            for start in range(0, len(data), SECTOR):
                if draw is None or draw.random() < 0.5:
                    _write(content, offset + start, data[start : start + SECTOR])
        return bytes(content)


class Disk:
    """Files of a process, by path; a name that its folder has not synced may be lost or come back."""

    def __init__(self) -> None:
        self._files: dict[str, File] = {}
        self._durable_names: dict[str, File] = {}

    def apply(self, call: Call) -> None:
        """Apply the next call of a trace."""
        if call.name == "create":
            self._files.setdefault(call.path, File())
        elif call.name == "unlink":
            self._files.pop(call.path, None)
        elif call.name == "sync":
            self._sync(call.path)
        elif call.name in ("pwrite64", "ftruncate"):
            data = call.data if call.name == "pwrite64" else None
            self._files[call.path].pending.append((call.number, data))

    def _sync(self, path: str) -> None:
        if path in self._files:
            file = self._files[path]
            file.durable, file.pending = bytearray(file.content(None)), []
            return
        for names in (self._files, self._durable_names):
            for name in [one for one in names if Path(one).parent == Path(path)]:
                if name in self._files:
                    self._durable_names[name] = self._files[name]
                else:
                    del self._durable_names[name]

    def lose_power(self, source: Path, target: Path, draw: random.Random) -> None:
        """Write what survives below another folder."""
        survivors = dict(self._durable_names)
        for name in {*self._files, *self._durable_names}:
            if draw.random() < 0.5:
                survivors.pop(name, None)
                if name in self._files:
                    survivors[name] = self._files[name]
        for name, file in survivors.items():
            place = target / Path(name).relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.content(draw))


def _resize(content: bytearray, length: int) -> None:
    del content[length:]
    content.extend(bytes(length - len(content)))


def _write(content: bytearray, offset: int, data: bytes) -> None:
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset : offset + len(data)] = data
