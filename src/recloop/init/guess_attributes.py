"""Guess the attributes of items and users that are columns of the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import polars as pl

from recloop.config import Data
from recloop.data.attributes import typed_rows
from recloop.data.log_catalog import entity_table
from recloop.data.shape import COUNT_COLUMN, LABEL_COLUMN, shape_log
from recloop.init import layout
from recloop.init.columns import is_blank
from recloop.init.features import Side
from recloop.init.log_input import Guesses, LogInput
from recloop.init.names import FUTURE_WORDS, TITLE_NAMES, leaf, normalize_name, words_of

PRIVATE_WORDS: Final = frozenset(
    ("email", "mail", "name", "phone", "street", "address", "address1", "address2", "city", "zip", "company", "ip", "login", "birthday", "notes", "note")
)  # fmt: skip
"""Words of columns that identify a person; they never become attributes."""
ROW_WORDS: Final = frozenset(
    ("id", "no", "number", "uuid", "session", "row", "line", "date", "time", "at", "timestamp", "status", "quantity", "qty")
)  # fmt: skip
"""Words of columns that describe a row; they never become attributes of an item."""


def guess_attributes(
    log: LogInput, data: Data, frame: pl.DataFrame, guesses: Guesses
) -> tuple[Data, Side | None, Side | None]:
    """``data.item_columns`` and ``data.user_columns``, with the sides that they give."""
    columns = data.columns
    used = {name for name in columns.model_dump().values() if name} | {
        name for names in data.fallback.model_dump().values() for name in names
    }
    free = [name for name in frame.columns if name not in used | {LABEL_COLUMN, COUNT_COLUMN}]
    items, users = log.items, log.users
    parents = {name.rpartition(".")[0] for name in (columns.item_id, *data.fallback.item_id)}
    beside = [name for name in free if name.rpartition(".")[0] in parents]  # in JSON: keys of the same object
    titles = [name for name in [*data.fallback.item_id, *beside] if normalize_name(leaf(name)) in TITLE_NAMES]
    of_user = layout.attributes_of(
        frame,
        columns.user_id,
        [
            n
            for n in free
            if not set(words_of(leaf(n))) & (PRIVATE_WORDS | ROW_WORDS) and (n not in beside or "." not in n)
        ],
        columns.timestamp,
    )
    candidates = [
        name for name in beside if not set(words_of(leaf(name))) & (ROW_WORDS - {"id"}) and name not in titles
    ]
    future = [name for name in candidates if set(words_of(leaf(name))) & FUTURE_WORDS]
    of_item = layout.attributes_of(
        frame, columns.item_id, [n for n in candidates if n not in future], columns.timestamp
    )
    if future:
        guesses.say("not used", future, "these count events after a row, which a model must not know")
    item_names = [name for name in of_item if of_item[name] > of_user.get(name, 0.0)]
    price = [columns.value] if columns.value and "price" in words_of(columns.value) else []
    item_names = [*titles[:1], *item_names, *price] if items is None else []
    if item_names:
        why = "one value per item: they become the catalog, with the newest value of each"
        guesses.say("data.item_columns", item_names, why, 0.8)
        data = data.model_copy(update={"item_columns": tuple(item_names)})
        items = _log_side(log, data, columns.item_id, item_names)
    user_names = [name for name in of_user if name not in item_names] if users is None else []
    if user_names:
        guesses.say("data.user_columns", user_names, "one value per user: they become user attributes", 0.8)
        data = data.model_copy(update={"user_columns": tuple(user_names)})
        users = _log_side(log, data, columns.user_id, user_names)
    taken = {*data.item_columns, *data.user_columns, *data.carry, data.cell.column}
    unused = [name for name in free if name not in taken and not is_blank(frame[name])]
    if unused:
        guesses.say("not used", unused, "columns that no setting reads")
    return data, items, users


def _log_side(log: LogInput, data: Data, key: str, names: Sequence[str]) -> Side:
    table = entity_table(shape_log(log.tables, data, log.orders).tables, key, names)
    return table, typed_rows(table)
