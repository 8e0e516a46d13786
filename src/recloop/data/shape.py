"""Shape of a log: the records of its files become rows of one event each.

The settings of ``[data]`` are applied in this order: ``orders`` are joined, ``carry`` fills the rows of an order,
``fallback`` fills blank cells, ids get their form, ``cell`` expands cells, ``where`` leaves rows out. A file without these
settings is unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from recloop.config import Columns, Data
from recloop.data.tables import Table
from recloop.errors import UserError
from recloop.features import conditions
from recloop.features.id_form import form_ids
from recloop.records import EVENT_TYPE, GROUP_ID, ITEM_ID, QUANTITY, TIMESTAMP, USER_ID, VALUE

COUNT_COLUMN: Final = "count"
"""Column with the number of units that ``data.cell`` reads from ``2x Name``."""
LABEL_COLUMN: Final = "label"
"""Column with the 0 or 1 that ``data.cell`` reads from ``N1-0``."""
ORDERS_PREFIX: Final = "orders."
"""Prefix of a column of ``data.orders`` whose name the log has too."""
MISSING_GROUPS: Final = ("", "(not set)", "NULL", "null", "\\N", "NA", "N/A", "nan", "none", "None", "undefined")
"""Texts of a ``group_id`` that mean that the row belongs to no group."""
ITEM_MARK: Final = "\x1f"  # separates items inside a cell of the form `2x Name, 1x Name`
FALLBACK_FIELDS: Final = (USER_ID, ITEM_ID, TIMESTAMP, EVENT_TYPE, VALUE, QUANTITY, GROUP_ID)


@dataclass(frozen=True)
class ShapedLog:
    """Tables with one row per event, and the number of rows left out by file name."""

    tables: list[Table]
    left_out: dict[str, int]


def field_columns(columns: Columns) -> dict[str, str]:
    """Configured column by field of an event, without those that the log lacks."""
    return {field: name for field, name in columns.model_dump().items() if name and field != "name"}


def input_columns(data: Data) -> list[str]:
    """Columns to read from the files of ``data.events`` and ``data.orders``."""
    names = [*field_columns(data.columns).values(), *data.carry]
    for field in FALLBACK_FIELDS:
        names += getattr(data.fallback, field)
    if data.where:
        names += sorted(conditions.field_names(data.where, "data.where"))
    if data.cell.column:
        names.append(data.cell.column)
        names = [name for name in names if name not in (COUNT_COLUMN, LABEL_COLUMN)]
    if data.orders:
        names += join_columns(data.on)
        names += [name.removeprefix(ORDERS_PREFIX) for name in names]
    return list(dict.fromkeys(names))


def join_columns(on: str) -> tuple[str, str]:
    """Names of the join column in the log and in the orders: ``"a = b"`` or ``"a"``."""
    left, _, right = (part.strip() for part in on.partition("="))
    return left, right or left


def shape_log(
    tables: Sequence[Table], data: Data, orders: Sequence[Table] = (), since: Mapping[str, int] | None = None
) -> ShapedLog:
    """Apply the settings of ``[data]`` to tables; all tables get the same columns.

    Args:
        since: Records by file name that ``left_out`` does not count, because they were read before.

    Raises:
        UserError: ``data.on`` names no column of both files, or a condition names an unknown column.
    """
    tables = _same_columns(tables)
    if data.orders and orders:
        order_rows = pl.concat([table.frame for table in _same_columns(orders)], how="diagonal_relaxed")
        tables = [_joined(table, order_rows, data, orders[0]) for table in tables]
    shaped = []
    left_out = {}
    for table in tables:
        frame = _filled(table.frame, data)
        records = table.row_records
        if data.cell.column and data.cell.column in frame.columns:
            frame, records = _expanded(frame, records, data)
        if table.records is not None or data.cell.column:
            frame = _unique_event_ids(frame, records, data.columns.event_id)
        if data.where:
            passes = conditions.parse(data.where, frame.columns, "data.where").mask(_blank_to_null(frame))
            is_new = records >= (since or {}).get(table.source.name, 0)
            left_out[table.source.name] = int((is_new & ~passes).sum())
            frame, records = frame.filter(passes), records.filter(passes)
        has_rows_changed = table.records is not None or bool(data.cell.column or data.where)
        shaped.append(replace(table, frame=frame, records=records if has_rows_changed else None))
    return ShapedLog(_with_identities(shaped, data), left_out)


def _same_columns(tables: Sequence[Table]) -> list[Table]:
    """Add the columns that some files lack, as null."""
    names = list(dict.fromkeys(name for table in tables for name in table.frame.columns))
    return [
        table
        if len(names) == len(table.frame.columns)
        else replace(
            table,
            frame=table.frame.with_columns(
                pl.lit(None, pl.String).alias(name) for name in names if name not in table.frame.columns
            ),
        )
        for table in tables
    ]


# -- orders


def join_orders(lines: pl.DataFrame, orders: pl.DataFrame, on: str) -> pl.DataFrame:
    """Join order lines with their orders.

    ``found`` is false in a row without an order.

    A column of the orders whose name the lines have too gets the prefix `ORDERS_PREFIX`.
    """
    left, right = join_columns(on)
    clashing = {name: ORDERS_PREFIX + name for name in orders.columns if name in lines.columns and name != right}
    named = orders.rename(clashing).with_columns(pl.col(right).cast(pl.String).alias("\0key"))
    named = named.unique("\0key", keep="first", maintain_order=True).with_columns(pl.lit(value=True).alias("found"))
    named = named.drop(right) if right in lines.columns else named
    joined = lines.with_columns(pl.col(left).cast(pl.String).alias("\0key")).join(
        named, on="\0key", how="left", maintain_order="left"
    )
    return joined.with_columns(pl.col("found").fill_null(value=False)).drop("\0key")


def _joined(table: Table, orders: pl.DataFrame, data: Data, source: Table) -> Table:
    left, right = join_columns(data.on)
    for name, columns, file in ((left, table.columns, table.source.name), (right, orders.columns, source.source.name)):
        if name not in columns:
            expected = f"a column that joins {table.source.name} and {source.source.name}; {file} has {', '.join(columns[:20])}"
            raise UserError("data.on", data.on, expected, 'on = "column of the log = column of the orders"')
    joined = join_orders(table.frame, orders, data.on)
    records = table.row_records
    lost = records.filter(~joined["found"])
    keys = joined.filter(~pl.col("found"))[left].cast(pl.String)
    reasons = {
        int(record): f"no row of {source.source.name} with {right} {key}"
        for record, key in zip(lost, keys, strict=True)
    }
    return replace(
        table,
        frame=joined.filter("found").drop("found"),
        records=records.filter(joined["found"]),
        broken={**table.broken, **reasons},
        columns=(*table.columns, *(name for name in joined.columns if name not in table.columns and name != "found")),
    )


# -- cells


def _filled(frame: pl.DataFrame, data: Data) -> pl.DataFrame:
    """Carry order fields down, fill blank cells, and give ids their form."""
    group = data.columns.group_id
    if data.carry and group in frame.columns:
        frame = carry_down(frame, group, [name for name in data.carry if name in frame.columns])
    for field in (USER_ID, ITEM_ID):
        name = getattr(data.columns, field)
        if name in frame.columns and frame.schema[name] == pl.String:
            missing = list(data.missing_users) if field == USER_ID else []
            ids = [
                form_ids(_not_blank(column), data.id_form)
                for column in (name, *getattr(data.fallback, field))
                if column in frame.columns and frame.schema[column] == pl.String
            ]
            frame = frame.with_columns(
                pl.coalesce(pl.when(~value.is_in(missing)).then(value) if missing else value for value in ids).alias(
                    name
                )
            )
    if group in frame.columns and frame.schema[group] == pl.String:
        frame = frame.with_columns(
            pl.when(~pl.col(group).str.strip_chars().is_in(MISSING_GROUPS)).then(pl.col(group)).alias(group)
        )
    for field in FALLBACK_FIELDS[2:]:
        name = getattr(data.columns, field)
        others = [other for other in getattr(data.fallback, field) if other in frame.columns]
        if name in frame.columns and others:
            frame = frame.with_columns(pl.coalesce(_not_blank(column) for column in (name, *others)).alias(name))
    return frame


def carry_down(frame: pl.DataFrame, group: str, names: Sequence[str]) -> pl.DataFrame:
    """Fill blank cells with the first value of the column in the same group."""
    return frame.with_columns(
        pl.coalesce(_not_blank(name), _not_blank(name).drop_nulls().first().over(group)).alias(name) for name in names
    )


def _not_blank(name: str) -> pl.Expr:
    """Column with blank texts as null; other types unchanged."""
    column = pl.col(name)
    return pl.when(column.cast(pl.String).str.strip_chars() != "").then(column)


def _blank_to_null(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(
        pl.when(pl.col(name).str.strip_chars() != "").then(pl.col(name)).alias(name)
        for name, kind in frame.schema.items()
        if kind == pl.String
    )


def _expanded(frame: pl.DataFrame, records: pl.Series, data: Data) -> tuple[pl.DataFrame, pl.Series]:
    """Rows of one item each for cells that hold several."""
    frame = expand_cells(frame.with_columns(records.alias("\0record")), data)
    return frame.drop("\0record"), frame["\0record"]


def expand_cells(frame: pl.DataFrame, data: Data) -> pl.DataFrame:
    """Expand the cells of ``data.cell.column``; a blank cell stays one row."""
    cell = data.cell
    text = pl.col(cell.column).str.strip_chars()
    if cell.form == "count name":
        marked = text.str.replace_all(r",\s*(\d+(?:[.,]\d+)?\s*[x×*]\s)", ITEM_MARK + "${1}")
        parts = marked.str.split(ITEM_MARK)
    elif cell.separator == "json":
        parts = text.str.strip_chars("[]").str.replace_all("[\"']", "").str.split(",")
    elif cell.separator == " ":
        parts = text.str.replace_all(r"\s+", " ").str.split(" ")
    else:
        parts = text.str.split(cell.separator)
    frame = frame.with_columns(parts.alias(cell.column)).explode(cell.column)
    item = pl.col(cell.column).str.strip_chars()
    if cell.form == "id-label":
        label = item.str.extract(r"-([01])$")
        return frame.with_columns(
            pl.when(label.is_not_null()).then(item.str.replace(r"-[01]$", "")).otherwise(item).alias(cell.column),
            label.alias(LABEL_COLUMN),
        )
    if cell.form == "count name":
        pattern = r"^(\d+(?:[.,]\d+)?)\s*[x×*]\s+"
        return frame.with_columns(
            item.str.replace(pattern, "").alias(cell.column), item.str.extract(pattern).alias(COUNT_COLUMN)
        )
    return frame.with_columns(item.alias(cell.column))


def _unique_event_ids(frame: pl.DataFrame, records: pl.Series, name: str) -> pl.DataFrame:
    """Number the event_ids of rows that come from one record: the second is ``id#1``."""
    if name not in frame.columns or not records.is_duplicated().any():
        return frame
    number = pl.int_range(pl.len(), dtype=pl.Int64).over("\0record")
    suffix = pl.when(number > 0).then(pl.format("#{}", number)).otherwise(pl.lit(""))
    return (
        frame.with_columns(records.alias("\0record"))
        .with_columns((pl.col(name).cast(pl.String) + suffix).alias(name))
        .drop("\0record")
    )


# -- logins


def _with_identities(tables: list[Table], data: Data) -> list[Table]:
    """Give the rows of an anonymous id the user id that the log names for it.

    An anonymous id with several users is left as it is. Without a user id, the anonymous id is the user.
    """
    user, anonymous = data.columns.user_id, data.columns.anonymous_id
    if not anonymous or not all({user, anonymous} <= set(table.frame.columns) for table in tables):
        return tables
    pairs = pl.concat([table.frame.select(anonymous, user) for table in tables], how="vertical_relaxed")
    pairs = pairs.filter((_not_blank(user).is_not_null()) & (_not_blank(anonymous).is_not_null())).unique()
    owners = pairs.filter(~pl.col(anonymous).is_duplicated()).rename({user: "\0owner"})
    named = []
    for table in tables:
        frame = table.frame.join(owners, on=anonymous, how="left", maintain_order="left")
        owner = pl.coalesce(_not_blank(user), pl.col("\0owner"), _not_blank(anonymous))
        named.append(replace(table, frame=frame.with_columns(owner.alias(user)).drop("\0owner")))
    return named
