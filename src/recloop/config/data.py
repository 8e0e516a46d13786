"""Table ``[data]`` of recloop.toml: files, columns and the form of their rows."""

from __future__ import annotations

import zoneinfo
from typing import Literal

import pydantic

from recloop.config.section import FILE, Section
from recloop.errors import UserError


class Columns(Section):
    """Our column name = the file's; an empty name: the file has no such column."""

    user_id: str = "user_id"
    """Column with the user's id."""
    item_id: str = "item_id"
    """Column with the item's id."""
    timestamp: str = "timestamp"
    """Column with the time of the event."""
    event_type: str = ""
    """Column with the event type; without it every row is `interaction`."""
    value: str = ""
    """Column with a number of the event, such as a rating or a price."""
    quantity: str = ""
    """Column with the number of units."""
    group_id: str = ""
    """Column with the basket, invoice or order that joins rows which happened at once; not a visit."""
    event_id: str = ""
    """Column with a unique id of the event; without it an import cannot be repeated safely."""
    anonymous_id: str = ""
    """Column with the id of a device or browser, which is known before the user logs in."""
    time_offset: str = ""
    """Column with the time of day, or the milliseconds since the date, that is added to `timestamp`."""
    name: str = ""
    """Column or template of the item's display name, such as `"{product_type}, {package_size}"`."""


class Fallback(Section):
    """Further columns of a field, for rows where the earlier ones are blank."""

    user_id: tuple[str, ...] = ()
    """Further columns with the user's id."""
    item_id: tuple[str, ...] = ()
    """Further columns with the item's id."""
    timestamp: tuple[str, ...] = ()
    """Further columns with the time of the event."""
    event_type: tuple[str, ...] = ()
    """Further columns with the event type."""
    value: tuple[str, ...] = ()
    """Further columns with the number of the event."""
    quantity: tuple[str, ...] = ()
    """Further columns with the number of units."""
    group_id: tuple[str, ...] = ()
    """Further columns with the basket, invoice or order."""


class Cell(Section):
    """A column whose cells hold several items; each item becomes one row."""

    column: str = ""
    """Column with the items; empty: every cell holds one item."""
    separator: str = " "
    """Text between two items; `"json"`: the cell is a JSON list."""
    form: Literal["id", "id-label", "count name"] = "id"
    """Form of an item: `N1`, `N1-0` (with 0 or 1: shown or clicked), or `2x Name`."""


class Data(Section):
    events: str = "log.csv"
    """File, glob or folder with the events: CSV, JSONL or Parquet, also as .gz, .zst, .bz2 or .zip."""
    items: str = ""
    """File with the catalog, or empty; its id column is named as in `data.columns.item_id`."""
    users: str = ""
    """File with attributes of users, or empty."""
    orders: str = ""
    """File with one row per order (user, time) for a log of order lines; empty: the log has both."""
    on: str = ""
    """Column that joins the log and `orders`; `"a = b"` if their names differ."""
    item_key: str = ""
    """Id column of the items file; empty: as in `data.columns.item_id`."""
    user_key: str = ""
    """Id column of the users file; empty: as in `data.columns.user_id`."""
    encoding: Literal["auto", "utf-8", "gb18030", "cp1252", "utf-16"] = "auto"
    """Text encoding of the files."""
    separator: Literal["auto", ",", ";", "\t", "|", "::", " "] = "auto"
    """Text between two fields of a line."""
    header: bool = True
    """Names of columns in the first line; `false`: the columns are named `c1`, `c2`, ..."""
    time_unit: Literal["auto", "s", "ms", "us", "ns", "days", "order", "iso"] = "auto"
    """Unit of timestamps: `"days"` of a spreadsheet; `"order"`: numbers that only order the rows; `"iso"`: dates."""
    timezone: str = "UTC"
    """Time zone of timestamps without one."""
    where: str = ""
    """Condition over the file's columns; other rows are not events and are left out."""
    carry: tuple[str, ...] = ()
    """Columns that are filled only in the first row of a `group_id`; its other rows get the same value."""
    missing_users: tuple[str, ...] = ()
    """Texts in `user_id` that mean that the user is not known, such as `"guest"`."""
    guests: Literal["baskets", "reject"] = "baskets"
    """Use of rows with a `group_id` and without a user: as baskets, or not at all."""
    id_form: str = pydantic.Field("text", pattern="^(text|integer|zeros:[0-9]+)$")
    """Form of ids at every door: as written, without `.0`, or filled with zeros to a number of digits."""
    item_columns: tuple[str, ...] = ()
    """Columns of the log that become attributes of the item."""
    user_columns: tuple[str, ...] = ()
    """Columns of the log that become attributes of the user."""
    columns: Columns = Columns()
    """Names of the columns in the files; `a.b` and `a[].b` are paths of nested JSON."""
    fallback: Fallback = Fallback()
    """Further columns of a field, for rows where the first is blank."""
    cell: Cell = Cell()
    """Column whose cells hold several items."""

    @pydantic.field_validator("timezone")
    @classmethod
    def _zone(cls, name: str) -> str:
        try:
            zoneinfo.ZoneInfo(name)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise UserError(
                "data.timezone", name, "a zone such as UTC or Europe/Berlin", f"correct data.timezone in {FILE}"
            ) from None
        return name
