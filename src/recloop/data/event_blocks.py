"""Streaming reader of a log in blocks of events.

A log is read in blocks if its rows can be read independently of each other: plain text tables, JSON and flat Parquet files with
stamps of one frequent form, without joined orders, carried fields, cells of several items, anonymous ids or attributes in the log. Any other log
is read whole (`recloop.data.read`), with equal results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import polars as pl

from recloop.config import Data
from recloop.data.csv.table import CsvBlocks, broken_records, find_form
from recloop.data.encoding import encoding_of
from recloop.data.json.table import json_blocks
from recloop.data.read import RAW_SCHEMA, EventBlock, RawEvents, located_rows, log_info, read_block
from recloop.data.rejected_rows import RejectedRow
from recloop.data.shape import input_columns
from recloop.data.sources import InputFile
from recloop.data.tables import Table, json_table, parquet_blocks
from recloop.errors import UserError

REPEATED_HOUR: Final = "("
"""Mark of a stamp format with counts, which differ between blocks."""


class NotStreamableError(Exception):
    """The log must be read whole: rows depend on others, or an error needs all."""


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
        if source.kind == "parquet":
            return self._of_parquet(source)
        return self._of_csv(source) if source.kind == "csv" else self._of_json(source)

    def _of_json(self, source: InputFile) -> Iterator[pl.DataFrame]:
        encoding = encoding_of(source, self._data.encoding)
        table: Table | None = None
        rejected: list[tuple[int, str]] = []
        n_records = 0
        for rows in json_blocks(source, encoding, self._names):
            table = json_table(source, encoding, rows)
            block = self._parsed(table)
            reasons = [*_rejected(block), *rows.broken.items()]
            rejected += [(record + n_records, reason) for record, reason in reasons]
            n_records += table.n_records
            yield self._readable_rows(block)
        if table is None:
            raise NotStreamableError(source.name)
        if rejected:
            self._rejects += located_rows(replace(table, broken={}), rejected)
        self._finish(table, n_records)

    def _of_csv(self, source: InputFile) -> Iterator[pl.DataFrame]:
        form = find_form(source, self._data, self._names)
        if not form.is_plain:
            raise NotStreamableError(source.name)
        table = Table(
            source, "csv", form.scan.encoding, form.dialect.separator, tuple(form.columns), pl.DataFrame(), {},
            dialect=form.dialect,
        )  # fmt: skip
        rejected: list[tuple[int, str]] = []
        blocks = CsvBlocks(source, form)
        n_rows = 0
        for frame in blocks:
            block = self._parsed(replace(table, frame=frame))
            rejected += [(row + n_rows, reason) for row, reason in _rejected(block)]
            n_rows += len(frame)
            yield self._readable_rows(block)
        if not n_rows:
            raise NotStreamableError(source.name)
        rows = pl.DataFrame({"row": np.zeros(n_rows, dtype=np.uint8)})
        table = replace(table, frame=rows, broken=broken_records(source, form, rows, blocks.n_invalid))
        if rejected or table.broken:
            records = table.row_records
            self._rejects += located_rows(table, [(int(records[row]), reason) for row, reason in rejected])
        self._finish(table, table.n_records)

    def _of_parquet(self, source: InputFile) -> Iterator[pl.DataFrame]:
        blocks = parquet_blocks(source, self._names)
        if blocks is None:
            raise NotStreamableError(source.name)
        table: Table | None = None
        n_rows = 0
        for table in blocks:
            block = self._parsed(table)
            rows = located_rows(block.table, _rejected(block))
            self._rejects += [replace(row, line=row.line + n_rows) for row in rows]
            n_rows += len(table.frame)
            yield self._readable_rows(block)
        if table is None:
            raise NotStreamableError(source.name)
        self._finish(table, n_rows)

    def _parsed(self, table: Table) -> EventBlock:
        block = read_block(table, self._data)
        if block is None:
            raise NotStreamableError(table.source.name)
        self._formats.add(block.stamp_format)
        if len(self._formats) > 1 or REPEATED_HOUR in block.stamp_format:
            raise NotStreamableError(table.source.name)
        return block

    def _readable_rows(self, block: EventBlock) -> pl.DataFrame:
        self._left_out += block.left_out
        readable = block.frame.filter(block.reasons.is_null())
        self._readable += len(readable)
        return readable

    def _finish(self, table: Table, n_records: int) -> None:
        self._records[table.source.name] = n_records
        self._tables.append(replace(table, frame=pl.DataFrame()))


def is_streamable(data: Data) -> bool:
    """True if no setting of ``[data]`` makes a row depend on others."""
    depends = (data.orders, data.carry, data.cell.column, data.columns.anonymous_id)
    return not any((*depends, data.item_columns and not data.items, data.user_columns and not data.users))


def _rejected(block: EventBlock) -> list[tuple[int, str]]:
    """Record in the block and reason of each rejected row."""
    rows = block.reasons.is_not_null().arg_true()
    records = block.table.row_records.gather(rows)
    return list(zip(records.to_list(), block.reasons.gather(rows).to_list(), strict=True))
