"""Rows that came after the import, from a file: read as the log was, with the columns that only a running service sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from recloop.config import Columns, Data
from recloop.data.read import OPTIONAL, REQUIRED, RawEvents, parse_events
from recloop.data.sources import find
from recloop.data.tables import Table, read_table
from recloop.records import TIMESTAMP

ALSO: Final = ("anonymous_id", "session_id", "placement", "request_id", "context")
"""Columns of an event that an import never has; here they are read under our own names."""


def read_arrivals(root: Path, file: str, data: Data) -> RawEvents:
    """The rows of a file, glob or folder in the order of their time (of one stamp: as they stand).

    Each column is looked for by its name in ``[data.columns]``, else by ours.

    Args:
        root: Where ``file`` is looked for where it is not here.

    Raises:
        UserError: as for the import: no file, no rows, no such column, stamps that cannot be told apart.
    """
    sources = find(Path() if Path(file).exists() else root, file, "FILE")
    named = {name for ours in (*REQUIRED, *OPTIONAL) for name in (ours, getattr(data.columns, ours)) if name}
    tables = [read_table(source, data.encoding, sorted(named | set(ALSO))) for source in sources]
    columns = found_columns(tables, data.columns)
    raw = parse_events(tables, data.model_copy(update={"columns": columns}), ALSO)
    return RawEvents(raw.frame.sort(TIMESTAMP, maintain_order=True), raw.rejects, raw.read, raw.info, raw.sources)


def found_columns(tables: Sequence[Table], columns: Columns) -> Columns:
    """The mapping with our own name where the files lack the mapped column and have ours."""
    held = set.intersection(*(set(table.columns) for table in tables))
    names: tuple[str, ...] = (*REQUIRED, *OPTIONAL)
    ours = {name: name for name in names if getattr(columns, name) not in held and name in held}
    return columns.model_copy(update=ours)
