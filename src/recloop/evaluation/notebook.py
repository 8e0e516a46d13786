"""Evaluation table as a data frame and as HTML, for notebooks."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

if TYPE_CHECKING:
    from recloop.evaluation.table_rows import TableRow

LIST_MEASURES = ("coverage", "entropy", "long_tail_share", "seconds")


def to_frame(rows: Sequence[TableRow], slice_name: str, intervals: bool, native: str) -> Any:
    """One row per model: model, bundle, a column per metric, then `LIST_MEASURES`.

    Args:
        intervals: Add the ends of the 95 % CI as ``NDCG@10_low`` and ``NDCG@10_high``.
        native: Library of the frame: ``polars``, ``pandas`` or ``pyarrow``.
    """
    frame = pl.DataFrame([_columns(row, slice_name, intervals) for row in rows])
    if native == "pandas":
        return frame.to_pandas()
    return frame.to_arrow() if native == "pyarrow" else frame


def _columns(row: TableRow, slice_name: str, intervals: bool) -> dict[str, str | float]:
    columns: dict[str, str | float] = {"model": row.row.model, "bundle": row.row.bundle}
    for (name_of_slice, metric), estimate in row.estimates.items():
        if name_of_slice == slice_name:
            columns[metric] = float(estimate.value)
            if intervals:
                columns |= {f"{metric}_low": float(estimate.low), f"{metric}_high": float(estimate.high)}
    return columns | {name: float(getattr(row.row, name)) for name in LIST_MEASURES}


def to_html(rows: Sequence[TableRow], notes: str) -> str:
    """One row per model over all targets, best metrics bold, with notes below."""
    table = [_columns(row, "all", intervals=False) for row in rows]
    names = [name for name in table[0] if name != "bundle"]
    best = {name: max(_text(columns[name]) for columns in table) for name in names if "@" in name}
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(_cell(_text(columns[name]), best.get(name)) for name in names) + "</tr>" for columns in table
    )
    return f"<table><tr>{head}</tr>{body}</table><p>{html.escape(notes)}</p>"


def _text(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "-" if np.isnan(value) else f"{value:.4f}"


def _cell(text: str, best: str | None) -> str:
    return f"<td><b>{text}</b></td>" if text == best else f"<td>{html.escape(text)}</td>"
