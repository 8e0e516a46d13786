"""Vocabularies of ids and field values; index 0 is always unknown or missing."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from recloop.config import Field
from recloop.features.categories import as_categories
from recloop.features.clusters import TextCodes, VectorCodes, as_vector
from recloop.features.packed_ids import PackedIds
from recloop.features.spec import EARLIER_NAMES, FeatureSpec
from recloop.features.value_text import as_text
from recloop.files import JsonTree

N_BUCKETS = 10
"""Number of quantile buckets of a numeric field (fewer if values repeat)."""
MAX_COLUMNS = 8
"""Maximum number of categories of one attribute that are encoded, the first ones."""
HOURS, WEEKDAYS = 24, 7
MIN_DISTINCT_ROWS = 64
"""Rows from which coding the distinct values of an array is faster."""
MIN_JOINED_ROWS = 10_000
"""Rows from which a join is faster than a look-up of each id."""
MIN_PACKED_IDS = 500_000
"""Number of ids from which memory counts more than the time of a look-up."""


class Vocabulary:
    """Raw ids in the order of their dense index, which counts from 1.

    ``serial`` differs between all vocabularies of a process, so results can be kept by it.
    """

    _serials = itertools.count()

    def __init__(self, ids: Sequence[str] | pl.Series) -> None:
        """Index ids; a String series of `MIN_PACKED_IDS` or more is packed."""
        self.serial = next(self._serials)
        self._packed = PackedIds(ids) if isinstance(ids, pl.Series) and len(ids) >= MIN_PACKED_IDS else None
        self.ids: Sequence[str] = list(ids) if self._packed is None else self._packed
        self._index = {} if self._packed is not None else {raw: ix for ix, raw in enumerate(self.ids, start=1)}

    def __len__(self) -> int:
        return len(self.ids)

    def index(self, raw: str) -> int:
        """Dense index of an id; 0 if it is not in the table."""
        return self._index.get(raw, 0) if self._packed is None else self._packed.find(raw) + 1

    def lookup(self, raws: Iterable[str], size: int = -1) -> np.ndarray:
        """(n,) int32 indices, 0 where unknown; a long series is joined with the ids."""
        if self._packed is not None:
            rows: np.ndarray = self._packed.find_all(list(raws)) + np.int32(1)
            return rows
        if isinstance(raws, pl.Series) and len(raws) >= max(MIN_JOINED_ROWS, len(self.ids) // 4):
            ids = pl.DataFrame({"raw": self.ids, "ix": np.arange(1, len(self.ids) + 1, dtype=np.int32)})
            joined = raws.alias("raw").to_frame().join(ids, on="raw", how="left", maintain_order="left")
            return joined["ix"].fill_null(0).to_numpy(writable=True)
        get = self._index.get
        return np.fromiter((get(raw, 0) for raw in raws), dtype=np.int32, count=size)


@dataclass(frozen=True)
class CategoryCodes:
    """Text values in the order of their code, from 1."""

    values: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.values) + 1

    def codes(self, raws: Iterable[Any]) -> np.ndarray:
        """(n,) int32; 0 for a missing or unknown value.

        A long array of integers is coded by its distinct values.
        """
        index = self._index
        if isinstance(raws, np.ndarray) and len(raws) >= MIN_DISTINCT_ROWS:
            distinct, inverse = np.unique(raws, return_inverse=True)
            return self.codes(distinct.tolist())[inverse]
        if isinstance(raws, np.ndarray):
            raws = raws.tolist()
        return np.array([0 if raw is None else index.get(as_text(raw), 0) for raw in raws], dtype=np.int32)

    def code(self, number: float) -> int:
        """Code of a whole number, as in `codes`; 0 if it is unknown."""
        return self._index.get(str(int(number)), 0)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {value: code for code, value in enumerate(self.values, start=1)}

    def to_json(self) -> JsonTree:
        return {"kind": "category", "values": list(self.values)}


@dataclass(frozen=True)
class CategoriesCodes:
    """Text values in the order of their code, from 1.

    An attribute has up to ``columns`` of them.
    """

    values: tuple[str, ...]
    columns: int = 1

    @property
    def size(self) -> int:
        return len(self.values) + 1

    def codes(self, raws: Iterable[Any]) -> np.ndarray:
        """(n, columns) int32; known values first, then 0."""
        index = self._index
        rows = []
        for raw in raws:
            known = [index[text] for text in as_categories(raw) or () if text in index][: self.columns]
            rows.append(known + [0] * (self.columns - len(known)))
        return np.array(rows, dtype=np.int32).reshape(-1, self.columns)

    @cached_property
    def _index(self) -> dict[str, int]:
        return {value: code for code, value in enumerate(self.values, start=1)}

    def to_json(self) -> JsonTree:
        return {"kind": "categories", "values": list(self.values), "columns": self.columns}


@dataclass(frozen=True)
class NumericBuckets:
    """Ascending bucket edges.

    Code 1 is below the first edge; each edge starts the next code.
    """

    edges: tuple[float, ...]

    @property
    def size(self) -> int:
        return len(self.edges) + 2

    def codes(self, raws: Iterable[Any]) -> np.ndarray:
        """(n,) int32; 0 for a missing value or one that is not a number."""
        if isinstance(raws, np.ndarray):
            values = raws.astype(np.float64)
        else:
            values = np.array([as_number(raw) for raw in raws], dtype=np.float64)
        buckets = np.searchsorted(np.asarray(self.edges, dtype=np.float64), values, side="right") + 1
        return np.where(np.isnan(values), 0, buckets).astype(np.int32)

    def code(self, number: float) -> int:
        """Code of one number, as in `codes`; 0 for NaN."""
        return 0 if math.isnan(number) else bisect.bisect_right(self.edges, number) + 1

    def to_json(self) -> JsonTree:
        return {"kind": "number", "edges": list(self.edges)}


SeveralCodes = CategoriesCodes | TextCodes | VectorCodes
"""Codes with several columns."""
Codes = CategoryCodes | NumericBuckets | SeveralCodes
_CODES: Mapping[str, type[Codes]] = {
    "category": CategoryCodes,
    "categories": CategoriesCodes,
    "number": NumericBuckets,
    "text": TextCodes,
    "vector": VectorCodes,
}


@dataclass(frozen=True)
class FieldCodes:
    """Codes of every feature by name, such as ``item.price``, as in fields.json."""

    codes: dict[str, Codes]

    def size(self, name: str) -> int:
        """Number of codes of a feature, including 0 for missing."""
        return self.codes[name].size

    def columns(self, name: str) -> int:
        """Number of columns of a feature's codes.

        It is above 1 for several categories, texts and vectors.
        """
        codes = self.codes[name]
        return codes.columns if isinstance(codes, SeveralCodes) else 1

    def to_json(self) -> JsonTree:
        return {name: codes.to_json() for name, codes in self.codes.items()}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> FieldCodes:
        codes: dict[str, Codes] = {}
        for stored_name, entry in tree.items():
            name = EARLIER_NAMES.get(stored_name, stored_name)
            if entry["kind"] == "category":
                codes[name] = CategoryCodes(tuple(entry["values"]))
            elif entry["kind"] == "categories":
                codes[name] = CategoriesCodes(tuple(entry["values"]), int(entry["columns"]))
            elif entry["kind"] == "text":
                codes[name] = TextCodes.from_json(entry)
            elif entry["kind"] == "vector":
                codes[name] = VectorCodes.from_json(entry)
            else:
                codes[name] = NumericBuckets(tuple(float(edge) for edge in entry["edges"]))
        return cls(codes)

    def check(self, spec: FeatureSpec) -> None:
        """Check that each feature of a spec has codes of its kind.

        Raises:
            TypeError: a feature has none, or of another kind.
        """
        kinds = {f"item.{name}": field.kind for name, field in spec.item.items()}
        kinds |= {f"user.{name}": field.kind for name, field in spec.user.items()}
        kinds |= {f"context.{name}": "number" if name == "days_since_last" else "category" for name in spec.context}
        for name, kind in kinds.items():
            codes = self.codes.get(name)
            if not isinstance(codes, _CODES[kind]):
                raise TypeError(f"{name}: {type(codes).__name__}, expected {_CODES[kind].__name__}")
            if isinstance(codes, CategoryCodes | CategoriesCodes) and not all(isinstance(v, str) for v in codes.values):
                raise TypeError(f"{name}: expected texts")

    @classmethod
    def fit(
        cls,
        spec: FeatureSpec,
        items: Sequence[Mapping[str, Any] | None],
        users: Sequence[Mapping[str, Any] | None],
        gaps: np.ndarray,
    ) -> FieldCodes:
        """Fit values and edges on the data before the cut.

        Args:
            items, users: Attributes of the items and users of the table.
            gaps: Days between consecutive moments of a user.
        """
        codes: dict[str, Codes] = {}
        for side, fields, rows in (("item", spec.item, items), ("user", spec.user, users)):
            for name, field in fields.items():
                raws = values_of(name, field, rows)
                codes[f"{side}.{name}"] = _FITS[field.kind](raws)
        for name in spec.context:
            if name == "hour":
                codes["context.hour"] = CategoryCodes(tuple(str(hour) for hour in range(HOURS)))
            elif name == "weekday":
                codes["context.weekday"] = CategoryCodes(tuple(str(day) for day in range(1, WEEKDAYS + 1)))
            else:
                codes["context.days_since_last"] = _number(gaps.tolist())
        return cls(codes)


def values_of(name: str, field: Field, rows: Iterable[Mapping[str, Any] | None]) -> list[Any]:
    """Values of a feature in rows of attributes; None where missing.

    Several categories and the numbers of a vector are a list.
    """
    raws = [None if row is None else row.get(field.source or name) for row in rows]
    if field.kind == "vector":
        return [as_vector(raw, field.separator) for raw in raws]
    return [as_categories(raw, field.separator) for raw in raws] if field.kind == "categories" else raws


def as_number(raw: Any) -> float:
    """Value as a number; NaN if it is not a number."""
    if raw is None or isinstance(raw, bool):
        return float("nan")
    try:
        return float(raw)
    except (TypeError, ValueError):
        return float("nan")


def _category(raws: Iterable[Any]) -> CategoryCodes:
    return CategoryCodes(tuple(sorted({as_text(raw) for raw in raws if raw is not None})))


def _number(raws: Iterable[Any]) -> NumericBuckets:
    values = np.array([as_number(raw) for raw in raws], dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return NumericBuckets(())
    edges = np.unique(np.quantile(values, np.arange(1, N_BUCKETS) / N_BUCKETS))
    return NumericBuckets(tuple(float(edge) for edge in edges))


def _categories(raws: Iterable[Any]) -> CategoriesCodes:
    lists = [as_categories(raw) or [] for raw in raws]
    values = tuple(sorted({text for texts in lists for text in texts}))
    return CategoriesCodes(values, min(MAX_COLUMNS, max(1, max(map(len, lists), default=1))))


_FITS: Mapping[str, Callable[[Iterable[Any]], Codes]] = {
    "category": _category,
    "categories": _categories,
    "number": _number,
    "text": TextCodes.fit,
    "vector": VectorCodes.fit,
}
