"""In-memory logs: convert data frames to tables, settings and catalog rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl
import pyarrow as pa
from polars import selectors

from recloop.config import Config, Data
from recloop.data.attributes import attribute_texts
from recloop.data.read import OPTIONAL_COLUMNS, as_ids
from recloop.data.sources import InputFile
from recloop.data.tables import Table
from recloop.errors import UserError
from recloop.features.id_form import form_ids
from recloop.records import SEQ
from recloop.settings import build


def as_polars(frame: Any, name: str = "events") -> pl.DataFrame:
    """Convert an eager data frame to Polars; categories become texts.

    Args:
        name: The argument, for messages.

    Raises:
        UserError: the object is not a data frame, has two columns of one name, or a column of mixed or foreign types.
    """
    try:
        eager = nw.from_native(frame, eager_only=True)
    except TypeError:
        expected = "a data frame of pandas, Polars or Arrow"
        fix = f"{name}.collect()" if isinstance(frame, pl.LazyFrame) else f"{name}=polars.read_csv(FILE)"
        raise UserError(name, type(frame).__name__, expected, fix) from None
    except nw.exceptions.DuplicateError as error:
        raise UserError(
            name, " ".join(str(error).split()), "columns with different names", "rename one of them"
        ) from None
    columns = eager.columns
    repeated = next((column for column in columns if columns.count(column) > 1), None)
    if repeated is not None:
        raise UserError(name, repeated, "columns with different names", "rename one of them")
    try:
        polars_frame: pl.DataFrame = eager.to_polars()
    except (pa.ArrowException, pl.exceptions.PolarsError, TypeError):
        _refuse_mixed_column(eager, name)
        raise
    plain = (
        selectors.numeric() | selectors.temporal() | selectors.string(include_categorical=True) | selectors.boolean()
    )
    plain |= selectors.nested() | selectors.binary() | selectors.by_dtype(pl.Null, pl.Enum)
    for column in polars_frame.select(~plain).columns:
        expected = f"texts, numbers, dates or lists, not {polars_frame.schema[column]}"
        raise UserError(name, column, expected, f'{name}["{column}"] = {name}["{column}"].astype(str)')
    return polars_frame.with_columns(
        selectors.by_dtype(pl.Categorical, pl.Enum).cast(pl.String), selectors.float().fill_nan(None)
    )


def _refuse_mixed_column(eager: nw.DataFrame[Any], name: str) -> None:
    for column in eager.columns:
        try:
            eager.select(column).to_polars()
        except (pa.ArrowException, pl.exceptions.PolarsError, TypeError):
            expected = "one type in a column; this one mixes texts, numbers or objects"
            raise UserError(name, column, expected, f'{name}["{column}"] = {name}["{column}"].astype(str)') from None


def config_for(frame: pl.DataFrame, config: Mapping[str, Any]) -> Config:
    """Configuration with the optional columns that the frame has under our names."""
    tree = {name: dict(value) if isinstance(value, Mapping) else value for name, value in config.items()}
    data = dict(tree.get("data", {}))
    columns = dict(data.get("columns", {}))
    for name in OPTIONAL_COLUMNS:
        if name in frame.columns:
            columns.setdefault(name, name)
    data["columns"] = columns
    return build({**tree, "data": data}, (), {})


def data_of(data: Data, frame: pl.DataFrame) -> Data:
    """``[data]`` for further rows: optional columns that the frame lacks are not read."""
    lacking = [name for name in OPTIONAL_COLUMNS if getattr(data.columns, name) not in frame.columns]
    return data.model_copy(update={"columns": data.columns.model_copy(update=dict.fromkeys(lacking, ""))})


def frame_as_table(frame: pl.DataFrame, name: str) -> Table:
    """Wrap a frame as the table of a file of this name."""
    source = InputFile(name, Path(name), name)
    return Table(source, "parquet", "", "", tuple(frame.columns), frame, {})


def objects(rows: pl.DataFrame | None, key: str, column: str, first: int, form: str = "text") -> pl.DataFrame | None:
    """Versions of items or users; every column but the id becomes an attribute.

    Args:
        key: ``item_id`` or ``user_id``. column: The id column of the frame.
        first: The last seq already assigned. form: ``data.id_form``.
    """
    if rows is None:
        return None
    ids = as_ids(rows[column], frame_as_table(rows, key), key)
    attributes = pl.Series(attribute_texts(rows.to_dicts(), column), dtype=pl.String)
    seqs = pl.int_range(first + 1, first + 1 + len(rows), dtype=pl.Int64, eager=True)
    versions = pl.DataFrame({key: ids, SEQ: seqs, "attributes": attributes}).with_columns(
        form_ids(pl.col(key), form).alias(key),
        pl.lit(value=False).alias("hidden"),
        pl.lit(value=False).alias("deleted"),
    )
    return versions.drop_nulls(key)
