"""Input files: find by setting, detect the format, unpack, sample and fingerprint.

The format is detected from the bytes, not from the file name: Parquet, JSON or text with separators, plain, compressed
or as a member of a zip archive.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from recloop.config import Data
from recloop.data.containers import (
    MAX_UNPACK_RATIO,
    MAX_UNPACKED_BYTES,
    UNPACK_COMMANDS,
    UNPACK_ERRORS,
    Packing,
    member_bytes,
    members,
    open_bytes,
    packing_of,
    unpack_limit,
    unpacked,
)
from recloop.errors import UserError

TABLE_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
COMPRESSION_SUFFIXES: Final = (".gz", ".zst", ".bz2")
BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
JSON_START: Final = re.compile(r"\{|\[\s*([\[{\]]|$)")
BLOCK_BYTES: Final = 1 << 22
MAX_OPEN_QUOTE_LINES: Final = 100
"""Lines that are left out at the end of a sample to close a quote."""
FORMATS: Final = "CSV, JSON or Parquet (also .gz, .zst, .bz2, .zip)"
EXCEL_FIX: Final = "libreoffice --headless --convert-to csv FILE"
FOREIGN_FORMATS: Final = {
    b"PK": ("an Excel or LibreOffice document", EXCEL_FIX),
    b"\xd0\xcf\x11\xe0": ("an old Excel document", EXCEL_FIX),
    b"SQLite format 3": ("an SQLite database", "sqlite3 -header -csv FILE 'SELECT * FROM TABLE' > FILE.csv"),
    b"%PDF": ("a PDF document", "export the table as CSV in the program that wrote the PDF"),
}
HTML_FIX: Final = "python -c \"import pandas; pandas.read_html('FILE')[0].to_csv('FILE.csv', index=False)\""
HTML_STARTS: Final = ("<!doctype html", "<html", "<table", "<?xml")

Kind = Literal["csv", "jsonl", "parquet"]


@dataclass(frozen=True)
class InputFile:
    """Input file of events, items or users.

    Attributes:
        key: The setting that names it: ``data.events``.
        path: Path on disk.
        name: Path from the project folder, as used in messages, rejects and the fingerprint; a member of an archive
            is ``archive.zip/member``.
        member: Name of the member, if the path is a zip archive.
        size: Bytes to read of a file; -1: all. A file that grows is read up to this size.
        sample_bytes: Unpacked bytes to read at most, from the beginning and the middle; 0: all.
    """

    key: str
    path: Path
    name: str
    member: str = ""
    size: int = -1
    sample_bytes: int = 0

    @property
    def n_bytes(self) -> int:
        """Bytes on disk, or of the unpacked member."""
        if self.size >= 0:
            return self.size
        return self._sizes()[1] if self.member else self.path.stat().st_size

    def fixed(self) -> InputFile:
        """Same file with the present size; bytes appended later are not read."""
        return replace(self, size=self.n_bytes)

    def sampled(self, n_bytes: int) -> InputFile:
        """Same file of which only about ``n_bytes`` are read, in whole lines."""
        return replace(self, sample_bytes=n_bytes)

    @property
    def packing(self) -> Packing | None:
        """Compression of the content; an archive counts as "zip"."""
        if self.member:
            return "zip"
        return packing_of(self._start())

    @property
    def unpack_command(self) -> str:
        """Shell command that prints the content."""
        command = UNPACK_COMMANDS[self.packing] if self.packing else "cat {}"
        return command.format(self.path.name, self.member)

    @property
    def use_of_new(self) -> str:
        """Instruction to use the file NEW instead of this one."""
        return f"set {self.key} to NEW" if self.key.startswith("data.") else f"pass NEW as {self.key}"

    def content(self) -> Iterator[bytes]:
        """Yield the bytes of the file as stored, or of the unpacked member."""
        with open_bytes(self.path, self.n_bytes, self.member) as stream:
            yield from self._checked(stream, self.member != "")

    def blocks(self) -> Iterator[bytes]:
        """Yield the decompressed bytes.

        Raises:
            UserError: the file is damaged, or unpacks to more than `unpack_limit` bytes.
        """
        if self.sample_bytes:
            yield self._sample()
            return
        with self.stream() as stream:
            yield from self._checked(stream, self.packing is not None)

    def stream(self) -> Any:
        """Decompressed bytes as an Arrow stream."""
        if self.sample_bytes:
            return pa.BufferReader(self._sample())
        packing = packing_of(self._start())
        return unpacked(open_bytes(self.path, self.n_bytes, self.member), None if packing == "zip" else packing)

    def head(self, size: int = 1 << 16) -> bytes:
        start = b""
        for block in self.blocks():
            start += block[: size - len(start)]
            if len(start) == size:
                break
        return start

    @property
    def kind(self) -> Kind:
        head = self.head()
        if head[:4] == b"PAR1":
            return "parquet"
        if head.startswith(b"PK") and not zipfile.is_zipfile(self.path):
            raise UserError(self.key, self.name, "a complete zip archive", "compress it again")
        for magic, (description, fix) in FOREIGN_FORMATS.items():
            if head.startswith(magic):
                raise self._foreign(description, fix)
        text = head.decode("utf-16" if encoding_mark(head) == "utf-16" else "latin-1", "ignore").lstrip(
            "\ufeffï»¿ \r\n\t"
        )
        if text[:20].lower().startswith(HTML_STARTS):
            raise self._foreign("an HTML or XML page", HTML_FIX)
        return "jsonl" if JSON_START.match(text) else "csv"

    def _foreign(self, description: str, fix: str) -> UserError:
        name = self.path.name
        return UserError(
            self.key,
            self.name,
            f"{FORMATS}; this is {description}",
            fix.replace("FILE.csv", f"{name}.csv").replace("FILE", name),
        )

    def _start(self) -> bytes:
        with open_bytes(self.path, self.n_bytes, self.member) as stream:
            return bytes(stream.read(4))

    def _sizes(self) -> tuple[int, int]:
        """Packed and unpacked size of the member."""
        return member_bytes(self.path, self.member)

    def _checked(self, stream: Any, is_packed: bool) -> Iterator[bytes]:
        """Yield blocks; a damaged file and one that unpacks without end are errors."""
        packed = self._sizes()[0] if self.member else self.n_bytes
        limit = unpack_limit(packed) if is_packed else sys.maxsize
        total = 0
        try:
            while block := stream.read(BLOCK_BYTES):
                total += len(block)
                if total > limit:
                    break
                yield block
        except UNPACK_ERRORS as error:
            raise UserError(
                self.key, self.name, f"a complete {self.packing} file ({error})", "compress it again"
            ) from None
        if total > limit:
            raise UserError(
                self.key, self.name,
                f"at most {limit:,} unpacked bytes for {packed:,} packed ones "
                f"(ratio {MAX_UNPACK_RATIO}, limit {MAX_UNPACKED_BYTES:,})",
                f"{self.unpack_command} > NEW, then {self.use_of_new}",
            )  # fmt: skip

    def _sample(self) -> bytes:
        """About ``sample_bytes`` in whole lines.

        Half of them are from the middle of the file if it is not compressed.
        """
        whole = replace(self, sample_bytes=0)
        half = self.sample_bytes // 2
        head = whole.head(4)
        is_plain = whole.packing is None and encoding_mark(head) not in ("utf-16", "utf-16-le", "utf-16-be")
        if not is_plain or self.n_bytes <= self.sample_bytes:
            first = bytearray()
            for block in whole.blocks():
                first += block[: self.sample_bytes - len(first)]
                if len(first) == self.sample_bytes:
                    return _whole_wide_lines(bytes(first)) if b"\0" in first else _whole_lines(bytes(first))
            return bytes(first)
        with self.path.open("rb") as file:
            first_half = _whole_lines(file.read(half))
            file.seek(max(half, self.n_bytes // 2))
            middle = file.read(min(half, self.n_bytes - file.tell()))
        line_end = b"\n" if b"\n" in middle else b"\r"
        return first_half + _whole_lines(middle[middle.find(line_end) + 1 :])


def find(root: Path, text: str, key: str) -> list[InputFile]:
    """Find the files of a setting: a file, glob or folder.

    A zip archive gives its members. Files are sorted by the bytes of the name. Their size is fixed: bytes appended
    later are not read.

    Raises:
        UserError: the path does not exist (the error names the nearest one), or the file is empty.
    """
    path = Path(text).expanduser()
    target = root / path
    if target.is_dir():
        paths = [file for file in target.rglob("*") if file.is_file() and _is_table(file, target)]
        if not paths:
            raise UserError(key, text, f"a folder with {FORMATS}", f"set {key} to a file")
    elif target.is_file():
        paths = [target]
    else:
        paths = _globbed(root, text)
        if not paths:
            fix = "pass its path as FILE" if key == "FILE" else f"set {key} in recloop.toml"
            raise UserError(key, text, f"an existing file, glob or folder{_beside(target)}", fix)
    sources = [
        source
        for file in paths
        for source in _with_members(InputFile(key, file, file.as_posix() if path.is_absolute() else _name(root, file)))
    ]
    sources.sort(key=lambda source: source.name.encode())
    if len(sources) == 1 and sources[0].n_bytes == 0:
        raise UserError(
            key, text, f"{FORMATS} with a header and rows; the file is empty (0 bytes)",
            sources[0].use_of_new.replace("NEW", "another file"),
        )  # fmt: skip
    return [source for source in sources if source.n_bytes] or sources


def fingerprint(data: Data, sources: Iterable[InputFile]) -> str:
    """SHA-256 over ``[data]`` and the files' bytes by path."""
    digest = hashlib.sha256()
    settings = data.model_dump(mode="json")
    digest.update(json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    for source in sources:
        content = hashlib.sha256()
        for block in source.content():
            content.update(block)
        digest.update(f"\n{source.key}\0{source.name}\0{content.hexdigest()}".encode())
    return digest.hexdigest()


def encoding_mark(head: bytes) -> str | None:
    """Encoding by the first bytes: a byte order mark, or UTF-16 zero bytes."""
    for mark, name in BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return name
    if len(head) >= 4 and head[: len(head) // 2 * 2][1::2].count(0) > len(head) * 0.2:
        return "utf-16-le"
    if len(head) >= 4 and head[0::2].count(0) > len(head) * 0.2:
        return "utf-16-be"
    return None


def _with_members(source: InputFile) -> list[InputFile]:
    """The file, or the members of a zip archive.

    Of several members, those with a suffix of a table are used.
    """
    names = members(source.path)
    if names is None:
        return [source.fixed()]
    tables = names if len(names) == 1 else [name for name in names if Path(name).suffix.lower() in TABLE_SUFFIXES]
    if not tables:
        expected = f"an archive with {FORMATS}; it has {', '.join(names[:5]) or 'no file'}"
        raise UserError(source.key, source.name, expected, f"set {source.key} to another file")
    return [replace(source, name=f"{source.name}/{name}", member=name).fixed() for name in tables]


def _whole_lines(text: bytes) -> bytes:
    """Text up to its last line end at which no quote is open."""
    line_end = b"\n" if b"\n" in text else b"\r"
    last = text.rfind(line_end)
    end = last
    for _ in range(MAX_OPEN_QUOTE_LINES):
        if end < 0 or text.count(b'"', 0, end) % 2 == 0:
            break
        end = text.rfind(line_end, 0, end)
    return text[: (end if end > 0 else last) + 1]


def _whole_wide_lines(text: bytes) -> bytes:
    """Text in UTF-16 up to its last line end."""
    for line_end in (b"\n\0", b"\0\n"):
        end = text.rfind(line_end)
        while end % 2:
            end = text.rfind(line_end, 0, end)
        if end > 0:
            return text[: end + 2]
    return text[: len(text) // 2 * 2]


def _is_table(file: Path, folder: Path) -> bool:
    if any(part.startswith((".", "_")) for part in file.relative_to(folder).parts):
        return False
    suffixes = file.suffixes
    return bool(suffixes) and (
        suffixes[-1] if suffixes[-1] not in COMPRESSION_SUFFIXES else "".join(suffixes[-2:-1])
    ) in (*TABLE_SUFFIXES, ".zip")


def _globbed(root: Path, text: str) -> list[Path]:
    if not any(sign in text for sign in "*?["):
        return []
    path = Path(text).expanduser()
    base, pattern = (Path(path.anchor), str(path.relative_to(path.anchor))) if path.is_absolute() else (root, text)
    return [file for file in base.glob(pattern) if file.is_file() and not file.name.startswith(".")]


def _beside(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"; the folder {folder} does not exist"
    matches = difflib.get_close_matches(path.name, [file.name for file in folder.iterdir()], n=1, cutoff=0.5)
    return f"; nearest: {matches[0]}" if matches else ""


def _name(root: Path, file: Path) -> str:
    return Path(os.path.relpath(file.resolve(), root.resolve())).as_posix()
