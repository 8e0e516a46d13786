"""Ids of a large table as one text buffer, found by binary search."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

IDS_PER_STEP = 65_536
"""Ids that an iteration decodes together."""
MIN_BULK_SHARE = 1 / 200
"""From this share of the table, ids are found by one hash join instead of binary searches."""


class PackedIds(Sequence[str]):
    """Distinct ids in a fixed order; an id takes its bytes and 8 more.

    A list and a dictionary of strings take about 150 bytes an id. A look-up takes 10 microseconds here and 0.1 there.
    """

    def __init__(self, ids: pl.Series) -> None:
        """Pack a String series without nulls."""
        self._array = ids.rechunk().to_arrow().cast(pa.string())
        _, offsets, data = self._array.buffers()
        self._offsets = np.frombuffer(offsets, dtype=np.int32, count=len(ids) + 1)
        self._data = memoryview(data if data is not None else b"")
        self._order = ids.arg_sort().to_numpy().astype(np.int32)  # by bytes

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[n] for n in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return self._bytes(int(row) % len(self)).decode()

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), IDS_PER_STEP):
            yield from self._array.slice(start, IDS_PER_STEP).to_pylist()

    def __contains__(self, raw: object) -> bool:
        return isinstance(raw, str) and self.find(raw) >= 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def find(self, raw: str) -> int:
        """Return the row of an id; -1 if it is not in the table."""
        text = _encoded(raw)
        position = bisect_left(range(len(self)), text, key=lambda n: self._bytes(int(self._order[n])))
        if position == len(self) or self._bytes(int(self._order[position])) != text:
            return -1
        return int(self._order[position])

    def find_all(self, raws: Sequence[str]) -> np.ndarray:
        """Return the rows (n,) int32 of ids, -1 where unknown."""
        if len(raws) < len(self) * MIN_BULK_SHARE:
            return np.fromiter((self.find(raw) for raw in raws), dtype=np.int32, count=len(raws))
        texts = pa.array(map(_encoded, raws), type=pa.binary())
        rows = pc.index_in(texts, value_set=self._array.cast(pa.binary()))
        found: np.ndarray = rows.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        return found

    def _bytes(self, row: int) -> bytes:
        return bytes(self._data[self._offsets[row] : self._offsets[row + 1]])


def _encoded(raw: str) -> bytes:
    """Return an id's bytes; those of a lone surrogate equal no text."""
    return raw.encode("utf-8", "surrogatepass")
