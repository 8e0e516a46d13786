"""Ids of the caller: numbers or texts outside, texts inside."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import narwhals as nw
import numpy as np
import polars as pl
import pyarrow as pa

from recloop.errors import UserError
from recloop.features.id_form import form_id

MAX_LISTED: Final = 5
"""Number of ids that a message lists."""
MAX_N: Final = 1000


@dataclass(frozen=True)
class IdType:
    """Type of an id column in the caller's frames.

    Attributes:
        dtype: An integer type, or String.
        form: ``data.id_form``.
    """

    dtype: pl.DataType
    form: str = "text"

    @classmethod
    def of(cls, column: pl.Series, form: str = "text") -> IdType:
        """Type of a column; whole numbers in a float column are integers."""
        if form.startswith("zeros"):
            return cls(pl.String(), form)
        if column.dtype.is_integer():
            return cls(column.dtype, form)
        return cls(pl.Int64() if column.dtype.is_float() else pl.String(), form)

    def texts(self, values: Any, name: str) -> list[str]:
        """Convert an argument to id texts; a scalar is one id.

        Raises:
            UserError: the argument is a frame or None, or an id is missing, a fraction or a truth value.
        """
        return [form_id(_id_text(value, name), self.form) for value in _id_values(values, name)]

    def column(self, texts: pl.Series) -> pl.Series:
        """Convert id texts to the caller's type.

        All stay texts if one is not a number of this type.
        """
        numbers = texts.cast(self.dtype, strict=False)
        return numbers if (numbers.cast(pl.String) == texts).all() and not numbers.null_count() else texts


def _id_values(values: Any, name: str) -> list[Any]:
    if isinstance(nw.from_native(values, pass_through=True), nw.DataFrame | nw.LazyFrame):
        raise UserError(name, type(values).__name__, "ids, not a frame", f'{name}=frame["{name.removesuffix("s")}_id"]')
    if isinstance(values, np.ndarray | np.generic):
        values = values.tolist()
    if isinstance(values, pa.Array | pa.ChunkedArray):  # they yield scalars of their own
        return list(values.to_pylist())
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        return [values]
    return list(values)


def _id_text(value: Any, name: str) -> str:
    missing = value is None or value != value or (isinstance(value, str) and not value.strip())  # noqa: PLR0124, NaN
    if missing or isinstance(value, bool):
        raise UserError(name, value, "an id: a text or a whole number", f'{name}=["u1"] or {name}=[1]')
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, float):
        if not value.is_integer():
            raise UserError(name, value, "an id: a text or a whole number", f"{name}=[{int(value)}]")
        return str(int(value))
    return str(value)


def checked_n(n: Any, name: str = "n") -> int:
    """Number of items of a list; ``name`` is the argument.

    Raises:
        UserError: not a whole number from 1 to 1000.
    """
    try:
        number = 0 if isinstance(n, bool) else operator.index(n)
    except TypeError:
        number = 0
    if not 1 <= number <= MAX_N:
        raise UserError(name, n, f"a whole number from 1 to {MAX_N}", f"{name}=10")
    return number


def checked_moment(now: Any) -> int:
    """Time of a query, int64 microseconds UTC.

    Raises:
        UserError: not a whole number.
    """
    try:
        return operator.index(now)
    except TypeError:
        fix = "now=int(moment.timestamp() * 1_000_000)"
        raise UserError("now", now, "a whole number of microseconds since 1970, UTC", fix) from None


def listed(ids: Iterable[str]) -> str:
    """First ids of a list as text, with the number of others."""
    ids = list(ids)
    more = len(ids) - MAX_LISTED
    return ", ".join(ids[:MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")
