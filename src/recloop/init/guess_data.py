"""Guess ``[data]``: columns, layout and form of a log, each with its reason."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from recloop.config import Cell, Columns, Data, Fallback
from recloop.data.shape import COUNT_COLUMN, LABEL_COLUMN, carry_down, expand_cells, join_orders
from recloop.errors import UserError
from recloop.features import conditions
from recloop.init import guess_ids, layout
from recloop.init.columns import (
    ANONYMOUS_ID,
    MIN_CONFIDENCE,
    TIME_OFFSET,
    ColumnGuess,
    guess_columns,
    is_blank,
    reading_of,
)
from recloop.init.features import Side
from recloop.init.guess_attributes import guess_attributes
from recloop.init.guess_sides import guess_keys
from recloop.init.headless import guess_headless
from recloop.init.layout import Condition
from recloop.init.log_input import Guesses, LogInput
from recloop.init.names import words_of
from recloop.records import EVENT_TYPE, GROUP_ID, ITEM_ID, QUANTITY, TIMESTAMP, USER_ID, VALUE

FIELDS: Final = (USER_ID, ITEM_ID, TIMESTAMP, EVENT_TYPE, GROUP_ID)
MAX_SHOWN: Final = 20
LABELS: Final = {USER_ID: "user id", ITEM_ID: "item id", TIMESTAMP: "time"}


@dataclass(frozen=True)
class GuessedData:
    """Guessed ``[data]``, items and users, and ids for ``clean.exclude_items``."""

    data: Data
    items: Side | None
    users: Side | None
    exclude_items: tuple[str, ...]


def guess_data(log: LogInput, guesses: Guesses) -> GuessedData:
    """Guess ``[data]`` of a log, and its items and users.

    Without their files, the attributes in the log are the items and users.

    Raises:
        UserError: a required column is missing or two are equally likely; the message names both readings.
    """
    data, frame = _layout(log, guesses)
    headless = not data.header
    others = {side: _columns_of(table) for side, table in ((ITEM_ID, log.items), (USER_ID, log.users))}
    separator = log.tables[0].separator or ","
    columns = guess_headless(frame, data.cell.column) if headless else guess_columns(frame, separator, others)
    columns = _with_cell(columns, data.cell)
    if data.columns.group_id and not columns[GROUP_ID].name:
        columns[GROUP_ID] = ColumnGuess(data.columns.group_id, "its values number the orders")
    for name, column in log.chosen.items():
        if column and column not in frame.columns:
            expected = f"a column of {log.name}: {', '.join(frame.columns[:20])}"
            raise UserError(f"data.columns.{name}", column, expected, f"--set data.columns.{name}=COLUMN")
        columns[name] = ColumnGuess(column, "your setting")
    if log.ask:
        for name in (name for name in FIELDS if name not in log.chosen):
            columns[name] = _asked(name, columns[name], frame.columns)
    _require(log, columns, frame)
    for name, guess in columns.items():
        if name not in (ANONYMOUS_ID, TIME_OFFSET) or guess.name:
            guesses.say(f"data.columns.{name}", guess.name, guess.why, guess.confidence)
    data = data.model_copy(
        update={
            "columns": Columns(**{name: guess.name for name, guess in columns.items()}),
            "fallback": Fallback(
                **{n: g.fallback for n, g in columns.items() if g.fallback and n in Fallback.model_fields}
            ),
        }
    )
    data = _times(data, columns[TIMESTAMP], frame, guesses)
    data = guess_keys(log, data, frame, guesses)
    data = _ids(log, data, frame, guesses)
    data = _where(data, frame, guesses)
    data = _carry(data, guesses)
    data, items, users = guess_attributes(log, data, frame, guesses)
    excluded = guess_ids.charges(frame, data, log.items, separator)
    for item, reason in list(excluded.items())[:MAX_SHOWN]:
        guesses.say("not a product", item, reason, 0.8)
    return GuessedData(data, items, users, tuple(excluded))


# -- layout


def _layout(log: LogInput, guesses: Guesses) -> tuple[Data, pl.DataFrame]:
    """Settings of the layout, and the frame of all files with one event per row."""
    data = log.read_settings
    frame = pl.concat([table.frame for table in log.tables], how="diagonal_relaxed")
    if not len(frame):
        broken = next((table.broken for table in log.tables if table.broken), {})
        reason = f"readable rows; all {len(broken):,} are broken: {next(iter(broken.values()))}" if broken else ""
        expected = reason or "rows under the header, found none"
        raise UserError("FILE", log.name, expected, "export the file again" if broken else "export the file with rows")
    if not data.header:
        guesses.say("data.header", False, "the first line holds values, not names; columns are c1, c2, ...", 0.9)
    if log.orders:
        orders = pl.concat([table.frame for table in log.orders], how="diagonal_relaxed")
        join = layout.guess_join(frame, orders)
        if join is None:
            expected = f"a column that joins {log.name} and {log.orders[0].source.name}, with one row per order"
            raise UserError("--orders", log.orders[0].source.name, expected, "export both files with the order id")
        guesses.say("data.on", join.on, f"{join.share:.1%} of the rows find their order", join.share)
        frame = join_orders(frame, orders, join.on).filter("found").drop("found")
        data = data.model_copy(update={"on": join.on})
    group, carry = layout.guess_carry(frame)
    if carry:
        frame = carry_down(frame, group, carry)
    if group:
        data = data.model_copy(update={"carry": carry, "columns": Columns(group_id=group)})
    cell = layout.guess_cell(frame, not data.header)
    if cell is not None:
        data = data.model_copy(update={"cell": cell})
        n_cells = len(frame)
        frame = expand_cells(frame, data)
        why = f"{cell.column} holds several items a cell: {n_cells:,} rows become {len(frame):,}"
        guesses.say("data.cell", cell.model_dump(), why, 0.9)
    return data, frame


def _with_cell(columns: Mapping[str, ColumnGuess], cell: Cell) -> dict[str, ColumnGuess]:
    """Guesses with the columns that ``data.cell`` adds."""
    found = dict(columns)
    if cell.column:
        found[ITEM_ID] = ColumnGuess(cell.column, "its cells hold the items", 0.9)
        added = {
            "id-label": (VALUE, LABEL_COLUMN, "0: shown, 1: clicked"),
            "count name": (QUANTITY, COUNT_COLUMN, "units"),
        }
        if cell.form in added:
            name, column, why = added[cell.form]
            found[name] = ColumnGuess(column, why)
    return found


def _columns_of(side: Side | None) -> list[str]:
    return [] if side is None else list(side[0].columns)


# -- required columns


def _require(log: LogInput, columns: Mapping[str, ColumnGuess], frame: pl.DataFrame) -> None:
    """Refuse a log without a user, an item or a time, and a close call in a script."""
    filled = [name for name in frame.columns if not is_blank(frame[name])]
    for name in (USER_ID, ITEM_ID, TIMESTAMP):
        guess = columns[name]
        if not guess.name:
            raise UserError(f"data.columns.{name}", "", *_missing_column(log, name, filled, frame))
        if guess.confidence < MIN_CONFIDENCE and not log.ask and not log.accept:
            raise UserError(
                f"data.columns.{name}", guess.name, f"one clear column for the {LABELS[name]}: {guess.why}",
                f"--set 'data.columns.{name}=\"{guess.name}\"', or --yes to accept it",
            )  # fmt: skip


def _missing_column(log: LogInput, name: str, filled: Sequence[str], frame: pl.DataFrame) -> tuple[str, str]:
    """Expectation and fix for a required column that no column can be."""
    shown = ", ".join(f"{column} ({_example(frame[column])})" for column in filled[:12])
    more = f" and {len(filled) - 12} more" if len(filled) > 12 else ""
    form = " in a known form, such as 2025-12-31 18:30:00" if name == TIMESTAMP else ""
    expected = f"a column with the {LABELS[name]}{form}; {log.name} has {shown}{more}"
    words = {word for column in filled for word in words_of(column)}
    if name == ITEM_ID and words & {"order", "increment", "invoice"}:
        return expected, "export the order items: one row per product of an order, with the product's id or SKU"
    if name == USER_ID and not log.orders and words & {"order", "invoice"}:
        return expected, f"recloop init {log.name} --orders FILE, with the file that has the customer of each order"
    if name == TIMESTAMP and words & {"order", "invoice"} and not log.orders:
        return expected, f"recloop init {log.name} --orders FILE, with the file that has the date of each order"
    return expected, f"recloop init FILE --set 'data.columns.{name}=\"COLUMN\"'"


def _example(column: pl.Series) -> str:
    texts = column.cast(pl.String, strict=False).drop_nulls() if not column.dtype.is_nested() else pl.Series(["[...]"])
    value = next((text for text in texts.head(100).to_list() if text.strip()), "")
    return value[:24] + ("..." if len(value) > 24 else "")


def _asked(field_name: str, guess: ColumnGuess, names: Sequence[str]) -> ColumnGuess:
    """Ask for a column on the terminal; Enter keeps the guess, ``-`` means none."""
    while True:
        sys.stderr.write(f"{field_name} [{guess.name or '-'}] ({guess.why}): ")
        sys.stderr.flush()
        answer = sys.stdin.readline().strip()
        if not answer:
            return guess
        if answer == "-":
            return ColumnGuess("", "your answer")
        if answer in names:
            return ColumnGuess(answer, "your answer")
        matches = difflib.get_close_matches(answer, names, n=1)
        known = f"nearest: {matches[0]}" if matches else f"columns: {', '.join(names)}"
        sys.stderr.write(f"  no column {answer}; {known}\n")


def _times(data: Data, guess: ColumnGuess, frame: pl.DataFrame, guesses: Guesses) -> Data:
    """``data.time_unit`` where the values alone do not tell it."""
    if guess.orders_rows:
        why = (
            "order numbers instead of times: the order of a user's rows is kept; dates, hours and trends are not known"
        )
        guesses.say("data.time_unit", "order", why, guess.confidence)
        return data.model_copy(update={"time_unit": "order"})
    reading = reading_of(frame[guess.name])
    if reading is None:
        return data
    if not reading.is_absolute:
        guesses.say("not a calendar", guess.name, f"{reading.form}: dates and hours are not known", 0.8)
    readable = {"iso", "s", "ms", "us", "days", "ns"}
    return data.model_copy(update={"time_unit": reading.unit}) if reading.unit in readable else data


def _ids(log: LogInput, data: Data, frame: pl.DataFrame, guesses: Guesses) -> Data:
    """``data.missing_users`` and ``data.id_form``."""
    guess_ids.refuse_cut_ids(frame, data)
    missing = guess_ids.missing_users(frame, data, log.users)
    if missing:
        rows = ", ".join(f"{word} ({rows:,} rows)" for word, rows in missing.items())
        guesses.say("data.missing_users", list(missing), f"words for a user who is not known: {rows}", 0.8)
    form, why, confidence = guess_ids.id_form(frame, data, log.items, log.users)
    if form != "text":
        guesses.say("data.id_form", form, why, confidence)
    return data.model_copy(update={"missing_users": tuple(missing), "id_form": form})


# -- rows


def _where(data: Data, frame: pl.DataFrame, guesses: Guesses) -> Data:
    """``data.where``: conditions against rows that are not events about items."""
    columns = data.columns
    candidates = (
        layout.child_rows(frame),
        layout.undone_orders(frame),
        layout.undone_at(frame),
        layout.rows_without_item(
            frame, columns.item_id, data.fallback.item_id, columns.event_type, bool(data.cell.column)
        ),
    )
    found: list[Condition] = [condition for condition in candidates if condition is not None]
    if not found:
        return data
    text = " AND ".join(condition.text for condition in found)
    why = "; ".join(f"{condition.why} ({condition.rows:,} rows)" for condition in found)
    guesses.say("data.where", text, f"left out: {why}", 0.8)
    return data.model_copy(update={"where": text})


def _carry(data: Data, guesses: Guesses) -> Data:
    """``data.carry`` with the columns that other settings read."""
    fields = conditions.field_names(data.where, "data.where") if data.where else set()
    read = fields | {name for name in data.columns.model_dump().values() if name}
    carry = tuple(name for name in data.carry if name in read)
    if carry:
        guesses.say("data.carry", list(carry), f"filled only in the first row of each {data.columns.group_id}")
    return data.model_copy(update={"carry": carry})
