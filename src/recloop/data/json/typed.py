"""Decoder of the wanted values of JSON records, faster than a full one."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import polars as pl

from recloop.data.json.paths import Column, Indices, PathTree, Step
from recloop.data.json.values import JsonColumn


@dataclass(frozen=True)
class ValueType:
    """Type of the values at one node of a path tree.

    Attributes:
        annotation: Type for the decoder; Any: every value is decoded.
        fields: Attribute and type of every wanted key of an object.
        element: Type of the elements of a list.
        empty: Object without values, in place of a missing one.
    """

    annotation: Any = Any
    fields: Mapping[str, tuple[Callable[[Any], Any], ValueType]] = field(default_factory=dict)
    element: ValueType | None = None
    empty: Any = None


def value_type(tree: PathTree) -> ValueType:
    """Type that holds the values of a path tree and skips all others."""
    kinds = {step.kind for step in tree.steps}
    if tree.name or len(kinds) != 1 or "entry" in kinds:
        return ValueType()
    if kinds == {"each"}:
        element = value_type(tree.steps[Step("each")])
        return ValueType(list.__class_getitem__(element.annotation) | None, element=element)
    types = {step.name: value_type(subtree) for step, subtree in tree.steps.items()}
    names = {f"value_{number}": name for number, name in enumerate(types)}
    record = msgspec.defstruct(
        "Record", [(attribute, types[name].annotation, None) for attribute, name in names.items()], rename=names, gc=False
    )  # fmt: skip
    fields = {name: (operator.attrgetter(attribute), types[name]) for attribute, name in names.items()}
    return ValueType(record | None, fields, empty=record())


def typed_column(values: list[Any], kind: ValueType) -> Column:
    """Column of decoded values of a type."""
    return TypedColumn(values, kind) if kind.fields or kind.element else JsonColumn(values)


class TypedColumn:
    """Objects or lists of a type; see `recloop.data.json.paths.Column`."""

    def __init__(self, values: list[Any], kind: ValueType) -> None:
        self.values = values
        self.kind = kind

    def __len__(self) -> int:
        return len(self.values)

    def key(self, name: str) -> Column:
        attribute, kind = self.kind.fields[name]
        empty = self.kind.empty
        return typed_column([attribute(empty if value is None else value) for value in self.values], kind)

    def entry(self, name: str) -> Column:
        raise AssertionError(f"{name}: entries are decoded in full")

    def elements(self) -> tuple[Column, Indices]:
        assert self.kind.element is not None
        lists = [() if value is None else value for value in self.values]
        elements = list(itertools.chain.from_iterable(lists))
        return typed_column(elements, self.kind.element), np.fromiter(map(len, lists), np.int64, len(lists))

    def series(self) -> pl.Series:
        raise AssertionError("a value that is a column is decoded in full")
