"""Reader of one file as a table of text columns, with its broken rows.

Text tables and JSON lines are read only as text; Parquet keeps its types.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet

from recloop.config import Data
from recloop.data.csv.dialect import Dialect
from recloop.data.csv.table import SEPARATOR_NAMES, csv_records, read_csv
from recloop.data.encoding import BAD_BYTE, encoding_of
from recloop.data.json.leaves import Leaf
from recloop.data.json.paths import steps_of
from recloop.data.json.records import JsonLayout, json_records
from recloop.data.json.table import MAX_SAMPLE_BYTES, JsonRows, json_leaves, read_json, read_json_objects, sample_json
from recloop.data.json.values import json_text
from recloop.data.nested_frame import expand_all, expand_frame, has_path, json_texts, leaf_paths
from recloop.data.sources import InputFile, Kind
from recloop.errors import UserError
from recloop.files import JsonTree
from recloop.records import max_int

MIN_SAMPLE_BYTES: Final = 1 << 16
BLOCK_ROWS: Final = 1 << 18
"""Rows of a block of a Parquet file."""


@dataclass(frozen=True)
class Table:
    """Well-formed rows of one file, and the reasons of its broken ones.

    Attributes:
        frame: CSV and JSON lines: String columns (missing: null, or "" in CSV). Parquet: its own types.
        columns: All columns of the file, including those that were not read.
        broken: Reason by record number, for records that are not in ``frame``; numbers count all records from 0.
        records: (n,) Int64 record number of every row of ``frame`` in ascending order; None: a row is a record.
        dialect: Form of a text table.
        layout: Arrangement of the records of a JSON file.
        is_part: True for a sample of a JSON file with further records after it.
    """

    source: InputFile
    kind: Kind
    encoding: str
    separator: str
    columns: tuple[str, ...]
    frame: pl.DataFrame
    broken: dict[int, str]
    records: pl.Series | None = None
    dialect: Dialect | None = None
    layout: JsonLayout | None = None
    is_part: bool = False

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
        if self.kind != "csv":
            is_lines = self.layout is None or self.layout.kind == "lines"
            return f"{'jsonl' if is_lines else 'json'}, {recoded}"
        how = f"csv ({SEPARATOR_NAMES[self.separator]}), {recoded}"
        if self.dialect is not None and self.dialect.n_titles:
            lines = "line" if self.dialect.n_titles == 1 else "lines"
            how += f", without {self.dialect.n_titles} {lines} above the header"
        return how

    @property
    def row_records(self) -> pl.Series:
        """(n,) Int64 record number of every row; broken records are counted too."""
        if self.records is not None:
            return self.records
        is_row = np.ones(len(self.frame) + len(self.broken), dtype=bool)
        is_row[list(self.broken)] = False
        return pl.Series("record", np.flatnonzero(is_row), dtype=pl.Int64)

    def record_of(self, rows: Sequence[int]) -> list[int]:
        """Record numbers of rows of ``frame`` in ascending order.

        Broken records are counted too.
        """
        return list(self.row_records.gather(sorted(rows)).to_list())

    def line_of(self, row: int) -> int:
        """Line number (row number in Parquet) of a row of ``frame``."""
        return self.locate(self.record_of([row]))[0][0]

    def locate(self, records: Iterable[int]) -> list[tuple[int, str]]:
        """Find line and raw text of records, in ascending order."""
        numbers = sorted(records)
        if not numbers:
            return []
        if self.kind == "parquet":
            return self._parquet_rows(numbers)
        if self.dialect is not None:
            lines: Iterator[tuple[int, str, Any]] = csv_records(self.source, self.encoding, self.dialect)
        else:
            lines = json_records(self.source, self.encoding, self.layout or JsonLayout())
        located = []
        next_index = 0
        for number, (line, raw, _) in enumerate(lines):
            if number == numbers[next_index]:
                located.append((line, raw))
                next_index += 1
                if next_index == len(numbers):
                    break
        return located

    def _parquet_rows(self, records: list[int]) -> list[tuple[int, str]]:
        """Row number and first row of records as JSON; empty if the frame has none."""
        record_of_row = pl.int_range(len(self.frame), eager=True) if self.records is None else self.records
        rows = self.frame.with_columns(record_of_row.alias("\0record")).filter(pl.col("\0record").is_in(records))
        texts: dict[int, str] = {}
        for row in rows.iter_rows(named=True):
            texts.setdefault(row.pop("\0record"), json_text(row) or "")
        return [(record + 1, texts.get(record, "")) for record in records]

    def without_bad_bytes(self) -> Table:
        """Same table; rows with bytes of another encoding are among the broken ones."""
        texts = [pl.col(name) for name, kind in self.frame.schema.items() if kind == pl.String]
        is_bad = self.frame.select(pl.any_horizontal(*(text.str.contains(BAD_BYTE, literal=True) for text in texts)))
        rows = is_bad.to_series().fill_null(value=False)
        records = self.record_of(rows.arg_true().to_list())
        reason = f"bytes that are not {self.encoding}"
        return replace(self, frame=self.frame.filter(~rows), broken={**self.broken, **dict.fromkeys(records, reason)})


def read_table(source: InputFile, data: Data, names: Sequence[str] | None = None) -> Table:
    """Read one file.

    Args:
        source: The file.
        data: Encoding, separator and header of the file.
        names: The columns to read; None reads all. The caller handles missing ones.

    Raises:
        UserError: the file is not text, is damaged, or has no header or an unclosed quote.
    """
    source = source.fixed()
    kind = source.kind
    if kind == "parquet":
        return _with_text_cells(_parquet(source, names), data.cell.column)
    if kind == "csv":
        return _csv(source, data, names)
    encoding = encoding_of(source, data.encoding)
    return json_table(source, encoding, read_json(source, encoding, names))


def sample_table(source: InputFile, data: Data, rows: int) -> Table:
    """Read about ``rows`` rows of a file.

    Half are from its beginning, half from its middle; of a compressed file all are from the beginning. A file of at
    most ``rows`` rows is read whole. All values of nested JSON become columns, with one row per element of its list
    with most ids; see `sample_json`.
    """
    source = source.fixed()
    if source.kind == "parquet":
        return _parquet_sample(source, rows)
    head = source.head()
    row_bytes = len(head) / max(1, head.count(b"\n") or head.count(b"\r"))
    n_bytes = max(MIN_SAMPLE_BYTES, int(rows * row_bytes))
    if source.kind == "csv":
        return read_table(source.sampled(n_bytes), data)
    sampled = source.sampled(min(n_bytes, MAX_SAMPLE_BYTES))
    encoding = encoding_of(sampled, data.encoding)
    sample = sample_json(source, sampled, encoding, rows)
    return json_table(sampled if sample.layout.kind == "lines" else source, encoding, sample)


def read_objects(source: InputFile, data: Data) -> tuple[Table, list[JsonTree]]:
    """Read a JSON or Parquet file with every row as a typed object."""
    if source.kind == "jsonl":
        encoding = encoding_of(source, data.encoding)
        return json_table(source, encoding, read_json(source, encoding)), read_json_objects(source, encoding)
    table = read_table(source, data)
    return table, table.frame.to_dicts()


# -- CSV


def _csv(source: InputFile, data: Data, names: Sequence[str] | None) -> Table:
    rows = read_csv(source, data, names)
    table = Table(
        source, "csv", rows.scan.encoding, rows.dialect.separator, rows.columns, rows.frame, rows.broken,
        dialect=rows.dialect,
    )  # fmt: skip
    return table.without_bad_bytes() if rows.scan.has_bad_bytes else table


# -- JSON


def json_table(source: InputFile, encoding: str, rows: JsonRows) -> Table:
    """Return rows of a JSON file as a table."""
    return Table(
        source,
        "jsonl",
        encoding,
        "",
        rows.columns,
        rows.frame,
        rows.broken,
        rows.records,
        None,
        rows.layout,
        rows.is_part,
    )


def paths_of(source: InputFile, data: Data) -> list[Leaf]:
    """Paths of the values of a JSON file, with samples and shares of records."""
    return json_leaves(source, encoding_of(source, data.encoding))


# -- Parquet


def _parquet(source: InputFile, names: Sequence[str] | None) -> Table:
    try:
        data = _parquet_input(source)
        schema = _framed(pyarrow.parquet.read_schema(data).empty_table()).schema
        wanted = schema.names() if names is None else [name for name in names if has_path(schema, name)]
        roots = {steps_of(name, schema.names())[0].name for name in wanted}
        frame = _framed(pyarrow.parquet.read_table(data, columns=[name for name in schema.names() if name in roots]))
    except (pa.ArrowException, OSError) as error:
        raise UserError(source.key, source.name, f"a complete Parquet file ({error})", "write the file again") from None
    columns = (*schema.names(), *(leaf_paths(schema) if names is not None else ()))
    if roots >= set(wanted):
        return Table(source, "parquet", "", "", columns, frame, {})
    rows = expand_frame(frame, wanted)
    return Table(source, "parquet", "", "", columns, rows.frame, {}, rows.records)


def parquet_blocks(source: InputFile, names: Sequence[str]) -> Iterator[Table] | None:
    """Rows of a flat Parquet file in blocks.

    None if a wanted value is nested or the file is packed.
    """
    if source.packing is not None:
        return None
    try:
        file = pyarrow.parquet.ParquetFile(source.path)
        schema = _framed(file.schema_arrow.empty_table()).schema
    except (pa.ArrowException, OSError):
        return None  # the reader of whole files names the damage
    wanted = [name for name in names if has_path(schema, name)]
    if not set(wanted) <= set(schema.names()):
        return None
    columns = (*schema.names(), *leaf_paths(schema))
    selected = [name for name in schema.names() if name in wanted]
    return (
        Table(source, "parquet", "", "", columns, _framed(pa.Table.from_batches([batch])), {})
        for batch in file.iter_batches(BLOCK_ROWS, columns=selected)
    )


def _with_text_cells(table: Table, column: str) -> Table:
    """Same table with the lists of a column as JSON texts, as in other formats."""
    if column not in table.frame.columns or not table.frame.schema[column].is_nested():
        return table
    return replace(table, frame=table.frame.with_columns(json_texts(table.frame[column])))


def _parquet_sample(source: InputFile, rows: int) -> Table:
    """First rows of the first and of the middle row group."""
    try:
        file = pyarrow.parquet.ParquetFile(_parquet_input(source))
        groups = sorted({0, file.num_row_groups // 2}) if file.num_row_groups else []
        batches = [
            batch
            for group in groups
            for batch in [next(file.iter_batches(rows // len(groups), [group]), None)]
            if batch
        ]
        frame = _framed(pa.Table.from_batches(batches, file.schema_arrow))
    except (pa.ArrowException, OSError) as error:
        raise UserError(source.key, source.name, f"a complete Parquet file ({error})", "write the file again") from None
    flat = expand_all(frame)
    return Table(source, "parquet", "", "", tuple(flat.frame.columns), flat.frame, {}, flat.records)


def _framed(arrow: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(arrow)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _parquet_input(source: InputFile) -> Any:
    return source.path if source.packing is None else pa.BufferReader(b"".join(source.blocks()))
