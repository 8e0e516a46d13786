"""Paths of nested records, and their expansion into rows.

``a.b`` is a key of an object, ``a[].b`` one row per element of the list ``a``, and ``a[NAME]`` the entry of a list of
``{"key": NAME, "value": ...}`` (or a key of an object whose name holds a dot). A record without elements is one row.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

PATH_PATTERN: Final = re.compile(r"[^.\[\]]+(\[[^\]]*\])*(\.[^.\[\]]+(\[[^\]]*\])*)*")
STEP_PATTERN: Final = re.compile(r"\[([^\]]*)\]|([^.\[\]]+)")
EACH: Final = "[]"

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """Step of a path: a key, every element of a list, or a named entry of a list."""

    kind: Literal["key", "each", "entry"]
    name: str = ""


def steps_of(path: str, literal: Collection[str] = ()) -> tuple[Step, ...]:
    """Steps of a path; a name in ``literal``, or one that is not a path, is one key."""
    if path in literal or not PATH_PATTERN.fullmatch(path):
        return (Step("key", path),)
    return tuple(
        Step("key", key) if key else Step("entry", entry) if entry else Step("each")
        for entry, key in STEP_PATTERN.findall(path)
    )


def key_path(prefix: str, key: str) -> str:
    """Path of a key of the object at ``prefix``."""
    if not prefix:
        return key
    return f"{prefix}[{key}]" if re.search(r"[.\[]", key) else f"{prefix}.{key}"


@dataclass
class PathTree:
    """Wanted paths by their steps.

    Attributes:
        name: The wanted path that ends here, or empty.
        steps: Subtree by next step.
    """

    name: str = ""
    steps: dict[Step, PathTree] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Sequence[str], literal: Collection[str] = ()) -> PathTree:
        root = cls()
        for path in paths:
            node = root
            for step in steps_of(path, literal):
                node = node.steps.setdefault(step, cls())
            node.name = path
        return root


class Column(Protocol):
    """Values at one path, one per object of a level."""

    def __len__(self) -> int: ...

    def key(self, name: str) -> Column:
        """Values of a key; null where a value is not an object with this key."""

    def entry(self, name: str) -> Column:
        """Values of the entry with this key in lists of entries."""

    def elements(self) -> tuple[Column, Indices]:
        """Elements of all lists, and the number of elements of each."""

    def series(self) -> pl.Series:
        """The values as a column of the table."""


@dataclass(frozen=True)
class Rows:
    """Columns by path, and the object of each row in ascending order."""

    owners: Indices
    columns: dict[str, pl.Series]


def expand(tree: PathTree, objects: Column) -> Rows:
    """Expand objects into rows of the tree's paths.

    The rows of several lists of one object follow one another; other fields are repeated. An object whose lists have no
    element has one row.
    """
    fields: dict[str, pl.Series] = {}
    lists: list[tuple[PathTree, Column]] = []
    _collect(tree, objects, fields, lists)
    owners = np.arange(len(objects))
    if not lists:
        return Rows(owners, fields)
    parts = []
    for element_tree, lists_column in lists:
        elements, counts = lists_column.elements()
        rows = expand(element_tree, elements)
        parts.append(Rows(np.repeat(owners, counts)[rows.owners], rows.columns))
    has_row = np.zeros(len(objects), dtype=bool)
    for part in parts:
        has_row[part.owners] = True
    all_owners = np.concatenate([*(part.owners for part in parts), np.flatnonzero(~has_row)])
    order = np.argsort(all_owners, kind="stable")
    columns = {name: values.gather(all_owners[order]) for name, values in fields.items()}
    start = 0
    for part in parts:
        end = start + len(part.owners)
        is_own = (order >= start) & (order < end)
        index = pl.select(pl.when(pl.lit(pl.Series(is_own))).then(pl.lit(pl.Series(order - start)))).to_series()
        columns |= {name: values.gather(index) for name, values in part.columns.items()}
        start = end
    return Rows(all_owners[order], columns)


def _collect(
    tree: PathTree, column: Column, fields: dict[str, pl.Series], lists: list[tuple[PathTree, Column]]
) -> None:
    """Add the columns of a tree that belong to one level, and its lists."""
    if tree.name:
        fields[tree.name] = column.series()
    for step, subtree in tree.steps.items():
        if step.kind == "each":
            lists.append((subtree, column))
        else:
            values = column.key(step.name) if step.kind == "key" else column.entry(step.name)
            _collect(subtree, values, fields, lists)
