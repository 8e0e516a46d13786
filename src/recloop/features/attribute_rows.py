"""Attributes of a large table, kept as compressed JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import msgspec
import polars as pl
import pyarrow as pa

from recloop.files import AttributeValues

ROWS_PER_BLOCK = 2_048
"""Rows that are compressed and decoded together."""


class AttributeRows(Sequence[AttributeValues]):
    """Attributes by row, decoded by block when they are read.

    The last block stays decoded. A million decoded rows of six attributes take about 500 MB, and about 10 MB as compressed JSON.
    """

    def __init__(self, texts: pl.Series) -> None:
        """Compress the rows of a String series of JSON objects."""
        self._size = len(texts)
        self._blocks: list[tuple[int, bytes]] = []  # size before compression, and bytes
        for start in range(0, self._size, ROWS_PER_BLOCK):
            text = f"[{','.join(texts[start : start + ROWS_PER_BLOCK].to_list())}]".encode()
            self._blocks.append((len(text), pa.compress(text, codec="zstd", asbytes=True)))
        self._last: tuple[int, list[AttributeValues]] = (-1, [])

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, row: int) -> AttributeValues: ...
    @overload
    def __getitem__(self, row: slice) -> list[AttributeValues]: ...
    def __getitem__(self, row: int | slice) -> AttributeValues | list[AttributeValues]:
        if isinstance(row, slice):
            return [self[n] for n in range(*row.indices(self._size))]
        if not -self._size <= row < self._size:
            raise IndexError(row)
        block, n = divmod(int(row) % self._size, ROWS_PER_BLOCK)
        number, rows = self._last
        if number != block:
            rows = self._decoded(block)
            self._last = (block, rows)
        return rows[n]

    def __iter__(self) -> Iterator[AttributeValues]:
        for block in range(len(self._blocks)):
            yield from self._decoded(block)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def _decoded(self, block: int) -> list[AttributeValues]:
        size, data = self._blocks[block]
        text = pa.decompress(data, decompressed_size=size, codec="zstd", asbytes=True)
        rows: list[AttributeValues] = msgspec.json.decode(text)
        return rows
