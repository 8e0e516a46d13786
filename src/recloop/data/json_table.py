"""Text columns of JSON records, by keys and by paths of nested keys and lists."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import polars as pl

from recloop.data.json_leaves import Leaf, entry_of, find_leaves, main_list
from recloop.data.json_paths import EACH, Indices, PathTree, expand
from recloop.data.json_records import JsonLayout, chunks, find_layout
from recloop.data.sources import InputFile
from recloop.files import JsonTree

SAMPLE_RECORDS: Final = 20_000
"""Records of the first chunk that are searched for paths, if the wanted names are given."""
MAX_DEPTH: Final = 100
"""Levels of nested objects and lists in a record."""


@dataclass(frozen=True)
class JsonRows:
    """Rows of a JSON file.

    Attributes:
        columns: Paths of all values, and the wanted names that the file has.
        frame: String columns; see `recloop.data.tables.Table`.
        broken: Reason by record number.
        records: (n,) Int64 record of each row, or None if rows are records.
    """

    layout: JsonLayout
    columns: tuple[str, ...]
    frame: pl.DataFrame
    broken: dict[int, str]
    records: pl.Series | None


class JsonColumn:
    """Decoded values at one path."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def key(self, name: str) -> JsonColumn:
        return JsonColumn([value.get(name) if type(value) is dict else None for value in self.values])

    def entry(self, name: str) -> JsonColumn:
        return JsonColumn([entry_of(value, name) for value in self.values])

    def elements(self) -> tuple[JsonColumn, Indices]:
        lists = [value if type(value) is list else () if value is None else (value,) for value in self.values]
        return JsonColumn(list(itertools.chain.from_iterable(lists))), np.fromiter(
            map(len, lists), np.int64, len(lists)
        )

    def series(self) -> pl.Series:
        return texts(self.values)


def read_json(source: InputFile, encoding: str, names: Sequence[str] | None = None) -> JsonRows:
    """Read a JSON file as a table.

    Args:
        names: Wanted keys and paths; those that no record has are left out. None: every value, with one row per
            record and lists as JSON.

    Raises:
        UserError: the file is Python text or not closed; see `recloop.data.json_records`.
    """
    layout = find_layout(source, encoding, names)
    columns: dict[str, None] = {}
    frames = []
    records = []
    broken: dict[int, str] = {}
    n_records = 0
    with _without_garbage_collection():
        for chunk in chunks(source, encoding, layout):
            values = chunk.values()
            numbers, objects = _objects(values, n_records, broken, check_depth=names is None)
            n_records += len(values)
            wanted = names
            if names is None or not columns:
                leaves = find_leaves(objects if names is None else objects[:SAMPLE_RECORDS])
                columns.update(dict.fromkeys(leaves))
                if names is None:
                    wanted = list(dict.fromkeys(leaf.path.partition(EACH)[0] for leaf in leaves.values()))
            tree = _tree(wanted or (), objects)
            try:
                rows = expand(tree, JsonColumn(objects))
            except RecursionError:
                numbers, objects = _objects(values, n_records - len(values), broken, check_depth=True)
                rows = expand(tree, JsonColumn(objects))
            frames.append(pl.DataFrame(rows.columns))
            records.append(numbers[rows.owners])
    frame = pl.concat(frames, how="diagonal")
    if names is None:
        columns = dict.fromkeys(frame.columns)
    else:
        found = [name for name in dict.fromkeys(names) if name in columns or frame[name].null_count() < len(frame)]
        frame = frame.select(found)
        columns.update(dict.fromkeys(found))
    row_records = pl.Series("record", np.concatenate(records), dtype=pl.Int64)
    is_expanded = len(row_records) > n_records - len(broken)
    return JsonRows(layout, tuple(columns), frame, broken, row_records if is_expanded else None)


def read_json_objects(source: InputFile, encoding: str) -> list[JsonTree]:
    """Records of a JSON file as typed objects, without broken ones."""
    objects: list[JsonTree] = []
    n_records = 0
    for chunk in chunks(source, encoding, find_layout(source, encoding)):
        values = chunk.values()
        objects += _objects(values, n_records, {}, check_depth=True)[1]
        n_records += len(values)
    return objects


def sample_json(source: InputFile, sampled: InputFile, encoding: str, n_rows: int) -> JsonRows:
    """Some rows of a JSON file with all its values as columns.

    The list of objects with an id that has most elements is expanded; other lists of objects are left out.

    Args:
        sampled: The file with whole lines of its beginning and middle, which is read if every line is a record.
            Otherwise the first ``n_rows`` records are read.
    """
    layout = find_layout(source, encoding)
    is_lines = layout.kind == "lines"
    broken: dict[int, str] = {}
    objects: list[JsonTree] = []
    numbers = []
    n_records = 0
    with _without_garbage_collection():
        for chunk in chunks(sampled if is_lines else source, encoding, layout):
            values = chunk.values() if is_lines else chunk.values()[: n_rows - n_records]
            chunk_numbers, chunk_objects = _objects(values, n_records, broken, check_depth=True)
            n_records += len(values)
            objects += chunk_objects
            numbers.append(chunk_numbers)
            if not is_lines and n_records >= n_rows:
                break
        leaves = find_leaves(objects)
        expanded = main_list(leaves)
        names = [path for path, leaf in leaves.items() if expanded.startswith(leaf.list)]
        rows = expand(_tree(names, objects), JsonColumn(objects))
    frame = pl.DataFrame({name: rows.columns[name] for name in names})
    records = pl.Series("record", np.concatenate(numbers)[rows.owners], dtype=pl.Int64)
    return JsonRows(layout, tuple(names), frame, broken, records if expanded else None)


def json_leaves(source: InputFile, encoding: str) -> list[Leaf]:
    """Paths of the values in the first records, with samples."""
    objects: list[JsonTree] = []
    for chunk in chunks(source, encoding, find_layout(source, encoding)):
        objects += _objects(chunk.values(), 0, {})[1]
        if len(objects) >= SAMPLE_RECORDS:
            break
    return list(find_leaves(objects[:SAMPLE_RECORDS]).values())


def _objects(
    values: list[Any], first: int, broken: dict[int, str], check_depth: bool = False
) -> tuple[Indices, list[JsonTree]]:
    """Record numbers and values of the objects; others are added to ``broken``."""
    numbers = np.arange(first, first + len(values))
    if set(map(type, values)) <= {dict} and not check_depth:
        return numbers, values
    is_object = np.fromiter((type(value) is dict for value in values), dtype=bool, count=len(values))
    for index in np.flatnonzero(~is_object).tolist():
        value = values[index]
        broken[first + index] = f"not JSON: {value}" if isinstance(value, Exception) else "not a JSON object"
    if check_depth:
        for index in np.flatnonzero(is_object).tolist():
            if _is_deep(values[index]):
                is_object[index] = False
                broken[first + index] = f"nested deeper than {MAX_DEPTH} levels"
    if is_object.all():
        return numbers, values
    return numbers[is_object], list(itertools.compress(values, is_object.tolist()))


def _is_deep(value: JsonTree) -> bool:
    """True if a value has more than `MAX_DEPTH` levels."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner = itertools.chain.from_iterable(node.values() if type(node) is dict else node for node in level)
        level = [node for node in inner if type(node) is dict or type(node) is list]
        if not level:
            return False
    return True


def _tree(names: Sequence[str], objects: list[JsonTree]) -> PathTree:
    """Tree of the wanted paths; a name with a dot may also be a key."""
    is_plain = all(name.isidentifier() for name in names)
    return PathTree.of(names, () if is_plain else dict.fromkeys(itertools.chain.from_iterable(objects)))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause the search for reference cycles, most of the time of decoding."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def texts(values: list[Any]) -> pl.Series:
    """Texts of JSON values; see `json_text`."""
    kinds = set(map(type, values))
    if kinds <= {str, type(None)}:
        return pl.Series(values, dtype=pl.String)
    if kinds <= {int, type(None)}:
        try:
            return pl.Series(values, dtype=pl.Int64).cast(pl.String)
        except (OverflowError, TypeError, pl.exceptions.PolarsError):
            pass  # an integer of more than 64 bits
    return pl.Series([value if type(value) is str else json_text(value) for value in values], dtype=pl.String)


def json_text(value: Any) -> str | None:
    """Text of a JSON value: ``1``, ``1.0`` and ``"1"`` are the same id."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**63 else repr(value)
    return str(value) if isinstance(value, int) else msgspec.json.encode(value, order="deterministic").decode()
