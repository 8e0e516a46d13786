"""Guess the id columns of the items and the users file."""

from __future__ import annotations

from typing import Final

import polars as pl

from recloop.config import Data
from recloop.data.tables import Table
from recloop.errors import UserError
from recloop.init import guess_ids
from recloop.init.features import Side
from recloop.init.log_input import Guesses, LogInput
from recloop.init.names import name_score, normalize_name
from recloop.records import ITEM_ID, TIMESTAMP, USER_ID

PROPERTY_NAMES: Final = ("property", "attribute", "key", "name", "field")
"""Columns with the name of a property in a long table."""


def guess_keys(log: LogInput, data: Data, frame: pl.DataFrame, guesses: Guesses) -> Data:
    """``data.item_key`` and ``data.user_key``, if the id columns have other names."""
    update = {}
    for name, side, flag, key in (
        (ITEM_ID, log.items, "--items", "item_key"),
        (USER_ID, log.users, "--users", "user_key"),
    ):
        column = getattr(data.columns, name)
        if side is None:
            continue
        if column in side[0].columns and data.header:
            _refuse_long(flag, side[0], column)
            continue
        right, share = _best_key(guess_ids.ids_of(frame, column).drop_nulls(), side[0].frame)
        if share < 0.5:
            _refuse_side(flag, side, column, name)
        guesses.say(f"data.{key}", right, f"{share:.1%} of the log's rows are found in it", share)
        update[key] = right
    return data.model_copy(update=update)


def _best_key(values: pl.Series, frame: pl.DataFrame) -> tuple[str, float]:
    """Unique column that holds most of the values, and the share of rows found."""
    shares = {}
    for name in frame.columns:
        keys = frame[name].cast(pl.String, strict=False).drop_nulls() if not frame[name].dtype.is_nested() else None
        if keys is not None and len(keys) and keys.n_unique() >= 0.95 * len(keys):
            shares[name] = int(values.is_in(keys.unique().implode()).sum()) / max(1, len(values))
    best = max(shares, key=lambda name: shares[name], default="")
    return best, shares.get(best, 0.0)


def _refuse_long(flag: str, table: Table, key: str) -> None:
    """Refuse a file with one row per property of an id.

    Raises:
        UserError: ids repeat, and two columns hold the names and values of properties.
    """
    names = {normalize_name(name): name for name in table.columns}
    pair = next(((names[left], names["value"]) for left in PROPERTY_NAMES if left in names and "value" in names), None)
    ids = table.frame[key]
    if pair is None or ids.n_unique() > 0.7 * len(ids):
        return
    most = int(ids.value_counts()["count"].max() or 0)  # type: ignore[arg-type]
    time = next((f".sort('{name}')" for name in table.columns if name_score(TIMESTAMP, name) > 0.7), "")
    command = (
        f"import polars as pl; pl.read_csv('{table.source.path.name}', infer_schema=False){time}"
        f".pivot('{pair[0]}', index='{key}', values='{pair[1]}', aggregate_function='last').write_csv('wide.csv')"
    )
    raise UserError(
        flag, table.source.name, f"one row per id; {key} is in up to {most} rows, each with one property: a long table",
        f'python -c "{command}", then {flag} wide.csv',
    )  # fmt: skip


def _refuse_side(flag: str, side: Side, column: str, name: str) -> None:
    expected = f"a column with ids of {column} of the log, found none among {', '.join(side[0].columns)}"
    raise UserError(flag, side[0].source.name, expected, f"export the file with the ids of the log's {name}")
