"""Readers of a project's items and users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from recloop.config import Data, Field
from recloop.data.attributes import attribute_texts, typed_columns, typed_rows
from recloop.data.limits import INVALID_ID, attribute_excess, is_invalid_id
from recloop.data.log_catalog import entity_table
from recloop.data.read import RawEvents, as_ids, no_such_column, parse_events, read_log, read_orders, rejected_rows_of
from recloop.data.rejected_rows import RejectedRow
from recloop.data.shape import shape_log
from recloop.data.sources import InputFile, find
from recloop.data.tables import Table, read_objects, read_table
from recloop.errors import UserError
from recloop.features.id_form import form_ids
from recloop.files import JsonTree
from recloop.project import Project
from recloop.records import ITEM_ID, ITEM_SCHEMA, RECEIVED_AT, SEQ, USER_ID, USER_SCHEMA


@dataclass(frozen=True)
class EntityTable:
    """Items or users as read, in file order.

    ``frame`` has ITEM_SCHEMA or USER_SCHEMA with seq 0.
    """

    frame: pl.DataFrame
    rejects: list[RejectedRow]
    sources: tuple[InputFile, ...]


def read_project(project: Project) -> tuple[RawEvents, EntityTable | None, EntityTable | None]:
    """Read the events, items and users of a project; the log is read once.

    Raises:
        UserError: as `recloop.data.read.read_events`.
    """
    data = project.config.data
    tables = read_log(project, [*data.item_columns, *data.user_columns])
    orders = read_orders(project)
    raw = parse_events(tables, data, orders=orders)
    return raw, _items(project, tables, orders), _users(project, tables, orders)


def read_items(project: Project) -> EntityTable | None:
    """Read the items from their files, or from columns of the log.

    None if neither ``data.items`` nor ``data.item_columns`` is configured.
    """
    data = project.config.data
    tables = read_log(project, data.item_columns) if data.item_columns and not data.items else []
    return _items(project, tables, read_orders(project))


def read_users(project: Project) -> EntityTable | None:
    """Read the users from their files, or from columns of the log.

    None if neither ``data.users`` nor ``data.user_columns`` is configured.
    """
    data = project.config.data
    tables = read_log(project, data.user_columns) if data.user_columns and not data.users else []
    return _users(project, tables, read_orders(project))


def _items(project: Project, tables: Sequence[Table], orders: Sequence[Table]) -> EntityTable | None:
    data = project.config.data
    if not data.items and data.item_columns:
        return _from_log(project, shape_log(tables, data, orders).tables, ITEM_ID, data.item_columns)
    return _read_entities(project, data.items, "data.items", ITEM_ID, data.item_key or data.columns.item_id)


def _users(project: Project, tables: Sequence[Table], orders: Sequence[Table]) -> EntityTable | None:
    data = project.config.data
    if not data.users and data.user_columns:
        return _from_log(project, shape_log(tables, data, orders).tables, USER_ID, data.user_columns)
    return _read_entities(project, data.users, "data.users", USER_ID, data.user_key or data.columns.user_id)


def _read_entities(project: Project, text: str, key: str, id_column: str, name: str) -> EntityTable | None:
    if not text:
        return None
    return read_sources(project, find(project.sources, text, key), key, id_column, name)


def read_sources(
    project: Project, sources: Sequence[InputFile], key: str, id_column: str, name: str, id_key: str = ""
) -> EntityTable:
    """Read items or users from files.

    Args:
        key: Setting or argument that names the files, for errors.
        name: Column of the files that has the id.
        id_key: Setting or argument that names this column; empty: ``data.columns``.

    Raises:
        UserError: a file cannot be read or has no such column, or no row has an id.
    """
    frames, rejects = [], []
    for source in sources:
        table, rows = read_rows(source, project.config.data)
        if name not in table.columns:
            no_such_column(table, id_key or f"data.columns.{id_column}", name)
        ids = as_ids(table.frame[name], table, id_column)
        ids = pl.select(form_ids(pl.lit(ids), project.config.data.id_form)).to_series()
        reasons = _reasons(ids, rows, name, id_column)
        rejects += rejected_rows_of(table, reasons)
        ids = pl.select(pl.when(reasons.is_null()).then(ids)).to_series()
        frames.append(
            pl.DataFrame(
                {id_column: ids, "attributes": attribute_texts(rows, name, _fields(project, id_column))},
                schema_overrides={"attributes": pl.String},
            )
        )
    frame = pl.concat(frames)
    if not len(frame.drop_nulls(id_column)):
        names = ", ".join(source.name for source in sources)
        raise UserError(key, names, f"rows with a {name}, found none", sources[0].use_of_new)
    return EntityTable(_versions(frame, id_column), rejects, tuple(sources))


def _from_log(project: Project, tables: Sequence[Table], id_column: str, names: Sequence[str]) -> EntityTable | None:
    """Attributes that are columns of the log, with the newest value of each id."""
    key = getattr(project.config.data.columns, id_column)
    table = entity_table(tables, key, names)
    rows = typed_rows(table)
    ids = as_ids(table.frame[key], table, id_column)
    ids = pl.select(pl.when(~is_invalid_id(ids)).then(ids)).to_series()  # the log's own reader names these rows
    frame = pl.DataFrame(
        {
            id_column: ids,
            "attributes": pl.Series(attribute_texts(rows, key, _fields(project, id_column)), dtype=pl.String),
        }
    )
    return EntityTable(_versions(frame, id_column), [], ()) if len(frame) else None


def _reasons(ids: pl.Series, rows: Sequence[JsonTree], name: str, id_column: str) -> pl.Series:
    """(n,) reject reason or null of the rows of a file.

    Args:
        name: Name of the id in the rows.
    """
    excess = [
        attribute_excess({key: True for key, value in row.items() if key != name and value not in (None, "")})
        for row in rows
    ]
    return pl.select(
        pl.when(ids.is_null())
        .then(pl.lit(f"no {id_column}"))
        .when(is_invalid_id(ids))
        .then(pl.lit(f"{id_column}: {INVALID_ID}"))
        .otherwise(pl.Series([reason or None for reason in excess], dtype=pl.String))
    ).to_series()


def _fields(project: Project, id_column: str) -> Mapping[str, Field]:
    features = project.config.features
    return features.item if id_column == ITEM_ID else features.user


def _versions(frame: pl.DataFrame, id_column: str) -> pl.DataFrame:
    """First versions of items or users, without rows that have no id.

    They have stamp 0 instead of an arrival time, so that equal files give equal bytes.
    """
    schema = ITEM_SCHEMA if id_column == ITEM_ID else USER_SCHEMA
    fixed = {
        SEQ: pl.lit(0, pl.Int64),
        RECEIVED_AT: pl.lit(0, pl.Int64),
        "hidden": pl.lit(False),
        "deleted": pl.lit(False),
    }
    columns = {column: value for column, value in fixed.items() if column in schema}
    return frame.drop_nulls(id_column).with_columns(**columns).select(*schema)


def read_rows(source: InputFile, data: Data) -> tuple[Table, list[JsonTree]]:
    """Read a file with every row as an object of typed values."""
    if source.kind == "csv":
        table = read_table(source, data)
        return table, typed_columns(table).to_dicts()
    return read_objects(source, data)
