"""Labelled valid rows of ``data/``: a first run's split and parts of updates.

    split/train.parquet valid.parquet test.parquet   base: written by `prepare`
    split/rows-FROM-TO.parquet                       base of an update that labelled all rows again, or
                                                     part: the new rows of one update
    split/dropped-TO.parquet                         seqs of rows in them that were removed since

An earlier row keeps its label and its stamp when rows follow, because both depend on rows with smaller seqs only
(`recloop.features.moments`). So an update writes its new rows and the seqs of removed ones, and reads nothing else of the
users without new rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow.parquet

from recloop.data.clean import LABELLED
from recloop.data.split import SplitFrames, holdout_rows, n_users
from recloop.errors import UserError
from recloop.features.learned_range import NewWindow
from recloop.records import (
    EVENT_TYPE,
    GROUP_ID,
    ITEM_ID,
    LABEL,
    MOMENT,
    PAIR,
    SEQ,
    STAMP,
    TIMESTAMP,
    UNITS,
    USE,
    USER_ID,
    WEIGHT,
)
from recloop.storage.data_manifest import DataManifest

COLUMNS: Final = tuple(name for name in LABELLED if name != MOMENT)
TRAINING_COLUMNS: Final = (
    SEQ, USER_ID, ITEM_ID, TIMESTAMP, EVENT_TYPE, GROUP_ID, "request_id", STAMP, LABEL, WEIGHT, USE, PAIR, UNITS,
)  # fmt: skip
"""Columns that training, states and queries read."""
SPLIT: Final = "split"
DROPPED_PREFIX: Final = f"{SPLIT}/dropped-"
UPDATE_FORMAT: Final = 3
"""``format`` of a manifest with the files of an update; earlier versions read only the split of a first run."""


class LabelledLog:
    """Labelled valid rows without dropped ones, read from one or two folders.

    Args:
        data: Folder with the manifest.
        fallback_folder: Folder of the files that ``data`` lacks.

    Raises:
        UserError: a file is missing or damaged.
    """

    def __init__(self, data: Path, fallback_folder: Path | None = None, manifest: DataManifest | None = None) -> None:
        self.manifest = manifest or DataManifest.read(data)
        self._folders = [folder for folder in (data, fallback_folder) if folder is not None]

    @property
    def has_parts(self) -> bool:
        """True if an update wrote the rows, so that train, valid and test are not files."""
        return self.manifest.format == UPDATE_FORMAT

    @property
    def row_files(self) -> list[str]:
        """Paths of the files with rows in ``data/``."""
        return [name for name in self.manifest.files_in(SPLIT) if not name.startswith(DROPPED_PREFIX)]

    @cached_property
    def dropped(self) -> pl.Series:
        """Seqs of the removed rows, ascending int64."""
        files = [name for name in self.manifest.files_in(SPLIT) if name.startswith(DROPPED_PREFIX)]
        frames = [self.table(name) for name in files]
        return frames[0][SEQ] if frames else pl.Series(SEQ, [], dtype=pl.Int64)

    @cached_property
    def items(self) -> pl.DataFrame | None:
        """All item versions; None without a catalog."""
        return self.table("items.parquet") if "items.parquet" in self.manifest.files else None

    @cached_property
    def users(self) -> pl.DataFrame | None:
        """All user versions; None without user attributes."""
        return self.table("users.parquet") if "users.parquet" in self.manifest.files else None

    @property
    def window(self) -> NewWindow:
        """Window of the test; its counts of moments are not stored."""
        return NewWindow(self.manifest.cut, self.manifest.held_seq or 0, late=0, fresh=0)

    @cached_property
    def events(self) -> pl.DataFrame:
        """All rows with `TRAINING_COLUMNS`, in seq order."""
        return self.rows(TRAINING_COLUMNS)

    @cached_property
    def test(self) -> pl.DataFrame:
        """Rows of the tested moments, in seq order."""
        return self.where(pl.col(STAMP) >= self.window.cut).filter(self.window.tested)

    @cached_property
    def past(self) -> pl.DataFrame:
        """All other rows with `TRAINING_COLUMNS`, in seq order."""
        return self.events.filter(~pl.col(SEQ).is_in(self.test[SEQ].implode()))

    def rows(self, columns: Sequence[str] = COLUMNS) -> pl.DataFrame:
        """All rows in seq order; the checksum of every page is verified."""
        return _in_seq_order(self.unordered_rows(columns))

    def unordered_rows(self, columns: Sequence[str]) -> pl.DataFrame:
        """All rows, file by file; rows of two calls are in the same order."""
        frames = [self.table(name, [*columns, *({SEQ} - {*columns})]) for name in self.row_files]
        return self._without_dropped(pl.concat(frames)).select(columns)

    def where(self, condition: pl.Expr, columns: Sequence[str] = COLUMNS) -> pl.DataFrame:
        """Rows that meet a condition, in seq order; only these are decoded completely."""
        scans = [pl.scan_parquet(self._path(name)).select(columns).filter(condition) for name in self.row_files]
        try:
            rows = pl.concat(scans).collect()
        except pl.exceptions.PolarsError:
            for name in self.row_files:
                self.table(name)  # names the damaged file
            raise
        return _in_seq_order(self._without_dropped(rows))

    def table(self, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Read a file of ``data/``; the checksum of every page is verified."""
        path = self._path(name)
        selected = None if columns is None else list(columns)
        try:
            with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
                table = file.read(columns=selected)  # `read_table` would import pandas where it is installed
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError("data", path, f"a complete file ({error})", "recloop prepare") from None
        frame = pl.from_arrow(table)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def _without_dropped(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.filter(~pl.col(SEQ).is_in(self.dropped.implode())) if len(self.dropped) else rows

    def _path(self, name: str) -> Path:
        paths = [folder / name for folder in self._folders]
        return next((path for path in paths if path.exists()), paths[-1])


def _in_seq_order(rows: pl.DataFrame) -> pl.DataFrame:
    """Sort rows by seq; the files of updates are in order already."""
    return rows if rows[SEQ].is_sorted() else rows.sort(SEQ)


def split_at(labelled: pl.DataFrame, window: NewWindow, max_validation_users: int) -> SplitFrames:
    """Split the labelled log at a window.

    The moments of the window are the test; the others are train and valid.
    """
    marked = labelled.sort(SEQ).with_columns(window.tested.alias("tested"))
    past, test = (marked.filter(condition).drop("tested") for condition in (~pl.col("tested"), pl.col("tested")))
    holdout = holdout_rows(past, max_validation_users, n_users(labelled) // 2)
    keys = [USER_ID, STAMP]
    valid = past.join(holdout, on=keys, how="semi", maintain_order="left")
    return SplitFrames(past.join(holdout, on=keys, how="anti", maintain_order="left"), valid, test, window.cut)
