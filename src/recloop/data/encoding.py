"""Encoding of text files, by strict decoding of the whole file in a stream.

UTF-8 is also chosen if a few lines have other bytes: `BAD_BYTE` replaces these, and the reader rejects their rows.
"""

from __future__ import annotations

import codecs
import io
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from recloop.data.sources import InputFile, encoding_mark
from recloop.errors import UserError

BAD_BYTE: Final = "\0"
"""Replacement of a byte that is not UTF-8; files with NUL bytes of their own are refused."""
REPLACE_BAD: Final = "recloop_bad_byte"
codecs.register_error(REPLACE_BAD, lambda error: (BAD_BYTE, error.end))  # type: ignore[attr-defined]
MAX_COUNTED_LINES: Final = 20_000
"""Lines above ASCII that are counted at least, to find the share that is UTF-8."""
FIRST_COMMON_LEAD: Final = 0xB0
LAST_HANGUL_LEAD: Final = 0xC8
LAST_COMMON_LEAD: Final = 0xD7
"""Lead bytes of the 3,755 common ideographs in GB 2312, and the last one of the Hangul in EUC-KR."""
MIN_KOREAN_LETTERS: Final = 30
MIN_LATE_SHARE: Final = 0.05
"""Share of different ideographs after the last lead of Hangul that a Chinese text exceeds; about half are."""


def _ideographs(first_lead: int, last_lead: int) -> str:
    leads = range(first_lead, last_lead + 1)
    return bytes(byte for lead in leads for tail in range(0xA1, 0xFF) for byte in (lead, tail)).decode(
        "gb2312", "ignore"
    )


COMMON_HANZI: Final = _ideographs(FIRST_COMMON_LEAD, LAST_COMMON_LEAD)
LATE_HANZI: Final = re.compile(f"[{_ideographs(LAST_HANGUL_LEAD + 1, LAST_COMMON_LEAD)}]")
WORD_ABOVE_ASCII: Final = re.compile(r"[^\x00-\x7f]+")
COMMON_WORD: Final = re.compile(f"[{COMMON_HANZI}\u3000-\u303f\uff00-\uffef]+")
MIN_FOREIGN_RUN: Final = 3
"""Letters above ASCII in a row that a Western text hardly has."""
MIN_FOREIGN_LETTERS: Final = 10


@dataclass(frozen=True)
class TextScan:
    """Encoding of a text file, its quotes, and whether bytes have to be replaced."""

    encoding: str
    n_quotes: int
    has_bad_bytes: bool = False


def encoding_of(source: InputFile, configured: str = "auto") -> str:
    """Encoding of a text file; see `scan_text`."""
    return scan_text(source, configured).encoding


def scan_text(source: InputFile, configured: str = "auto") -> TextScan:
    """Find the encoding of a text file: the configured one, else the first that fits.

    Order: byte order mark, UTF-8, GB18030, cp1252. GB18030 also decodes most cp1252 texts, so most words above ASCII
    must consist of common Chinese characters.

    Raises:
        UserError: the configured encoding, or each of these, fails to decode the file, or it has NUL bytes.
    """
    mark = encoding_mark(source.head())
    if configured == "auto":
        scan = _scan(source, mark or "utf-8") or (None if mark not in (None, "utf-8") else _other(source))
        if scan is None:
            raise UserError(
                "data.encoding", "auto", f"UTF-8, GB18030, cp1252 or UTF-16; none of them decodes all of {source.name}",
                f"iconv -f ENCODING -t UTF-8 {source.path.name} > NEW",
            )  # fmt: skip
        return scan
    if configured == "utf-16":
        configured = mark if mark and mark.startswith("utf-16") else "utf-16-le"
    scan = _scan(source, configured) or (_mostly_utf8(source) if configured == "utf-8" else None)
    if scan is None:
        bad_byte = _first_broken(source, configured)
        raise UserError(
            "data.encoding", configured, f"the encoding of {source.name} (decoding fails at byte {bad_byte:,})",
            '--set data.encoding="auto"',
        )  # fmt: skip
    return scan


def open_text(source: InputFile, encoding: str) -> io.TextIOWrapper:
    """Text file with its line ends; `BAD_BYTE` replaces bytes that are not UTF-8."""
    codec = "utf-8-sig" if encoding == "utf-8" else encoding
    return io.TextIOWrapper(io.BufferedReader(source.stream()), codec, errors=REPLACE_BAD, newline="")


def utf8_stream(source: InputFile, scan: TextScan, replacement: tuple[str, str] | None = None) -> Any:
    """Arrow stream of a text file in UTF-8.

    ``replacement`` is a text and the text that replaces it.
    """
    if scan.encoding == "utf-8" and not scan.has_bad_bytes and replacement is None:
        return source.stream()
    blocks = _utf8_blocks(source, scan.encoding, replacement)
    return pa.PythonFile(io.BufferedReader(_BlockReader(blocks), 1 << 20), mode="r")


class _BlockReader(io.RawIOBase):
    """File of an iterator of byte blocks."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = deque([memoryview(b"")])

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest[0]:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest[0] = memoryview(block)
        n_bytes = min(len(buffer), len(self._rest[0]))
        buffer[:n_bytes] = self._rest[0][:n_bytes]
        self._rest[0] = self._rest[0][n_bytes:]
        return n_bytes


def _utf8_blocks(source: InputFile, encoding: str, replacement: tuple[str, str] | None) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder("utf-8-sig" if encoding == "utf-8" else encoding)(REPLACE_BAD)
    held = ""
    for block in source.blocks():
        text = held + decoder.decode(block)
        held = ""
        if replacement is not None:
            text = text.replace(*replacement)
            if text.endswith(replacement[0][0]):  # may be the first half of the replaced text
                text, held = text[:-1], text[-1]
        yield text.encode()
    yield (held + decoder.decode(b"", final=True)).encode()


def _scan(source: InputFile, encoding: str) -> TextScan | None:
    """Decode a whole file strictly; None if that fails."""
    decoder = codecs.getincrementaldecoder(encoding)()
    n_quotes = 0
    n_lines = 0
    is_wide = encoding.startswith("utf-16")
    is_partial = False
    try:
        for block in source.blocks():
            if not is_wide and b"\0" in block:
                raise _nul_error(source, n_lines + block.count(b"\n", 0, block.index(b"\0")) + 1)
            if is_partial or is_wide or not block.isascii():
                text = decoder.decode(block)
                if is_wide and "\0" in text:
                    raise _nul_error(source, n_lines + text.count("\n", 0, text.index("\0")) + 1)
                is_partial = decoder.getstate()[0] != b""
            n_quotes += block.count(b'"')
            n_lines += block.count(b"\n")
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return None
    return TextScan(encoding, n_quotes)


def _nul_error(source: InputFile, line: int) -> UserError:
    return UserError(
        source.key, source.name, f"text without NUL bytes; line {line:,} has one",
        f"{source.unpack_command} | tr -d '\\000' > NEW, then {source.use_of_new}",
    )  # fmt: skip


def _other(source: InputFile) -> TextScan | None:
    """Scan of a file that is not strictly UTF-8."""
    if (scan := _mostly_utf8(source)) is not None:
        return scan
    if (scan := _scan(source, "gb18030")) is not None and _looks_chinese(source):
        return scan
    if (scan := _scan(source, "cp1252")) is not None and _looks_western(source):
        return scan
    return None


def _mostly_utf8(source: InputFile) -> TextScan | None:
    """Scan of a UTF-8 file in which some lines are not UTF-8.

    None if most lines above ASCII are not UTF-8.
    """
    n_good = 0
    n_bad = 0
    rest = b""
    for block in source.blocks():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if not line.isascii():
                is_good = _is_utf8(line)
                n_good += is_good
                n_bad += not is_good
        if n_bad > n_good + MAX_COUNTED_LINES:
            return None
    if not rest.isascii():
        n_good, n_bad = (n_good + 1, n_bad) if _is_utf8(rest) else (n_good, n_bad + 1)
    n_quotes = sum(block.count(b'"') for block in source.blocks())
    return TextScan("utf-8", n_quotes, has_bad_bytes=True) if n_good > n_bad else None


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


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


def _decoded(source: InputFile, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)()
    for block in source.blocks():
        yield decoder.decode(block)


def _looks_chinese(source: InputFile) -> bool:
    """True if most words above ASCII consist of common Chinese characters.

    Korean text in EUC-KR has only those of the first lead bytes.
    """
    n_words = n_common = n_letters = 0
    different = set[str]()
    for text in _decoded(source, "gb18030"):
        words = WORD_ABOVE_ASCII.findall(text)
        common_words = [word for word in words if COMMON_WORD.fullmatch(word)]
        letters = "".join(common_words)
        n_words += len(words)
        n_common += len(common_words)
        n_letters += len(letters)
        different |= set(letters)
    n_late = len(LATE_HANZI.findall("".join(different)))
    is_korean = n_letters >= MIN_KOREAN_LETTERS and n_late < MIN_LATE_SHARE * len(different)
    return n_common > n_words / 2 and not is_korean


def _looks_western(source: InputFile) -> bool:
    """False if most letters above ASCII are in runs, as Cyrillic text read as cp1252."""
    n_letters = 0
    n_in_runs = 0
    for text in _decoded(source, "cp1252"):
        runs = [len(run) for run in WORD_ABOVE_ASCII.findall(text)]
        n_letters += sum(runs)
        n_in_runs += sum(length for length in runs if length >= MIN_FOREIGN_RUN)
    return n_letters < MIN_FOREIGN_LETTERS or n_in_runs <= n_letters / 2
