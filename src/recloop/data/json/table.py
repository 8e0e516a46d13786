"""Text columns of JSON records, by keys and by paths of nested keys and lists."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from recloop.data.json.leaves import Leaf, find_leaves, main_list
from recloop.data.json.paths import EACH, Indices, PathTree, expand
from recloop.data.json.records import Chunk, JsonLayout, chunks, find_layout
from recloop.data.json.typed import TypedColumn, ValueType, value_type
from recloop.data.json.values import JsonColumn
from recloop.data.sources import InputFile
from recloop.errors import UserError
from recloop.files import JsonTree

SAMPLE_RECORDS: Final = 20_000
"""Records of the first chunk that are searched for paths, if the wanted names are given."""
MAX_SAMPLE_BYTES: Final = 1 << 25
"""Text of a sample; a record may hold thousands of elements."""
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
        is_part: The file has further records, which were not read.
    """

    layout: JsonLayout
    columns: tuple[str, ...]
    frame: pl.DataFrame
    broken: dict[int, str]
    records: pl.Series | None
    is_part: bool = False


def read_json(source: InputFile, encoding: str, names: Sequence[str] | None = None) -> JsonRows:
    """Read a JSON file as a table.

    Args:
        names: Wanted keys and paths; those that no record has are left out. None: every value, with one row per
            record and lists as JSON.

    Raises:
        UserError: the file is Python text or not closed; see `recloop.data.json.records`.
    """
    layout = find_layout(source, encoding, names)
    reader = _ChunkReader(names)
    frames = []
    records = []
    broken: dict[int, str] = {}
    n_records = 0
    with _without_garbage_collection():
        for chunk in chunks(source, encoding, layout):
            rows = reader.read(chunk, n_records, broken)
            frames.append(pl.DataFrame(rows.columns))
            records.append(rows.owners + n_records)
            n_records += rows.n_records
    frame = pl.concat(frames, how="diagonal")
    columns = dict.fromkeys(frame.columns)
    if names is not None:
        found = reader.found(frame)
        frame = frame.select(found)
        columns = dict.fromkeys([*reader.columns, *found])
    row_records = pl.Series("record", np.concatenate(records), dtype=pl.Int64)
    is_expanded = len(row_records) > n_records - len(broken)
    return JsonRows(layout, tuple(columns), frame, broken, row_records if is_expanded else None)


def json_blocks(source: InputFile, encoding: str, names: Sequence[str]) -> Iterator[JsonRows]:
    """Yield the rows of `read_json` in blocks, each with the columns of the first one.

    Record numbers count from the first record of the block.

    Raises:
        UserError: see `read_json`; or a column has its first value after the first block.
    """
    layout = find_layout(source, encoding, names)
    reader = _ChunkReader(names)
    columns: tuple[str, ...] = ()
    schema: dict[str, pl.DataType] = {}
    for chunk in chunks(source, encoding, layout):
        broken: dict[int, str] = {}
        with _without_garbage_collection():
            rows = reader.read(chunk, 0, broken)
        if not rows.n_records:
            continue
        frame = pl.DataFrame(rows.columns)
        found = reader.found(frame)
        if not schema:
            schema = dict.fromkeys(found, pl.String())
            columns = tuple(dict.fromkeys([*reader.columns, *found]))
        if not set(found) <= set(schema):
            expected = f"the columns of the first records, {', '.join(schema)}"
            raise UserError(source.key, source.name, expected, "recloop prepare")
        frame = pl.concat([pl.DataFrame(schema=schema), frame], how="diagonal").select(*schema)
        yield JsonRows(layout, columns, frame, broken, pl.Series("record", rows.owners, dtype=pl.Int64))


class _ChunkReader:
    """Reader of the chunks of one file, all decoded as the first one.

    Attributes:
        columns: Paths of the values in the first records, if there are wanted names.
    """

    def __init__(self, names: Sequence[str] | None) -> None:
        self.columns: dict[str, None] = {}
        self._names = names
        self._tree = PathTree()
        self._kind: ValueType | None = None

    def read(self, chunk: Chunk, first: int, broken: dict[int, str]) -> _ChunkRows:
        """Return the rows of a chunk and add the reasons of unreadable records.

        Args:
            first: Number of the chunk's first record.
        """
        if self._names is not None and self._kind is None:
            objects = [value for value in chunk.values() if type(value) is dict]
            self.columns = dict.fromkeys(find_leaves(objects[:SAMPLE_RECORDS]))
            self._tree = _tree(self._names, objects)
            self._kind = value_type(self._tree)
        typed = self._kind and _typed_rows(chunk, self._tree, self._kind)
        return typed or _all_rows(chunk, self._names, first, broken)

    def found(self, frame: pl.DataFrame) -> list[str]:
        """Return the wanted names that the first records or a row of the frame have."""
        wanted = dict.fromkeys(self._names or ())
        return [
            name
            for name in wanted
            if name in self.columns or (name in frame.columns and frame[name].null_count() < len(frame))
        ]


@dataclass(frozen=True)
class _ChunkRows:
    """Columns by path, the record of each row, and the number of records."""

    columns: dict[str, pl.Series]
    owners: Indices
    n_records: int


def _typed_rows(chunk: Chunk, tree: PathTree, kind: ValueType) -> _ChunkRows | None:
    """Rows of the wanted values of a chunk; None if a value has another type."""
    if not kind.fields:
        return None
    values = chunk.decode(type(kind.empty))
    if values is None:
        return None
    try:
        rows = expand(tree, TypedColumn(values, kind))
    except RecursionError:
        return None
    return _ChunkRows(rows.columns, rows.owners, len(values))


def _all_rows(chunk: Chunk, names: Sequence[str] | None, first: int, broken: dict[int, str]) -> _ChunkRows:
    """Rows of a chunk; the reasons of unreadable records are added to ``broken``."""
    values = chunk.values()
    numbers, objects = _objects(values, first, broken, check_depth=names is None)
    if names is None:
        paths = dict.fromkeys(path.partition(EACH)[0] for path in find_leaves(objects))
        tree = _tree(list(paths), objects)
    else:
        tree = _tree(names, objects)
    try:
        rows = expand(tree, JsonColumn(objects))
    except RecursionError:
        numbers, objects = _objects(values, first, broken, check_depth=True)
        rows = expand(tree, JsonColumn(objects))
    return _ChunkRows(rows.columns, numbers[rows.owners] - first, len(values))


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
            Otherwise the first ``n_rows`` records are read, of at most `MAX_SAMPLE_BYTES` of text.
    """
    layout = find_layout(source, encoding)
    is_lines = layout.kind == "lines"
    broken: dict[int, str] = {}
    objects: list[JsonTree] = []
    numbers = []
    n_records = n_bytes = 0
    is_part = False
    with _without_garbage_collection():
        for chunk in chunks(sampled if is_lines else source, encoding, layout):
            is_part = not is_lines and (n_records >= n_rows or n_bytes >= MAX_SAMPLE_BYTES)
            if is_part:
                break
            n_bytes += len(chunk.text)
            values = chunk.values()
            chunk_numbers, chunk_objects = _objects(values, n_records, broken, check_depth=True)
            n_records += len(values)
            objects += chunk_objects
            numbers.append(chunk_numbers)
        if is_lines and source.packing is not None:
            is_part = n_bytes >= 0.9 * sampled.sample_bytes
        leaves = find_leaves(objects)
        expanded = main_list(leaves)
        names = [path for path, leaf in leaves.items() if expanded.startswith(leaf.list)]
        rows = expand(_tree(names, objects), JsonColumn(objects))
    frame = pl.DataFrame({name: rows.columns[name] for name in names})
    records = pl.Series("record", np.concatenate(numbers)[rows.owners], dtype=pl.Int64)
    return JsonRows(layout, tuple(names), frame, broken, records if expanded else None, is_part)


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
