"""Rows of a file for bulk ingest, read like the import plus service-only columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from recloop.config import Columns, Data
from recloop.data.read import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, RawEvents, parse_events
from recloop.data.sources import find
from recloop.data.tables import Table, read_table
from recloop.records import TIMESTAMP

EXTRA_COLUMNS: Final = ("anonymous_id", "session_id", "placement", "request_id", "context")
"""Event columns that an import does not have, read under recloop's names."""


def read_arrivals(root: Path, file: str, data: Data) -> RawEvents:
    """Read the rows of a file, glob or folder, sorted by time (ties in file order).

    Each column is found by its name in ``[data.columns]``, otherwise by recloop's name.

    Args:
        root: Folder to search if ``file`` does not exist in the current folder.

    Raises:
        UserError: as for the import: missing file, rows or column, or ambiguous timestamps.
    """
    sources = find(Path() if Path(file).exists() else root, file, "FILE")
    names = {
        name
        for column in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
        for name in (column, getattr(data.columns, column))
        if name
    }
    tables = [read_table(source, data, sorted(names | set(EXTRA_COLUMNS))) for source in sources]
    columns = found_columns(tables, data.columns)
    raw = parse_events(tables, data.model_copy(update={"columns": columns}), EXTRA_COLUMNS)
    return RawEvents(raw.frame.sort(TIMESTAMP, maintain_order=True), raw.rejects, raw.read, raw.info, raw.sources)


def found_columns(tables: Sequence[Table], columns: Columns) -> Columns:
    """Replace mapped columns that the files lack by recloop's columns that they have."""
    shared = set.intersection(*(set(table.columns) for table in tables))
    names: tuple[str, ...] = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    replacements = {name: name for name in names if getattr(columns, name) not in shared and name in shared}
    return columns.model_copy(update=replacements)
