"""Records of a JSON file: lines, the elements of an array, or further objects.

The file is read in blocks, also if it is one array of gigabytes.
"""

from __future__ import annotations

import codecs
import itertools
import re
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import msgspec
import numpy as np
import numpy.typing as npt

from recloop.data.sources import InputFile
from recloop.errors import UserError, printable

BLANK: Final = b"\xef\xbb\xbf\r\n\t "
"""Bytes around a record: blanks, and byte order marks of files that were joined."""
DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeError, RecursionError)
PYTHON_LITERAL: Final = re.compile(rb"\{\s*[uUbr]?'")
PYTHON_TO_JSON: Final = (
    "import ast, json; "
    "[print(json.dumps(ast.literal_eval(line))) for line in open(0, encoding='utf-8') if line.strip()]"
)
UNPACK: Final = {"gzip": "gzip -dc", "zstd": "zstd -dc", "bz2": "bzip2 -dc", "zip": "unzip -p"}
QUOTE, COMMA, OPEN, CLOSE = 1, 2, 3, 4
SIGN_KINDS: Final = np.zeros(256, dtype=np.int8)
for _signs, _kind in ((b'"', QUOTE), (b",", COMMA), (b"{[", OPEN), (b"}]", CLOSE)):
    SIGN_KINDS[list(_signs)] = _kind

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class JsonLayout:
    """Arrangement of the records of a file.

    Attributes:
        kind: One record per line, elements of an array, or objects one after the other.
        start: Position of the array in the text, in bytes of UTF-8.
        wrapper: Text of the file's only object before the array, which is one of its values; empty for another array.
    """

    kind: Literal["lines", "array", "objects"] = "lines"
    start: int = 0
    wrapper: bytes = b""


@dataclass(frozen=True)
class Chunk:
    """Text with complete records.

    Attributes:
        text: UTF-8.
        ends: End of each record in ``text``; None: every line that is not blank is a record.
        line: Line number of the first byte.
    """

    text: bytes
    ends: Indices | None
    line: int

    def values(self) -> list[Any]:
        """Value of every record; the exception for one that is not JSON."""
        values = self.decode(Any)
        return [_value(raw) for _, raw in self.records()] if values is None else values

    def decode(self, kind: Any) -> list[Any] | None:
        """Values of a type; None if a record has another type or is not JSON."""
        if self.ends is None:
            text = self.text.strip(BLANK)
            n_records = text.count(b"\n") + 1
        else:
            text = _separated_by_lines(self.text, self.ends)
            n_records = len(self.ends)
        try:
            values: list[Any] = msgspec.json.Decoder(kind).decode_lines(text)
        except DECODE_ERRORS:
            return None
        return values if len(values) == n_records else None

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield line number and text of every record."""
        line = self.line
        if self.ends is None:
            for number, raw in enumerate(self.text.split(b"\n"), line):
                if record := raw.strip(BLANK):
                    yield number, record
            return
        start = 0
        for end in self.ends.tolist():
            raw = self.text[start:end]
            record = raw.lstrip(BLANK + b",")
            yield line + raw[: len(raw) - len(record)].count(b"\n"), record.rstrip(BLANK)
            line += raw.count(b"\n")
            start = end


def _separated_by_lines(text: bytes, ends: Indices) -> bytes:
    """Text with a line break instead of the comma after each record."""
    signs = np.frombuffer(text, dtype=np.uint8).copy()
    at = np.concatenate([[0], ends[ends < len(signs)]])
    signs[at[signs[at] == ord(",")]] = ord("\n")
    return signs.tobytes()


def _value(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except DECODE_ERRORS as error:
        return error


def _is_object(raw: bytes) -> bool:
    return isinstance(_value(raw), dict)


# -- structure


class _Structure:
    """Positions and depths of commas and brackets outside of texts."""

    def __init__(self) -> None:
        self.depth = 0
        self.in_text = False
        self.is_escaped = False

    def scan(self, block: bytes) -> tuple[Indices, npt.NDArray[np.int8], Indices]:
        """Position and kind of each sign of the next block, and the depth after it."""
        signs = np.frombuffer(block, dtype=np.uint8)
        kinds = SIGN_KINDS[signs]
        positions = np.flatnonzero(kinds)
        kinds = kinds[positions]
        if self.is_escaped or b"\\" in block:
            is_sign = np.ones(len(positions), dtype=bool)
            is_quote = kinds == QUOTE
            is_sign[is_quote] = ~self._escaped(signs, positions[is_quote])
            positions, kinds = positions[is_sign], kinds[is_sign]
            self.is_escaped = bool(self._escaped(signs, np.array([len(signs)]))[0])
        is_quote = kinds == QUOTE
        in_text = (np.cumsum(is_quote) + self.in_text) % 2 == 1
        self.in_text = bool(in_text[-1]) if len(in_text) else self.in_text
        outside = ~in_text & ~is_quote
        positions, kinds = positions[outside], kinds[outside]
        depths = self.depth + np.cumsum((kinds == OPEN).astype(np.int64) - (kinds == CLOSE))
        self.depth = int(depths[-1]) if len(depths) else self.depth
        return positions, kinds, depths

    def _escaped(self, signs: npt.NDArray[np.uint8], positions: Indices) -> npt.NDArray[np.bool_]:
        """True for each position after an odd number of backslashes."""
        is_odd = np.zeros(len(positions), dtype=bool)
        rest = np.arange(len(positions))
        distance = 1
        while len(rest):
            before = positions[rest] - distance
            is_first = before < 0
            is_odd[rest[is_first]] ^= self.is_escaped
            rest = rest[~is_first]
            rest = rest[signs[before[~is_first]] == ord("\\")]
            is_odd[rest] ^= True
            distance += 1
        return is_odd


# -- layout


def find_layout(source: InputFile, encoding: str, names: Collection[str] | None = None) -> JsonLayout:
    """Find how the records of a JSON file are arranged.

    If the file is one object with a list of objects, the elements of the list are the records, except if a wanted name
    begins at a key of the object.

    Raises:
        UserError: the lines are Python literals, or the only object of the file is not closed.
    """
    blocks = _utf8_blocks(source, encoding)
    head = b"".join(itertools.islice(blocks, 2))
    start = len(head) - len(head.lstrip(BLANK))
    if head[start : start + 1] == b"[":
        return JsonLayout("array", start)
    if PYTHON_LITERAL.match(head, start):
        _raise_python_literal(source)
    first_line, _, rest = head[start:].partition(b"\n")
    if _is_object(first_line.strip(BLANK)):
        has_more = rest.strip(BLANK) or next(blocks, b"")
        return JsonLayout() if has_more else _wrapped(head, start, names) or JsonLayout()
    end, has_lines, after = _first_object(itertools.chain([head[start:]], blocks))
    if end and (start + end > len(head) or _is_object(head[start : start + end])):
        if not after.strip(BLANK):
            return _wrapped(head, start, names) or JsonLayout("objects")
        if has_lines or after.lstrip(b" ,")[:1] == b"{":
            return JsonLayout("objects")
        return JsonLayout()
    if not any(_is_object(line.strip(BLANK)) for line in itertools.islice(rest.split(b"\n"), 100)) and not end:
        _raise_not_closed(source, 1, 1, head)
    return JsonLayout()


def _first_object(blocks: Iterator[bytes]) -> tuple[int, bool, bytes]:
    """End of the first object (0: not closed), if it has line breaks, and the rest."""
    structure = _Structure()
    n_bytes = 0
    has_lines = False
    for block in blocks:
        positions, kinds, depths = structure.scan(block)
        ends = positions[(kinds == CLOSE) & (depths == 0)]
        if len(ends):
            end = int(ends[0]) + 1
            after = block[end:] + b"".join(itertools.islice(blocks, 1))
            return n_bytes + end, has_lines or b"\n" in block[:end], after
        n_bytes += len(block)
        has_lines = has_lines or b"\n" in block
    return 0, has_lines, b""


def _wrapped(head: bytes, start: int, names: Collection[str] | None) -> JsonLayout | None:
    """Layout of an object that has the records in a list; None: it is the record."""
    positions, _, depths = _Structure().scan(head[start:])
    for position in (positions[depths == 2] + start).tolist():
        if head[position : position + 1] != b"[" or head[position + 1 :].lstrip(BLANK)[:1] != b"{":
            continue
        wrapper = head[start:position]
        value = _value(wrapper + b"[]}")
        if not isinstance(value, dict) or {re.split(r"[.\[]", name)[0] for name in names or ()} & set(value):
            return None
        return JsonLayout("array", position, wrapper)
    return None


# -- chunks


def json_records(source: InputFile, encoding: str, layout: JsonLayout) -> Iterator[tuple[int, str, None]]:
    """Yield line number and text of every record."""
    for chunk in chunks(source, encoding, layout):
        for line, raw in chunk.records():
            yield line, raw.decode(errors="replace"), None


def chunks(source: InputFile, encoding: str, layout: JsonLayout) -> Iterator[Chunk]:
    """Yield the text of the file in pieces of complete records.

    Raises:
        UserError: an array or object is not closed, or other text follows the array.
    """
    blocks = _utf8_blocks(source, encoding)
    return _lines(blocks) if layout.kind == "lines" else _elements(source, blocks, layout)


def _lines(blocks: Iterator[bytes]) -> Iterator[Chunk]:
    pending: list[bytes] = []
    line = 1
    for block in blocks:
        cut = block.rfind(b"\n") + 1
        if not cut:
            pending.append(block)
            continue
        text = b"".join(pending) + block[:cut]
        yield Chunk(text, None, line)
        line += text.count(b"\n")
        pending = [block[cut:]]
    yield Chunk(b"".join(pending), None, line)


def _elements(source: InputFile, blocks: Iterator[bytes], layout: JsonLayout) -> Iterator[Chunk]:
    before, blocks = _split_at(blocks, layout.start + (layout.kind == "array"))
    structure = _Structure()
    line = 1 + before.count(b"\n")
    structure.depth = 1 if layout.kind == "array" else 0
    pending = b""
    n_records = 0
    for block in blocks:
        positions, kinds, depths = structure.scan(block)
        is_end = (kinds == CLOSE) & (depths == 0)
        if layout.kind == "array":
            last = np.flatnonzero(is_end)[:1]
            is_end |= (kinds == COMMA) & (depths == 1)
            ends = positions[is_end] if not len(last) else positions[: last[0] + 1][is_end[: last[0] + 1]]
        else:
            last = np.array([], dtype=np.int64)
            ends = positions[is_end] + 1
        ends = ends + len(pending)
        text = pending + block
        if not len(ends):
            pending = text
            continue
        end = int(ends[-1])
        pending = text[end:]
        if len(last) and not text[ends[-2] if len(ends) > 1 else 0 : end].strip(BLANK + b","):
            ends = ends[:-1]  # an empty array, or a comma after the last element
        yield Chunk(text[:end], ends, line)
        line += text[:end].count(b"\n")
        n_records += len(ends)
        if len(last):
            _check_rest(source, layout, pending[1:] + b"".join(blocks))
            return
    if layout.kind == "array" or pending.strip(BLANK):
        _raise_not_closed(source, n_records + 1, line, pending)


def _split_at(blocks: Iterator[bytes], position: int) -> tuple[bytes, Iterator[bytes]]:
    text = b""
    while len(text) < position:
        text += next(blocks)
    return text[:position], itertools.chain([text[position:]], blocks)


def _check_rest(source: InputFile, layout: JsonLayout, rest: bytes) -> None:
    """Reject text after an array, and a second list of records beside it."""
    if not layout.wrapper:
        if rest.strip(BLANK):
            _raise_second(source, "text after the array")
        return
    value = _value((layout.wrapper + b"null" + rest).strip(BLANK))
    if not isinstance(value, dict):
        _raise_second(source, "text after the array")
    for name, inner in value.items():
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            _raise_second(source, f"a second list, {name}")


def _utf8_blocks(source: InputFile, encoding: str) -> Iterator[bytes]:
    if encoding.startswith("utf-8"):
        yield from source.blocks()
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    for block in source.blocks():
        yield decoder.decode(block).encode()


# -- errors


def _raise_python_literal(source: InputFile) -> NoReturn:
    new = shlex.quote(f"{Path(source.member or source.name).name.partition('.')[0]}-json.jsonl")
    file = shlex.quote(source.path.name if source.member else source.name)
    member = f" {shlex.quote(source.member)}" if source.member else ""
    if source.packing is None:
        fix = f'python -c "{PYTHON_TO_JSON}" < {file} > {new}'
    else:
        fix = f'{UNPACK[source.packing]} {file}{member} | python -c "{PYTHON_TO_JSON}" > {new}'
    raise UserError(source.key, source.name, "JSON with double quotes; its lines are Python literals", fix)


def _raise_not_closed(source: InputFile, record: int, line: int, text: bytes) -> NoReturn:
    start = text.lstrip(BLANK + b",")
    line += text[: len(text) - len(start)].count(b"\n")
    expected = f"complete JSON; record {record:,} (line {line:,}) is not closed"
    sample = printable(start[:200].decode(errors="replace"))
    raise UserError(source.key, source.name, expected, f"correct line {line} or export the file again", (sample,))


def _raise_second(source: InputFile, found: str) -> NoReturn:
    expected = f"one JSON array of records, or one object per line; found {found}"
    raise UserError(source.key, source.name, expected, "jq -c '.NAME[]' FILE > FILE.jsonl, with the list's name")
