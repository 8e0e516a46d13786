"""Reader of text tables: fields as text, broken records with their reasons.

Values are read only as text: an id ``01``, ``1e5`` or ``null`` stays as written. For broken records a second pass over
the file finds the line and the raw text.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import polars as pl
import pyarrow as pa
import pyarrow.csv

from recloop.config import Data
from recloop.data.csv.dialect import LITERAL_QUOTE_SEPARATORS, Dialect, find_dialect
from recloop.data.encoding import BAD_BYTE, TextScan, open_text, scan_text, utf8_stream
from recloop.data.sources import InputFile
from recloop.errors import UserError, printable

BLOCK_BYTES: Final = 1 << 24  # bytes; a row must fit into one block
SLICE_ROWS: Final = 50_000
MIN_BROKEN_RECORDS: Final = 3
"""Broken records up to which a file is not refused as a whole."""
SEPARATOR_NAMES: Final = {
    ",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", "::": "double colons", " ": "blanks"
}  # fmt: skip


@dataclass(frozen=True)
class CsvRows:
    """Well-formed records of a text table, and the reasons of others by number."""

    scan: TextScan
    dialect: Dialect
    columns: tuple[str, ...]
    frame: pl.DataFrame
    broken: dict[int, str]


@dataclass(frozen=True)
class CsvForm:
    """Encoding, dialect and columns of a text table, and the columns to read."""

    scan: TextScan
    dialect: Dialect
    columns: list[str]
    wanted: list[str]

    @property
    def is_plain(self) -> bool:
        """True if the table can be read in blocks without a second pass over its text."""
        return not (self.scan.has_bad_bytes or self.dialect.has_blanks)


def find_form(source: InputFile, data: Data, names: Sequence[str] | None) -> CsvForm:
    """Find the form of a text table; see `read_csv`."""
    scan = scan_text(source, data.encoding)
    dialect = find_dialect(source, scan.encoding, data)
    if data.header and dialect.is_headless:
        expected = f"names of columns; the first line holds values, not names ({printable(dialect.header)})"
        is_configured = source.key.startswith("data.")
        fix = "header = false under [data] in recloop.toml" if is_configured else "write the names in the first line"
        raise UserError(source.key, source.name, expected, fix)
    if scan.n_quotes and dialect.separator in LITERAL_QUOTE_SEPARATORS and dialect.has_quotes:
        dialect = replace(dialect, has_quotes=_has_closed_quotes(source, scan, dialect))
    columns = distinct_names(source, dialect.names, names)
    wanted = columns if names is None else [name for name in columns if name in set(names)]
    return CsvForm(scan, dialect, columns, wanted)


def read_csv(source: InputFile, data: Data, names: Sequence[str] | None) -> CsvRows:
    """Read the columns ``names`` of a text table; None: all of them.

    Raises:
        UserError: the first line holds values, a wanted name occurs twice, a quote is never closed, or most records
            have another number of fields than the header.
    """
    form = find_form(source, data, names)
    if form.dialect.has_blanks and form.scan.n_quotes:
        frame, n_invalid = _read_by_record(source, form.scan, form.dialect, form.columns, form.wanted)
    else:
        frame, n_invalid = _read_by_block(source, form)
    if form.dialect.has_blanks:
        frame = frame.with_columns(pl.all().str.strip_chars(" "))
    return CsvRows(form.scan, form.dialect, tuple(form.columns), frame, broken_records(source, form, frame, n_invalid))


def broken_records(source: InputFile, form: CsvForm, frame: pl.DataFrame, n_invalid: int) -> dict[int, str]:
    """Reasons of the records that are not in ``frame``, by record number.

    Only the number of rows of ``frame`` is used. ``n_invalid``: records that were left out.
    """
    rows = CsvRows(form.scan, form.dialect, tuple(form.columns), frame, {})
    if n_invalid or (form.dialect.has_quotes and form.scan.n_quotes % 2 and not _is_part(source, rows)):
        return _broken_records(source, rows)
    return {}


class CsvBlocks:
    """Frames of a plain text table, block by block.

    ``n_invalid`` counts the records with another number of fields.
    """

    def __init__(self, source: InputFile, form: CsvForm) -> None:
        self._source = source
        self._form = form
        self.n_invalid = 0

    def __iter__(self) -> Iterator[pl.DataFrame]:
        try:
            with pyarrow.csv.open_csv(*_csv_input(self._source, self._form, self._keep)) as reader:
                for batch in reader:
                    frame = pl.from_arrow(batch)
                    assert isinstance(frame, pl.DataFrame)
                    yield frame
        except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
            raise _damaged(self._source, self._form, error) from None

    def _keep(self, _: pyarrow.csv.InvalidRow) -> str:
        self.n_invalid += 1
        return "skip"


def csv_records(source: InputFile, encoding: str, dialect: Dialect) -> Iterator[tuple[int, str, list[str]]]:
    """Yield first line, raw text and fields of every record after the header."""
    raw_lines: list[str] = []
    n_lines = 0

    def lines() -> Iterator[str]:
        nonlocal n_lines
        with open_text(source, encoding) as text:
            for line in text:
                n_lines += 1
                if n_lines > dialect.n_skipped:
                    raw_lines.append(line)
                    yield line

    start = dialect.n_skipped + 1
    for fields in dialect.records(lines()):
        raw = "".join(raw_lines).rstrip("\r\n").replace(BAD_BYTE, "\ufffd")
        raw_lines.clear()
        if fields:
            yield start, raw, fields
        start = n_lines + 1


def distinct_names(source: InputFile, header: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """Header with unique names; a repeated name among the wanted columns is an error."""
    columns: list[str] = []
    for name in header:
        if name in columns and names is not None and name in names:
            raise repeated_name(source, name)
        unique, number = name, 2
        while unique in columns:
            unique, number = f"{name}_{number}", number + 1
        columns.append(unique)
    return columns


def repeated_name(source: InputFile, name: str) -> UserError:
    """Error of a wanted column whose name occurs twice in the header."""
    fix = f'rename one, or name the second column "{name}_2"'
    return UserError("column", name, f"one column with this name in {source.name}, found several", fix)


def _has_closed_quotes(source: InputFile, scan: TextScan, dialect: Dialect) -> bool:
    """True if the header is quoted, or as many fields begin as end with a quote."""
    with open_text(source, scan.encoding) as text:
        header = next((line for number, line in enumerate(text) if number >= dialect.n_titles and line.strip()), "")
    if header.startswith('"'):
        return True
    separator = dialect.separator.encode()
    n_open = n_closed = 0
    last = b"\n"
    for block in source.blocks():
        text_bytes = last + block
        n_open += text_bytes.count(separator + b'"') + text_bytes.count(b'\n"')
        n_closed += text_bytes.count(b'"' + separator) + text_bytes.count(b'"\n') + text_bytes.count(b'"\r')
        last = block[-1:]
    return n_open == n_closed + (last == b'"')


def _csv_input(source: InputFile, form: CsvForm, keep: Callable[[pyarrow.csv.InvalidRow], str]) -> tuple[Any, ...]:
    """Arguments of Arrow's readers: the wanted columns as text."""
    dialect = form.dialect
    return (
        utf8_stream(source, form.scan, dialect.replacement),
        pyarrow.csv.ReadOptions(column_names=form.columns, skip_rows=dialect.n_skipped, block_size=BLOCK_BYTES),
        pyarrow.csv.ParseOptions(
            delimiter=dialect.delimiter,
            quote_char='"' if dialect.has_quotes else False,
            newlines_in_values=dialect.has_quotes and form.scan.n_quotes > 0,
            invalid_row_handler=keep,
        ),
        pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(form.columns, pa.string()),
            strings_can_be_null=False,
            include_columns=form.wanted,
        ),
    )


def _damaged(source: InputFile, form: CsvForm, error: Exception) -> UserError:
    if "straddling" in str(error):
        return _too_long(source, form.scan, form.dialect)
    return UserError(source.key, source.name, f"a CSV file ({error})", "look for an unclosed quote")


def _read_by_block(source: InputFile, form: CsvForm) -> tuple[pl.DataFrame, int]:
    """Frame of the records with the right number of fields; number of the others."""
    invalid_rows: list[str] = []

    def keep(row: pyarrow.csv.InvalidRow) -> str:
        invalid_rows.append(row.text)
        return "skip"

    try:
        arrow = pyarrow.csv.read_csv(*_csv_input(source, form, keep))
    except (pa.ArrowInvalid, UnicodeDecodeError, OSError) as error:
        raise _damaged(source, form, error) from None
    frame = pl.from_arrow(arrow)
    assert isinstance(frame, pl.DataFrame)
    return frame, len(invalid_rows)


def _read_by_record(
    source: InputFile, scan: TextScan, dialect: Dialect, columns: list[str], wanted: list[str]
) -> tuple[pl.DataFrame, int]:
    """As `_read_by_block`, for files with blanks before quotes."""
    indexes = [columns.index(name) for name in wanted]
    frames = [pl.DataFrame(schema=dict.fromkeys(wanted, pl.String))]
    values: list[list[str]] = [[] for _ in wanted]
    n_invalid = 0
    for _, _, fields in csv_records(source, scan.encoding, dialect):
        if len(fields) != len(columns):
            n_invalid += 1
            continue
        for column, index in zip(values, indexes, strict=True):
            column.append(fields[index])
        if wanted and len(values[0]) == SLICE_ROWS:
            frames.append(pl.DataFrame(dict(zip(wanted, values, strict=True)), schema=frames[0].schema))
            values = [[] for _ in wanted]
    frames.append(pl.DataFrame(dict(zip(wanted, values, strict=True)), schema=frames[0].schema))
    return pl.concat(frames), n_invalid


def _broken_records(source: InputFile, rows: CsvRows) -> dict[int, str]:
    """Reasons of the records with another number of fields, by record number.

    Raises:
        UserError: most records have another number of fields, or a quote is never closed.
    """
    n_fields = len(rows.columns)
    reasons: dict[int, str] = {}
    samples: list[tuple[int, str, int]] = []
    line = 1
    raw = ""
    try:
        for number, (line, raw, fields) in enumerate(csv_records(source, rows.scan.encoding, rows.dialect)):
            if len(fields) != n_fields:
                reasons[number] = f"expected {n_fields} fields, found {len(fields)}"
                samples = samples or [(line, raw, len(fields))]
                _check_closed(source, rows, line, raw)
    except csv.Error:
        raise _too_long(source, rows.scan, rows.dialect) from None
    _check_closed(source, rows, line, raw)
    if len(reasons) > max(len(rows.frame), MIN_BROKEN_RECORDS):
        raise _misfit(source, rows, len(reasons), *samples[0])
    return reasons


def _misfit(source: InputFile, rows: CsvRows, n_broken: int, line: int, raw: str, n_fields: int) -> UserError:
    """Error of a file whose header does not fit its rows."""
    dialect = rows.dialect
    n_records = n_broken + len(rows.frame)
    separator = SEPARATOR_NAMES[dialect.separator]
    expected = (
        f"rows of {len(rows.columns)} fields as in line {max(dialect.n_skipped, 1)} (fields separated by {separator}); "
        f"{n_broken:,} of {n_records:,} rows have another number: line {line} has {n_fields}"
    )
    fix = f"quote values that hold the separator, or set data.separator if it is not {separator}"
    return UserError(source.key, source.name, expected, fix, (printable(dialect.header), printable(raw)))


def _is_part(source: InputFile, rows: CsvRows) -> bool:
    """True if the file is sampled, so that the sample may end inside a quote."""
    return source.sample_bytes > 0 and len(rows.frame) > 0


def _check_closed(source: InputFile, rows: CsvRows, line: int, raw: str) -> None:
    """Reject a record with an unclosed quote; called for odd records and the last one."""
    if not _is_part(source, rows) and raw.count('"') % 2 and "\n" in raw.strip():
        expected = f"closed quotes; the one in line {line} is never closed"
        raise UserError(source.key, source.name, expected, f"correct line {line}", (printable(raw),))


def _too_long(source: InputFile, scan: TextScan, dialect: Dialect) -> UserError:
    """Error of a record that is longer than a block, which an unclosed quote makes."""
    next_line = dialect.n_skipped + 1
    try:
        for line, raw, _ in csv_records(source, scan.encoding, dialect):
            if len(raw.encode()) > BLOCK_BYTES:
                next_line = line
                break
            next_line = line + raw.count("\n") + 1
    except csv.Error:
        pass
    expected = f"rows of at most {BLOCK_BYTES:,} bytes; the one that begins in line {next_line:,} is longer"
    return UserError(source.key, source.name, expected, f"look for an unclosed quote in line {next_line}")
