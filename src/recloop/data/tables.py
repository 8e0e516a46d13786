"""Reader of one file as a table of text columns, with its broken rows.

CSV and JSON lines are read only as text: an id ``01``, ``1e5`` or ``null`` stays as written. Parquet keeps its types.
For broken rows a second pass over the file finds the line and the raw text.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from recloop.config import Data
from recloop.data.sources import InputFile, Kind, encoding_of
from recloop.errors import UserError, printable
from recloop.files import JsonTree
from recloop.records import max_int

SEPARATORS: Final = (",", ";", "\t", "|")
BLOCK_BYTES: Final = 1 << 24  # bytes; a row must fit into one block
SEPARATOR_NAMES: Final = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Table:
    """Well-formed rows of one file, and the reasons of its broken ones.

    Attributes:
        frame: CSV and JSON lines: String columns (missing: null, or "" in CSV). Parquet: its own types.
        columns: All columns of the file, including those that were not read.
        broken: Reason by record number, for records that are not in ``frame``; numbers count all records from 0.
        records: (n,) Int64 record number of every row of ``frame`` in ascending order; None: a row is a record.
    """

    source: InputFile
    kind: Kind
    encoding: str
    separator: str
    columns: tuple[str, ...]
    frame: pl.DataFrame
    broken: dict[int, str]
    records: pl.Series | None = None

    @property
    def n_records(self) -> int:
        """Records of the file, including broken ones."""
        if self.records is None:
            return len(self.frame) + len(self.broken)
        last = max([max_int(self.records) if len(self.records) else -1, *self.broken])
        return last + 1

    @property
    def how(self) -> str:
        """Format and encoding as text, for the first line of every report."""
        if self.kind == "parquet":
            return "parquet"
        recoded = self.encoding if self.encoding == "utf-8" else f"{self.encoding}, re-coded to utf-8"
        return f"csv ({SEPARATOR_NAMES[self.separator]}), {recoded}" if self.kind == "csv" else f"jsonl, {recoded}"

    def record_of(self, rows: Sequence[int]) -> list[int]:
        """Record numbers of rows of ``frame`` in ascending order.

        Broken records are counted too.
        """
        if self.records is not None:
            return list(self.records.gather(sorted(rows)).to_list())
        broken = sorted(self.broken)
        numbers = []
        n_broken = 0
        for row in sorted(rows):
            while n_broken < len(broken) and broken[n_broken] <= row + n_broken:
                n_broken += 1
            numbers.append(row + n_broken)
        return numbers

    def line_of(self, row: int) -> int:
        """Line number (row number in Parquet) of a row of ``frame``."""
        return self.locate(self.record_of([row]))[0][0]

    def locate(self, records: Iterable[int]) -> list[tuple[int, str]]:
        """Find line and raw text of records, in ascending order."""
        numbers = sorted(records)
        if not numbers:
            return []
        if self.kind == "parquet":
            rows = self.frame[numbers]
            return [(number + 1, _json(row)) for number, row in zip(numbers, rows.to_dicts(), strict=True)]
        lines = _csv_lines(self) if self.kind == "csv" else _json_lines(self.source, self.encoding)
        located = []
        next_index = 0
        for number, (line, raw, _) in enumerate(lines):
            if number == numbers[next_index]:
                located.append((line, raw))
                next_index += 1
                if next_index == len(numbers):
                    break
        return located


def read_table(source: InputFile, data: Data, names: Sequence[str] | None = None) -> Table:
    """Read one file.

    Args:
        source: The file.
        data: Encoding, separator and header of the file.
        names: The columns to read; None reads all. The caller handles missing ones.

    Raises:
        UserError: the file is not text, is damaged, or has no header or an unclosed quote.
    """
    kind = source.kind
    if kind == "parquet":
        return _parquet(source, names)
    text = encoding_of(source, data.encoding)
    return _csv(source, text, names) if kind == "csv" else _jsonl(source, text, names)


def read_objects(source: InputFile, data: Data) -> tuple[Table, list[JsonTree]]:
    """Read a JSON lines or Parquet file with every row as a typed object."""
    if source.kind == "jsonl":
        text = encoding_of(source, data.encoding)
        objects = [value for _, _, value in _json_lines(source, text) if isinstance(value, dict)]
        return _jsonl(source, text, None), objects
    table = read_table(source, data)
    return table, table.frame.to_dicts()


# -- CSV


def _csv(source: InputFile, encoding: str, names: Sequence[str] | None) -> Table:
    separator, header, lines = _header(source, encoding)
    columns = _distinct(source, header, names)
    broken: list[str] = []

    def keep(row: pyarrow.csv.InvalidRow) -> str:
        broken.append(row.text)
        return "skip"

    try:
        arrow = pyarrow.csv.read_csv(
            _recoded(source, encoding),
            pyarrow.csv.ReadOptions(column_names=columns, skip_rows=lines, block_size=BLOCK_BYTES),
            pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=keep),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.string()),
                strings_can_be_null=False,
                include_columns=None if names is None else [name for name in columns if name in set(names)],
            ),
        )
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise UserError(source.key, source.name, f"a CSV file ({error})", "look for an unclosed quote") from None
    frame = _framed(arrow)
    table = Table(source, "csv", encoding, separator, tuple(columns), frame, {})
    if not broken and sum(block.count(b'"') for block in source.blocks()) % 2 == 0:
        return table
    reasons: dict[int, str] = {}
    line = 1
    raw = ""
    for number, (line, raw, fields) in enumerate(_csv_lines(table)):
        if len(fields) != len(columns):
            reasons[number] = f"expected {len(columns)} fields, found {len(fields)}"
            _closed(source, line, raw)
    _closed(source, line, raw)
    return Table(source, "csv", encoding, separator, tuple(columns), frame, reasons)


def _closed(source: InputFile, line: int, raw: str) -> None:
    """Reject a record with an unclosed quote; called for odd records and the last one."""
    if raw.count('"') % 2 and "\n" in raw.strip():
        expected = f"closed quotes; the one in line {line} is never closed"
        raise UserError(source.key, source.name, expected, f"correct line {line}", (printable(raw),))


def _header(source: InputFile, encoding: str) -> tuple[str, list[str], int]:
    """Separator, column names, and number of header lines."""
    head = source.head(1 << 20).decode(encoding, "ignore").lstrip("\ufeff")
    best: tuple[str, list[str], int] | None = None
    for separator in SEPARATORS:
        reader = csv.reader(io.StringIO(head, newline=""), delimiter=separator)
        names = next((row for row in reader if row), None)
        if names is not None and (best is None or len(names) > len(best[1])):
            best = (separator, names, reader.line_num)
    if best is None:
        raise UserError(source.key, source.name, "a header and rows; the file is blank", f"set {source.key}")
    return best


def _distinct(source: InputFile, header: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """Header with unique names; a repeated name among the wanted columns is an error."""
    columns: list[str] = []
    for name in header:
        if name in columns and names is not None and name in names:
            raise UserError("column", name, f"one column with this name in {source.name}, found several", "rename one")
        unique, number = name, 2
        while unique in columns:
            unique, number = f"{name}_{number}", number + 1
        columns.append(unique)
    return columns


def _recoded(source: InputFile, encoding: str) -> Any:
    stream = source.stream()
    return stream if encoding == "utf-8" else pa.transcoding_input_stream(stream, encoding, "utf-8")


def _text(source: InputFile, encoding: str) -> io.TextIOWrapper:
    codec = "utf-8-sig" if encoding == "utf-8" else encoding
    return io.TextIOWrapper(io.BufferedReader(source.stream()), codec, newline="")


def _csv_lines(table: Table) -> Iterator[tuple[int, str, list[str]]]:
    """Yield first line, raw text and fields of every record after the header."""
    raw_lines: list[str] = []

    def lines() -> Iterator[str]:
        with _text(table.source, table.encoding) as text:
            for line in text:
                raw_lines.append(line)
                yield line

    reader = csv.reader(lines(), delimiter=table.separator)
    start = 1
    has_header = False
    for fields in reader:
        raw = "".join(raw_lines).rstrip("\r\n")
        line = start
        raw_lines.clear()
        start = reader.line_num + 1
        if not fields:
            continue
        if has_header:
            yield line, raw, fields
        has_header = True


def _framed(arrow: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(arrow)
    assert isinstance(frame, pl.DataFrame)
    return frame


# -- JSON lines


def _json_lines(source: InputFile, encoding: str) -> Iterator[tuple[int, str, Any]]:
    """Yield number, raw text and value of every line that is not blank.

    For a line that is not JSON, the value is the exception.
    """
    decoder = msgspec.json.Decoder()
    with _text(source, encoding) as text:
        for line, raw in enumerate(text, 1):
            raw = raw.strip("\ufeff\r\n\t ")  # noqa: PLW2901
            if raw:
                try:
                    yield line, raw, decoder.decode(raw)
                except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                    yield line, raw, error


def _jsonl(source: InputFile, encoding: str, names: Sequence[str] | None) -> Table:
    objects: list[JsonTree] = []
    broken: dict[int, str] = {}
    all_names: dict[str, None] = {}
    for number, (_, _, value) in enumerate(_json_lines(source, encoding)):
        if isinstance(value, dict):
            objects.append(value)
            all_names.update(dict.fromkeys(value))
        else:
            broken[number] = f"not JSON: {value}" if isinstance(value, Exception) else "not a JSON object"
    selected = [name for name in all_names if names is None or name in set(names)]
    columns = {name: pl.Series([json_text(row.get(name)) for row in objects], dtype=pl.String) for name in selected}
    return Table(source, "jsonl", encoding, "", tuple(all_names), pl.DataFrame(columns), broken)


def json_text(value: Any) -> str | None:
    """Text of a JSON value: ``1`` and ``"1"`` are the same id, ``1.5`` stays ``1.5``."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, int | float) else _json(value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()


# -- Parquet


def _parquet(source: InputFile, names: Sequence[str] | None) -> Table:
    try:
        data: Any = source.path if source.packing is None else pa.BufferReader(b"".join(source.blocks()))
        columns = tuple(pyarrow.parquet.read_schema(data).names)
        selected = None if names is None else [name for name in columns if name in set(names)]
        frame = _framed(pyarrow.parquet.read_table(data, columns=selected))
    except (pa.ArrowException, OSError) as error:
        raise UserError(source.key, source.name, f"a complete Parquet file ({error})", "write the file again") from None
    return Table(source, "parquet", "", "", columns, frame, {})
