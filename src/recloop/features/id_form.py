"""Form of ids (``data.id_form``): two spellings of one id become one text."""

from __future__ import annotations

import re
from typing import Final

import polars as pl

WHOLE_NUMBER: Final = r"^\d+\.0+$"
"""A whole number that a data frame wrote as a fraction: ``1001.0``."""
DIGITS: Final = r"^\d+$"
MAX_WHOLE: Final = 2**63
"""Floating-point numbers from here on are not ids."""


def form_ids(ids: pl.Expr, form: str) -> pl.Expr:
    """Ids in the form of ``data.id_form``, for a column of texts.

    ``integer`` cuts ``.0`` off whole numbers. ``zeros:N`` fills digits with zeros to a length of N.
    """
    if form == "text":
        return ids
    if form == "integer":
        return pl.when(ids.str.contains(WHOLE_NUMBER)).then(ids.str.replace(r"\.0+$", "")).otherwise(ids)
    return pl.when(ids.str.contains(DIGITS)).then(ids.str.zfill(_length(form))).otherwise(ids)


def form_id(text: str, form: str) -> str:
    """One id in the form of ``data.id_form``; equal to `form_ids`."""
    if form == "text":
        return text
    if form == "integer":
        return text.partition(".")[0] if re.search(WHOLE_NUMBER, text) else text
    return text.zfill(_length(form)) if re.search(DIGITS, text) else text


def id_text(value: object) -> object:
    """Text of a whole number that is an id; any other value is unchanged.

    ``1000`` and ``1000.0`` are ``"1000"``.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < MAX_WHOLE):
        return str(int(value))
    return value


def _length(form: str) -> int:
    return int(form.partition(":")[2])
