"""Temporary files of rows by shard, for logs that do not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

WRITE_OPTIONS: Final = pa.ipc.IpcWriteOptions(compression="lz4")
MAX_PENDING_ROWS: Final = 1 << 20
"""Rows that are kept in memory before they are written."""


class Shards:
    """Rows of numbered shards in one folder, each in one file of Arrow batches.

    Args:
        folder: An empty or new folder.
        n_shards: Number of shards.
    """

    def __init__(self, folder: Path, n_shards: int) -> None:
        self.folder = folder
        self.n_shards = n_shards
        self._writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
        self._pending: list[pl.DataFrame] = []
        self._n_pending = 0
        folder.mkdir(parents=True)

    def append(self, frame: pl.DataFrame, shard_of_row: pl.Series) -> None:
        """Add rows to their shards, given by number in ``shard_of_row`` (n,)."""
        self._pending.append(frame.with_columns(shard_of_row.cast(pl.UInt32).alias("shard")))
        self._n_pending += len(frame)
        if self._n_pending >= MAX_PENDING_ROWS:
            self._flush()

    def close(self) -> None:
        """Write the pending rows and close the files."""
        self._flush()
        self.release()

    def release(self) -> None:
        """Close the files without the pending rows."""
        self._pending.clear()
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def rows(self, shard: int, columns: Sequence[str] | None = None) -> pl.DataFrame | None:
        """Rows of a shard in the order in which they were added; None without rows."""
        path = self._path(shard)
        if not path.exists():
            return None
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all()
            frame = pl.from_arrow(table if columns is None else table.select(columns), rechunk=True)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Yield the rows of each shard that has rows."""
        for shard in range(self.n_shards):
            frame = self.rows(shard)
            if frame is not None:
                yield frame

    def remove(self, shard: int) -> None:
        """Delete the file of a shard."""
        self._path(shard).unlink(missing_ok=True)

    def _flush(self) -> None:
        if not self._n_pending:
            return
        rows = pl.concat(self._pending)
        self._pending.clear()
        self._n_pending = 0
        for (shard,), part in rows.partition_by("shard", as_dict=True, include_key=False, maintain_order=True).items():
            table = part.rechunk().to_arrow()
            writer = self._writers.get(shard)
            if writer is None:
                writer = pa.ipc.new_stream(str(self._path(shard)), table.schema, options=WRITE_OPTIONS)
                self._writers[shard] = writer
            writer.write_table(table)

    def _path(self, shard: int) -> Path:
        return self.folder / f"{shard:05}.arrow"
