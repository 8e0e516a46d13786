"""Input files: find by setting, detect format and encoding, fingerprint.

The format is detected from the bytes, not from the file name: Parquet, JSON lines or CSV, with gzip or zstd
compression, in UTF-8, GB18030, cp1252 or UTF-16. Other encodings than UTF-8 are transcoded in a stream without loss.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from recloop.config import Data
from recloop.errors import UserError

TABLE_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet", ".pq")
COMPRESSION_BY_SUFFIX: Final = {".gz": "gzip", ".zst": "zstd"}
COMPRESSION_BY_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
FOREIGN_FORMATS: Final = {
    b"PK\x03\x04": "a zip or Excel file",
    b"SQLite": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an Excel file",
}
BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BLOCK_BYTES: Final = 1 << 22
FORMATS: Final = "csv, jsonl or parquet (also .gz, .zst)"

Kind = Literal["csv", "jsonl", "parquet"]


@dataclass(frozen=True)
class InputFile:
    """Input file of events, items or users.

    Attributes:
        key: The setting that names it: ``data.events``.
        path: Path on disk.
        name: Path from the project folder, as used in messages, rejects and the fingerprint.
    """

    key: str
    path: Path
    name: str

    @property
    def packing(self) -> str | None:
        with self.path.open("rb") as file:
            start = file.read(4)
        return next((packing for magic, packing in COMPRESSION_BY_MAGIC.items() if start.startswith(magic)), None)

    def blocks(self) -> Iterator[bytes]:
        """Yield the decompressed bytes."""
        with self.stream() as stream:
            try:
                while block := stream.read(BLOCK_BYTES):
                    yield block
            except (OSError, EOFError, ValueError) as error:
                raise UserError(
                    self.key, self.name, f"a complete {self.packing} file ({error})", "compress it again"
                ) from None

    def stream(self) -> Any:
        """Decompressed bytes as an Arrow stream."""
        return pa.input_stream(str(self.path), compression=self.packing)

    def head(self, size: int = 1 << 16) -> bytes:
        for block in self.blocks():
            return block[:size]
        return b""

    @property
    def kind(self) -> Kind:
        head = self.head()
        if head[:4] == b"PAR1":
            return "parquet"
        for magic, description in FOREIGN_FORMATS.items():
            if head.startswith(magic):
                raise UserError(
                    self.key, self.name, f"{FORMATS}; this is {description}", "export the table as CSV in UTF-8"
                )
        text = head.decode("utf-16" if encoding_mark(head) == "utf-16" else "latin-1", "ignore").lstrip(
            "\ufeffï»¿ \r\n\t"
        )
        if text.startswith("["):
            raise UserError(
                self.key, self.name, "one JSON object per line; this is a JSON array", "jq -c '.[]' FILE > FILE.jsonl"
            )
        return "jsonl" if text.startswith("{") else "csv"


def find(root: Path, text: str, key: str) -> list[InputFile]:
    """Find the files of a setting: a file, glob or folder.

    They are sorted by the bytes of the path.

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
            fix = "recloop init FILE, with its path" if key == "FILE" else f"set {key} in recloop.toml"
            raise UserError(key, text, f"an existing file, glob or folder{_beside(target)}", fix)
    sources = [InputFile(key, file, file.as_posix() if path.is_absolute() else _name(root, file)) for file in paths]
    sources.sort(key=lambda source: source.name.encode())
    for source in sources:
        if source.path.stat().st_size == 0 and len(sources) == 1:
            raise UserError(key, text, f"{FORMATS} with a header and rows; the file is empty (0 bytes)", f"set {key}")
    return [source for source in sources if source.path.stat().st_size] or sources


def fingerprint(data: Data, sources: Iterable[InputFile]) -> str:
    """SHA-256 over ``[data]`` and the files' bytes by path."""
    digest = hashlib.sha256()
    settings = data.model_dump(mode="json")
    digest.update(json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
    for source in sources:
        with source.path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"\n{source.key}\0{source.name}\0{content}".encode())
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


def encoding_of(source: InputFile, configured: str = "auto") -> str:
    """Encoding of a text file: the configured one, else the first that decodes it.

    Order: byte order mark, UTF-8, GB18030, cp1252, UTF-16. GB18030 also decodes most cp1252 texts, so most
    characters above ASCII must also be pairs of high bytes.

    Raises:
        UserError: the configured encoding, or each of the four, fails to decode the file.
    """
    mark = encoding_mark(source.head())
    if configured != "auto":
        if configured == "utf-16":
            configured = mark if mark and mark.startswith("utf-16") else "utf-16-le"
        bad_byte = _first_broken(source, configured)
        if bad_byte is not None:
            raise UserError(
                "data.encoding", configured, f"the encoding of {source.name} (decoding fails at byte {bad_byte:,})",
                '--set data.encoding="auto"',
            )  # fmt: skip
        return configured
    if mark is not None:
        if _first_broken(source, mark) is None:
            return mark
    elif _first_broken(source, "utf-8") is None:
        return "utf-8"
    elif _first_broken(source, "gb18030") is None and _looks_chinese(source):
        return "gb18030"
    elif _first_broken(source, "cp1252") is None:
        return "cp1252"
    elif _first_broken(source, "gb18030") is None:
        return "gb18030"
    raise UserError(
        "data.encoding", "auto", f"UTF-8, GB18030, cp1252 or UTF-16; none of them decodes all of {source.name}",
        "iconv -f ENCODING -t UTF-8 FILE > NEW",
    )  # fmt: skip


def _first_broken(source: InputFile, encoding: str) -> int | None:
    decoder = codecs.getincrementaldecoder(encoding)()
    n_decoded = 0
    try:
        for block in source.blocks():
            decoder.decode(block)
            n_decoded += len(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        return n_decoded + error.start
    return None


def _looks_chinese(source: InputFile) -> bool:
    """True if most characters above ASCII are pairs of high bytes, as in Chinese text."""
    common = rare = 0
    for block in source.blocks():
        pairs = re.findall(rb"[\x81-\xfe][\x30-\x39\x40-\x7e\x80-\xfe]", block)
        common += sum(pair[0] >= 0xA1 and pair[1] >= 0xA1 for pair in pairs)
        rare += sum(pair[0] < 0xA1 or pair[1] < 0xA1 for pair in pairs)
        if common + rare > 100_000:
            break
    return common > rare


def _is_table(file: Path, folder: Path) -> bool:
    if any(part.startswith((".", "_")) for part in file.relative_to(folder).parts):
        return False
    suffixes = file.suffixes
    return (
        bool(suffixes)
        and (suffixes[-1] if suffixes[-1] not in COMPRESSION_BY_SUFFIX else "".join(suffixes[-2:-1])) in TABLE_SUFFIXES
    )


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
