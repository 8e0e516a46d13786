"""Guess the layout of a log: orders, carried fields, cells of several items."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import polars as pl

from recloop.config import Cell
from recloop.init.columns import function_share
from recloop.init.filled_values import filled_texts
from recloop.init.names import name_score, normalize_name, words_of
from recloop.init.order_status import order_status
from recloop.records import GROUP_ID, ITEM_ID

IMPRESSIONS: Final = r"^\S+-[01](\s+\S+-[01])*$"
COUNTED_NAMES: Final = r"^\d+(?:[.,]\d+)?\s*[x×*]\s+\S"
JSON_LIST: Final = r"^\[.*\]$"
MIN_CELL_SHARE: Final = 0.9
"""Share of cells that must have the form of a list."""
MIN_OVERLAP: Final = 0.8
"""Share of log rows that must find their order."""
MIN_ATTRIBUTE_SHARE: Final = 0.9
"""Share of items or users that must have one value of an attribute."""
UNDONE_WORDS: Final = frozenset(["cancelled", "canceled", "refunded", "voided", "storniert", "annulé", "cancelado"])
STATUS_NAMES: Final = frozenset(["status", "state", "zustand", "estado", "statut", "stato", "durum", "статус", "状态"])
PART_WORDS: Final = frozenset(["fulfillment", "shipping", "lineitem", "delivery", "product", "item"])
"""Words of a status that is not the order's."""
SHOPWARE_UNDONE: Final = frozenset(["-1", "4"])
"""Shopware's numbers of cancelled and rejected orders."""
MAX_STATUSES: Final = 30
MAX_UNDONE_SHARE: Final = 0.6
TIME_WORDS: Final = frozenset(["at", "on", "date", "time", "am"])


class Join(NamedTuple):
    """Join columns of log and orders, and the share of log rows that find their order."""

    on: str
    share: float


def guess_join(lines: pl.DataFrame, orders: pl.DataFrame) -> Join | None:
    """Columns that join order lines with their orders; None without any."""
    found = []
    for right in orders.columns:
        keys = filled_texts(orders[right])
        if not len(keys) or keys.n_unique() < 0.99 * len(orders) or _share(keys, r"\d:\d|^\d{4}-\d\d") > 0.5:
            continue
        for left in lines.columns:
            values = filled_texts(lines[left])
            share = int(values.is_in(keys.unique().implode()).sum()) / max(1, len(lines))
            named = (normalize_name(left) == normalize_name(right)) + 0.5 * (name_score(GROUP_ID, left) > 0.3)
            if share >= MIN_OVERLAP and values.n_unique() < len(values):
                found.append((named, share, left, right))
    if not found:
        return None
    _, share, left, right = max(found, key=lambda one: (one[0], one[1]))
    return Join(left if left == right else f"{left} = {right}", share)


def guess_carry(frame: pl.DataFrame) -> tuple[str, tuple[str, ...]]:
    """Order column, and the columns that are filled only in the first row of an order."""
    for group in frame.columns:
        texts = filled_texts(frame[group])
        is_number = normalize_name(group) == "name" and len(texts) and bool(texts.str.contains(r"^#\w*\d").all())
        if not is_number and name_score(GROUP_ID, group) < 0.3:
            continue
        if len(texts) < 0.99 * len(frame) or texts.n_unique() in (1, len(texts)):
            continue
        position = pl.int_range(pl.len()).over(group)
        first = frame.filter(position.eq(0) & (pl.len().over(group) > 1))
        further = frame.filter(position > 0)
        carried = tuple(
            name
            for name in frame.columns
            if name != group and _filled(further[name]) < 0.02 and _filled(first[name]) > 0
        )
        carried = carried if any(_filled(first[name]) > 0.3 for name in carried) else ()
        if carried:
            return group, carried
        if is_number:
            return group, ()
    return "", ()


def guess_cell(frame: pl.DataFrame, headless: bool = False) -> Cell | None:
    """Column whose cells hold several items, and how they are written."""
    for name in frame.columns:
        if frame.schema[name] != pl.String:
            continue
        texts = filled_texts(frame[name])
        if len(texts) < 2:
            continue
        if _share(texts, IMPRESSIONS) >= MIN_CELL_SHARE and _share(texts, r"\s") > 0.5:
            return Cell(column=name, separator=" ", form="id-label")
        named = headless or name_score(ITEM_ID, name) >= 0.3 or re.search("product|item", normalize_name(name))
        if not named:
            continue
        if _share(texts, COUNTED_NAMES) >= MIN_CELL_SHARE and _share(texts, r",\s*\d+\s*[x×*]\s") > 0.1:
            return Cell(column=name, separator=", ", form="count name")
        if _share(texts, JSON_LIST) >= MIN_CELL_SHARE and not _share(texts, r"\{") > 0:
            return Cell(column=name, separator="json")
        if headless:
            continue
        for separator in ("|", ";", ",", " "):
            if _is_separator(texts, separator):
                return Cell(column=name, separator=separator)
    return None


def _is_separator(texts: pl.Series, separator: str) -> bool:
    """True if most cells hold several ids, and the ids repeat more than the cells."""
    parts = texts.str.split(separator)
    if _share_of(parts.list.len() > 1) < 0.5:
        return False
    ids = parts.explode().str.strip_chars()
    ids = ids.filter(ids != "")
    if _share_of(ids.str.contains(r"\s")) > 0.01 or (separator in ", " and _share_of(ids.str.contains(r"\d")) < 0.99):
        return False
    return ids.n_unique() < 0.7 * texts.n_unique()


# -- rows that are not events


class Condition(NamedTuple):
    """Condition of ``data.where``, the rows that it leaves out, and the reason."""

    text: str
    rows: int
    why: str


def child_rows(frame: pl.DataFrame) -> Condition | None:
    """Condition against the rows of variants that repeat the row of their parent."""
    for name in frame.columns:
        words = words_of(name)
        if "parent" not in words or not {"id", "item"} & set(words):
            continue
        missing = (frame[name].cast(pl.String).fill_null("").str.strip_chars()).is_in(["", "NULL", "null", "0"])
        children = frame.filter(~missing)
        if not len(children) or not missing.any():
            continue
        parents = set(children[name].cast(pl.String))
        keys = (other for other in frame.columns if other != name and frame[other].n_unique() == len(frame))
        if any(parents <= set(frame[other].cast(pl.String)) for other in keys):
            return Condition(
                f"({quoted(name)} IS NULL OR {quoted(name)} IN ('NULL', 'null', '0'))", len(children),
                f"a row with {name} repeats the row of its parent",
            )  # fmt: skip
    return None


def undone_at(frame: pl.DataFrame) -> Condition | None:
    """Condition against orders with a time of cancellation."""
    for name in frame.columns:
        words = set(words_of(name))
        if words & UNDONE_WORDS and words & TIME_WORDS and 0 < (filled := _filled(frame[name])) < 0.5:
            return Condition(f"{quoted(name)} IS NULL", round(filled * len(frame)), f"rows with {name} were undone")
    return None


def undone_orders(frame: pl.DataFrame) -> Condition | None:
    """Condition against orders with a status of cancelled, sent back or not paid."""
    for name in frame.columns:
        words = set(words_of(name))
        texts = filled_texts(frame[name]) if not frame.schema[name].is_nested() else frame[name].clear()
        if not words & STATUS_NAMES or words & PART_WORDS or not 0 < texts.n_unique() <= MAX_STATUSES:
            continue
        values = texts.unique().sort().to_list()
        status_of = {value: order_status(value) for value in values}
        numbers = SHOPWARE_UNDONE if normalize_name(name) == "orderstatusid" else frozenset[str]()
        undone = [value for value in values if status_of[value] in ("undone", "pending") or value in numbers]
        known = [value for value in values if status_of[value] != "unknown"]
        rows = int(texts.is_in(undone).sum())
        if not undone or (not numbers and 2 * len(known) < len(values)) or rows > MAX_UNDONE_SHARE * len(frame):
            continue
        listed = ", ".join(sql_text(value) for value in undone)
        why = f"{name} is {', '.join(undone)}: cancelled, sent back or not paid"
        return Condition(f"({quoted(name)} IS NULL OR {quoted(name)} NOT IN ({listed}))", rows, why)
    return None


def rows_without_item(
    frame: pl.DataFrame, item: str, fallback: Sequence[str], event_type: str, several: bool
) -> Condition | None:
    """Condition against events of types that never have an item.

    Args:
        several: True if the item column was expanded, so that a blank item is an empty list.
    """
    columns = [item, *(name for name in fallback if name in frame.columns)]
    blank = pl.all_horizontal(pl.col(name).cast(pl.String).fill_null("").str.strip_chars() == "" for name in columns)
    rows = frame.select(
        blank.alias("blank"),
        pl.col(event_type).cast(pl.String).alias("type") if event_type else pl.lit("").alias("type"),
    )
    n_blank = int(rows["blank"].sum())
    if n_blank and several and not event_type:
        return Condition(f"{quoted(item)} IS NOT NULL", n_blank, f"{item} is empty")
    if not n_blank or not event_type:
        return None
    shares = rows.group_by("type").agg(pl.col("blank").mean().alias("share"), pl.col("blank").sum().alias("rows"))
    itemless = shares.filter(pl.col("share") > 0.9)
    if int(itemless["rows"].sum()) < 0.5 * n_blank:
        return None
    types = ", ".join(str(name) for name in itemless.sort("rows", descending=True)["type"].head(4))
    return Condition(f"{quoted(item)} IS NOT NULL", n_blank, f"events about no item: {types}")


def quoted(name: str) -> str:
    """Column name as an SQL identifier."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else '"' + name.replace('"', '""') + '"'


def sql_text(value: str) -> str:
    """Value as an SQL text."""
    return "'" + value.replace("'", "''") + "'"


# -- attributes in the log


def attributes_of(frame: pl.DataFrame, key: str, names: Sequence[str], when: str) -> dict[str, float]:
    """Columns with one value per key, and the share of keys where that is so.

    Only keys with rows at different times are looked at.
    """
    several = frame.filter(pl.col(when).n_unique().over(key) > 1)
    if len(several) < 20 or several[key].n_unique() < 5:
        return {}
    found = {}
    for name in names:
        if several.schema[name].is_nested() or _filled(several[name]) < 0.3 or several[name].n_unique() < 2:
            continue
        share = function_share(several, key, name)
        if share >= MIN_ATTRIBUTE_SHARE:
            found[name] = share
    return found


def _filled(column: pl.Series) -> float:
    return len(filled_texts(column)) / max(1, len(column)) if not column.dtype.is_nested() else 0.0


def _share(texts: pl.Series, pattern: str) -> float:
    return _share_of(texts.str.contains(pattern))


def _share_of(mask: pl.Series) -> float:
    mean = mask.mean()
    return float(mean) if isinstance(mean, float) else 0.0
