"""Streaming reader of a log in blocks of events.

A log is read in blocks if its rows can be read independently of each other: plain text tables with stamps of one frequent
form, without joined orders, carried fields, cells of several items, anonymous ids or attributes in the log. Any other log
is read whole (`recloop.data.read`), with equal results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from recloop.config import Data
from recloop.data.csv_table import CsvBlocks, CsvForm, broken_records, find_form
from recloop.data.read import RAW_SCHEMA, EventBlock, RawEvents, located_rows, log_info, read_block
from recloop.data.rejected_rows import RejectedRow
from recloop.data.shape import input_columns
from recloop.data.sources import InputFile
from recloop.data.tables import Table
from recloop.errors import UserError

REPEATED_HOUR: Final = "("
"""Mark of a stamp format with counts, which differ between blocks."""


class NotStreamableError(Exception):
    """The log must be read whole: rows depend on others, or an error needs all."""


@dataclass
class _FileCounts:
    """Rows of one file so far: rows, and record and reason of the rejected ones."""

    rows: int
    rejected: list[tuple[int, str]]


class EventBlocks:
    """Readable events of the files of ``data.events``, block by block.

    `raw` holds rejects and counts after the last block.
    """

    def __init__(self, sources: Sequence[InputFile], data: Data) -> None:
        self._sources = [source.fixed() for source in sources]
        self._data = data
        self._names = input_columns(data)
        self._formats: set[str] = set()
        self._left_out = 0
        self._rejects: list[RejectedRow] = []
        self._tables: list[Table] = []
        self._records: dict[str, int] = {}
        self._readable = 0

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Yield frames of RAW_SCHEMA.

        Raises:
            NotStreamableError: the log must be read whole.
        """
        try:
            for source in self._sources:
                yield from self._of_file(source)
        except UserError as error:
            raise NotStreamableError(str(error)) from error

    def raw(self) -> RawEvents:
        """Rejects and counts of the log; its frame is empty."""
        read = self._readable + len(self._rejects) + self._left_out
        info = log_info(self._tables, self._formats)
        sources = tuple(table.source for table in self._tables)
        empty = pl.DataFrame(schema=RAW_SCHEMA)
        return RawEvents(empty, self._rejects, read, info, sources, self._records, self._left_out)

    def _of_file(self, source: InputFile) -> Iterator[pl.DataFrame]:
        form = find_form(source, self._data, self._names)
        if not form.is_plain:
            raise NotStreamableError(source.name)
        table = Table(
            source, "csv", form.scan.encoding, form.dialect.separator, tuple(form.columns), pl.DataFrame(), {},
            dialect=form.dialect,
        )  # fmt: skip
        counts = _FileCounts(0, [])
        blocks = CsvBlocks(source, form)
        for frame in blocks:
            yield self._readable_rows(replace(table, frame=frame), counts)
        self._finish(source, form, table, counts, blocks.n_invalid)

    def _readable_rows(self, table: Table, counts: _FileCounts) -> pl.DataFrame:
        block = read_block(table, self._data)
        if block is None:
            raise NotStreamableError(table.source.name)
        self._formats.add(block.stamp_format)
        if len(self._formats) > 1 or REPEATED_HOUR in block.stamp_format:
            raise NotStreamableError(table.source.name)
        counts.rejected += _rejected(block, counts.rows)
        counts.rows += len(table.frame)
        self._left_out += block.left_out
        readable = block.frame.filter(block.reasons.is_null())
        self._readable += len(readable)
        return readable

    def _finish(self, source: InputFile, form: CsvForm, table: Table, counts: _FileCounts, n_invalid: int) -> None:
        """Locate the rejected and broken records of a file."""
        if not counts.rows:
            raise NotStreamableError(source.name)
        rows = pl.DataFrame({"row": np.zeros(counts.rows, dtype=np.uint8)})
        table = replace(table, frame=rows, broken=broken_records(source, form, rows, n_invalid))
        if counts.rejected or table.broken:
            row_records = table.row_records
            rejected = [(int(row_records[row]), reason) for row, reason in counts.rejected]
            self._rejects += located_rows(table, rejected)
        self._records[source.name] = table.n_records
        self._tables.append(replace(table, frame=pl.DataFrame()))


def is_streamable(data: Data) -> bool:
    """True if no setting of ``[data]`` makes a row depend on others."""
    depends = (data.orders, data.carry, data.cell.column, data.columns.anonymous_id)
    return not any((*depends, data.item_columns and not data.items, data.user_columns and not data.users))


def _rejected(block: EventBlock, first: int) -> list[tuple[int, str]]:
    rows = block.reasons.is_not_null().arg_true()
    records = block.records.gather(rows) + first
    return list(zip(records.to_list(), block.reasons.gather(rows).to_list(), strict=True))
