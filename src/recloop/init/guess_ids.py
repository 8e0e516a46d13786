"""Guess the settings of ids: missing users, their form, excluded items."""

from __future__ import annotations

from typing import Final

import polars as pl

from recloop.config import Data
from recloop.data.doctor import id_checks
from recloop.data.numbers import read_numbers
from recloop.errors import UserError
from recloop.features.id_form import WHOLE_NUMBER, form_ids
from recloop.init.features import Side
from recloop.records import GROUP_ID, ITEM_ID, QUANTITY, USER_ID, VALUE

MAX_CUT_SHARE: Final = 0.01
"""Share of rows with ids that a spreadsheet cut above which the log is refused."""


def ids_of(frame: pl.DataFrame, name: str, form: str = "text") -> pl.Series:
    """Ids of a column as texts; blank cells are null."""
    text = pl.col(name).cast(pl.String).str.strip_chars()
    return frame.select(form_ids(pl.when(text != "").then(text), form).alias(name))[name]


def missing_users(frame: pl.DataFrame, data: Data, users: Side | None) -> dict[str, int]:
    """Rows by text of the user column that means that the user is not known."""
    known = [] if users is None else _side_ids(users, data.user_key or data.columns.user_id).to_list()
    return id_checks.missing_words(ids_of(frame, data.columns.user_id), known)


def id_form(frame: pl.DataFrame, data: Data, items: Side | None, users: Side | None) -> tuple[str, str, float]:
    """``data.id_form`` with its reason and confidence; ``text`` is as written."""
    for name, column, side, key in (
        ("items", data.columns.item_id, items, data.item_key or data.columns.item_id),
        ("users", data.columns.user_id, users, data.user_key or data.columns.user_id),
    ):
        if side is None or key not in side[0].columns:
            continue
        join = id_checks.join_share(ids_of(frame, column), _side_ids(side, key))
        form = join.best
        if form in ("strip", "casefold") or not form:
            continue
        cause = id_checks.FORM_CAUSES[form.partition(":")[0]]
        why = f"{join.share:.0%} of the log's {name} are in {side[0].source.name}, {join.forms[form]:.0%} in this form: {cause}"
        return form, why, join.forms[form]
    for column in (data.columns.user_id, data.columns.item_id):
        ids = ids_of(frame, column).drop_nulls()
        if len(ids) and int(ids.str.contains(WHOLE_NUMBER).sum()) > 0.9 * len(ids):
            return (
                "integer",
                f"{column} was written as a fraction ({ids[0]}); later rows may have {ids[0].partition('.')[0]}",
                0.9,
            )
    return "text", "", 1.0


def refuse_cut_ids(frame: pl.DataFrame, data: Data) -> None:
    """Refuse ids that a spreadsheet cut, such as ``1.23457E+12``.

    Raises:
        UserError: more than 1 % of the rows have such an id.
    """
    for field in (USER_ID, ITEM_ID):
        column = getattr(data.columns, field)
        ids = ids_of(frame, column)
        cut = id_checks.spreadsheet_ids(ids)
        rows = sum(cut.values())
        if rows > MAX_CUT_SHARE * len(ids):
            other_ids = ids.drop_nulls().filter(~ids.drop_nulls().is_in(list(cut))).unique(maintain_order=True).head(5)
            shown = f"{', '.join(list(cut)[:5])}; whole ids: {', '.join(other_ids.to_list())}"
            raise UserError(
                f"data.columns.{field} ({column})", f"{rows:,} of {len(ids):,} rows",
                f"whole ids; a spreadsheet cut these, so several ids became one: {shown}",
                "export the table again without opening it in a spreadsheet, or with the column formatted as text",
            )  # fmt: skip


def charges(frame: pl.DataFrame, data: Data, items: Side | None, separator: str) -> dict[str, str]:
    """Reason by item id that is probably not a product, most rows first.

    Only rows of known users that are not returns are looked at.
    """
    columns = data.columns
    rows = pl.DataFrame(
        {ITEM_ID: ids_of(frame, columns.item_id, data.id_form), USER_ID: ids_of(frame, columns.user_id)}
    )
    if columns.group_id:
        rows = rows.with_columns(ids_of(frame, columns.group_id).alias(GROUP_ID))
    if columns.value and columns.value in frame.columns:
        rows = rows.with_columns(read_numbers(frame[columns.value], separator)[0].alias(VALUE))
    known = set() if items is None else set(_side_ids(items, data.item_key or columns.item_id))
    bought = pl.col(USER_ID).is_not_null()
    if columns.quantity and columns.quantity in frame.columns:
        rows = rows.with_columns(read_numbers(frame[columns.quantity], separator)[0].alias(QUANTITY))
        bought &= pl.col(QUANTITY).fill_null(1) > 0
    found = {
        one.item_id: one.reason
        for one in id_checks.non_products(rows.filter(bought))
        if one.proposed and (one.item_id not in known or len(one.reasons) > 1)
    }
    missing = id_checks.missing_words(rows[ITEM_ID], known)
    words = {word: "a word for a missing item" for word in missing if word not in found}
    return {**found, **words}


def _side_ids(side: Side, key: str) -> pl.Series:
    return side[0].frame[key].cast(pl.String)
