"""Read the files of `init`: log, orders, items and users, with all their columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from recloop.config import Data
from recloop.data.csv.dialect import looks_headless
from recloop.data.entities import read_rows
from recloop.data.sources import InputFile, find
from recloop.data.tables import Table, read_table, sample_table
from recloop.errors import UserError
from recloop.init.features import Side
from recloop.init.log_input import LogInput

SAMPLE_ROWS: Final = 100_000
"""Rows of the log that `init` reads, from the beginning and the middle of its files."""
MIN_FILE_ROWS: Final = 2_000


def read_input(folder: Path, files: Sequence[str], ask: bool, accept: bool, chosen: Mapping[str, str]) -> LogInput:
    """Read the files of a log.

    Args:
        files: Log, items, users and orders; "" for a file that is not given.
        chosen: Columns by field that are not guessed.

    Raises:
        UserError: a file is missing or cannot be read.
    """
    events, items, users, orders = (
        _path(folder, text, key) for text, key in zip(files, ("FILE", "--items", "--users", "--orders"), strict=True)
    )
    sources = find(folder, events, "FILE")
    headless = all(source.kind == "csv" and looks_headless(source) for source in sources)
    data = Data(events=events, items=items, users=users, orders=orders, header=not headless)
    rows_per_file = max(MIN_FILE_ROWS, SAMPLE_ROWS // len(sources))
    tables = [sample_table(source, data, rows_per_file) for source in sources]
    return LogInput(
        tables=tables,
        orders=_tables(folder, orders, "--orders", data) if orders else [],
        items=_side(folder, items, "--items", data),
        users=_side(folder, users, "--users", data),
        read_settings=data,
        ask=ask,
        accept=accept,
        chosen=chosen,
        sampled=any(_is_sample(table, rows_per_file) for table in tables),
    )


def _is_sample(table: Table, rows: int) -> bool:
    """True if a table holds a part of its file."""
    source = table.source
    if table.is_part:
        return True
    if source.sample_bytes and source.packing is None:
        return source.n_bytes > source.sample_bytes
    return table.n_records >= 0.9 * rows


def _path(folder: Path, text: str, key: str) -> str:
    """Path for recloop.toml in ``folder``.

    A path that is valid from there stays as given; any other becomes absolute.
    """
    if not text or Path(text).is_absolute():
        return text
    try:
        find(folder, text, key)
    except UserError:
        local_path = Path.cwd() / text
        if local_path.exists():
            return local_path.as_posix()
    return text


def _tables(folder: Path, text: str, key: str, data: Data) -> list[Table]:
    return [read_table(source, data) for source in find(folder, text, key)]


def _side(folder: Path, text: str, key: str, data: Data) -> Side | None:
    if not text:
        return None
    sources: list[InputFile] = find(folder, text, key)
    table, rows = read_rows(sources[0], data)
    for source in sources[1:]:
        rows += read_rows(source, data)[1]
    return table, rows
