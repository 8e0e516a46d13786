"""In-memory logs: convert data frames to tables, settings and catalog rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl

from recloop.config import Config, Data
from recloop.data.attributes import attribute_texts
from recloop.data.read import OPTIONAL_COLUMNS, as_ids
from recloop.data.sources import InputFile
from recloop.data.tables import Table
from recloop.errors import UserError
from recloop.files import JsonTree
from recloop.records import SEQ
from recloop.settings import build


def as_polars(frame: Any) -> pl.DataFrame:
    """Convert an eager data frame to Polars.

    Raises:
        UserError: the object is not a data frame.
    """
    try:
        polars_frame: pl.DataFrame = nw.from_native(frame, eager_only=True).to_polars()
    except TypeError:
        expected = "a data frame of pandas, Polars or Arrow"
        raise UserError("events", type(frame).__name__, expected, "recloop.fit(polars.read_csv(FILE))") from None
    return polars_frame


def config_for(frame: pl.DataFrame, config: Mapping[str, Any]) -> Config:
    """Configuration with the optional columns that the frame has."""
    tree = {name: dict(value) if isinstance(value, Mapping) else value for name, value in config.items()}
    data = dict(tree.get("data", {}))
    columns = dict(data.get("columns", {}))
    for name in OPTIONAL_COLUMNS:
        if name in frame.columns:
            columns.setdefault(name, name)
    data["columns"] = columns
    return build({**tree, "data": data}, (), {})


def named(data: Data, frame: pl.DataFrame) -> JsonTree:
    """Configured columns without the optional ones that the frame lacks."""
    columns = {
        field: column
        for field, column in data.columns.model_dump().items()
        if column and (field not in OPTIONAL_COLUMNS or column in frame.columns)
    }
    return {"columns": columns, "timezone": data.timezone, "time_unit": data.time_unit}


def frame_as_table(frame: pl.DataFrame, name: str) -> Table:
    """Wrap a frame as the table of a file of this name."""
    source = InputFile(name, Path(name), name)
    return Table(source, "parquet", "", "", tuple(frame.columns), frame, {})


def objects(frame: Any, key: str, first: int) -> pl.DataFrame | None:
    """Versions of items or users; every column but the id becomes an attribute."""
    if frame is None:
        return None
    rows = as_polars(frame)
    if key not in rows.columns:
        raise UserError(
            "column", key, f"one of the frame's columns ({', '.join(rows.columns)})", f"rename the id column to {key}"
        )
    ids = as_ids(rows[key], frame_as_table(rows, key), key)
    attributes = pl.Series(attribute_texts(rows.to_dicts(), key), dtype=pl.String)
    seqs = pl.int_range(first + 1, first + 1 + len(rows), dtype=pl.Int64, eager=True)
    return pl.DataFrame({key: ids, SEQ: seqs, "attributes": attributes}).with_columns(
        pl.lit(value=False).alias("hidden"), pl.lit(value=False).alias("deleted")
    )
