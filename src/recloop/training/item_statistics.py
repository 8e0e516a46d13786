"""Fit the item statistics of `recloop.features.item_statistics`."""

from __future__ import annotations

from typing import Final

import numpy as np

from recloop.features.gaps import gaps_of, usual_log_gaps
from recloop.features.item_statistics import UNKNOWN, ItemStatistics
from recloop.features.vocabulary import as_number, values_of
from recloop.models.base import TrainData
from recloop.records import DAY
from recloop.training.dataset import ItemUserTables
from recloop.training.rhythm import fit_rhythm

DAYS: Final = (7, 28, 90)
"""Days before the end of the rows whose targets count as popularity."""


def fit_statistics(data: TrainData, tables: ItemUserTables, with_rhythm: bool = True) -> ItemStatistics:
    """Fit the statistics on training rows up to ``data.cut``.

    Popularity counts the targets of guests too; all other statistics are those of users.

    Args:
        with_rhythm: False for a ranker that was trained without tables of rhythm.
    """
    size = data.n_items + 1
    stamps = data.stamps[data.row_moment]
    users = data.moment_user[data.row_moment].astype(np.int64)
    week, month, quarter = (_popularity(data, days) for days in DAYS)
    gaps, gap_items, buyers, repeaters = gaps_of(users, data.items, stamps, size)
    n_gaps = _count(gap_items, size)
    n_rows = np.bincount(data.items, weights=data.target_rows, minlength=size)
    columns = [
        np.log1p(week),
        np.log1p(month),
        np.log1p(quarter),
        np.log((DAYS[1] / DAYS[0] * week + 2) / (month + 2)),
        np.log1p(buyers),
        repeaters / (buyers + 2),
        np.expm1(usual_log_gaps(gaps, gap_items, size)),
        _ages(data, stamps),
        n_rows / (buyers + 1),
        n_gaps / (n_rows + 5),
    ]
    fields, codes = _codes(data)
    numbers = tuple(name for name, field in tables.spec.item.items() if field.kind == "number")
    rhythm = fit_rhythm(data, codes, tables.spec.timezone) if with_rhythm else None
    return ItemStatistics(
        np.stack(columns, axis=1).astype(np.float32), fields, codes, numbers, _amounts(tables, numbers), rhythm
    )


def _popularity(data: TrainData, days: int) -> np.ndarray:
    """(N+1,) targets of each item in the last days, with those of guests."""
    start = data.cut - days * DAY
    is_late = (data.stamps >= start)[data.row_moment] & data.target_rows
    counts = _count(data.items[is_late], data.n_items + 1)
    if data.guests is not None:
        late_guests = (data.guests.stamps >= start)[data.guests.row_basket] & data.guests.targets
        counts = counts + _count(data.guests.items[late_guests], data.n_items + 1)
    return counts


def _ages(data: TrainData, stamps: np.ndarray) -> np.ndarray:
    """(N+1,) days from the first row of each item to the cut."""
    no_row = np.iinfo(np.int64).max
    first = np.full(data.n_items + 1, no_row)
    np.minimum.at(first, data.items, stamps)
    ages: np.ndarray = (data.cut - np.where(first == no_row, data.cut, first)) / DAY
    return ages


def _codes(data: TrainData) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the categorical fields, and (F, N+1) int32 codes of the first category."""
    columns = {name: column for column, (name, _, _) in reversed([*enumerate(data.item_fields)])}
    numeric = {f"item.{name}" for name, kind in _kinds(data).items() if kind == "number"}
    names = [name for name in sorted(columns) if name not in numeric]
    codes = data.item_codes[:, [columns[name] for name in names]].T.astype(np.int32)
    return tuple(name.removeprefix("item.") for name in names), np.ascontiguousarray(codes)


def _kinds(data: TrainData) -> dict[str, str]:
    return {name: field.kind for name, field in data.extras["spec"].item.items()}


def _amounts(tables: ItemUserTables, numbers: tuple[str, ...]) -> np.ndarray:
    """(G, N+1) float32 numeric fields as sign(x) ln(1 + |x|); `UNKNOWN` where missing."""
    rows = []
    for name in numbers:
        raws = values_of(name, tables.spec.item[name], tables.item_attributes)
        values = np.array([np.nan, *(as_number(raw) for raw in raws)])
        is_known = np.isfinite(values)
        logs = np.sign(values) * np.log1p(np.abs(values))
        rows.append(np.where(is_known, logs, UNKNOWN).astype(np.float32))
    return np.stack(rows) if rows else np.zeros((0, len(tables.items) + 1), dtype=np.float32)


def _count(items: np.ndarray, size: int) -> np.ndarray:
    return np.bincount(items, minlength=size)
