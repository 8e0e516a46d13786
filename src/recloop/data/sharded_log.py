"""Log on disk in shards: by user for cleaning, by day for writing.

Results equal those of `recloop.data.clean` and `recloop.data.split` on the whole log. Rules, moments and undos need the
rows of one user; what needs all rows (numbers by time, repeated event ids, percentiles, the cut) uses one integer a row.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet
from numpy.typing import NDArray

from recloop.config import LEAVE_ONE_OUT, Config
from recloop.data.atomic_folder import AtomicFolder, with_columns_of
from recloop.data.clean import (
    LABELLED,
    QUARANTINED,
    RULES,
    check_conditions,
    excessive_rules,
    rule_of_rows,
    with_moments,
)
from recloop.data.event_blocks import EventBlocks, is_streamable
from recloop.data.forgotten_rows import FORGOTTEN, leave_out
from recloop.data.log_counts import LogCounts
from recloop.data.read import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, RawEvents
from recloop.data.shards import Shards
from recloop.data.sources import InputFile
from recloop.data.split import HoldoutCandidates, SplitFacts, check_past, cut_index
from recloop.data.staging import SPLITS
from recloop.errors import UserError
from recloop.features.clock_rule import received_by
from recloop.features.dwell import DWELL, DwellPercentiles
from recloop.features.labels import EventLabeler
from recloop.features.log_end import robust_end
from recloop.records import (
    DAY,
    EVENT_ID,
    EVENT_SCHEMA,
    EVENT_TYPE,
    ITEM_ID,
    LABEL,
    PAIR,
    RULE,
    SEQ,
    STAMP,
    TIMESTAMP,
    UNITS,
    USE,
    USER_ID,
    VALUE,
    WEIGHT,
)
from recloop.storage.forgotten import ForgottenUsers

MIN_SHARDED_BYTES: Final = 1 << 28
"""Size of ``data.events`` from which a log is cleaned in shards; about five million rows of a text table."""
SHARD_BYTES: Final = 1 << 26
"""Text of the rows of one shard."""
PACKED_RATIO: Final = 5
"""Bytes of text per byte of a packed file."""
ROW_BYTES: Final = 48
"""Bytes of text per row of a Parquet file."""
DAY_ROWS: Final = 1 << 20
"""Rows of consecutive days that are sorted and written together; a day is never divided."""
N_SAMPLES: Final = 3
ROW: Final = "row"


def can_shard(config: Config, sources: Sequence[InputFile]) -> bool:
    """True if a log is large and its rows can be read and cleaned user by user."""
    size = sum(map(text_bytes, sources))
    is_by_user = config.split.k_core <= 1 and config.split.protocol != LEAVE_ONE_OUT
    return size >= MIN_SHARDED_BYTES and is_by_user and is_streamable(config.data)


def text_bytes(source: InputFile) -> int:
    """Estimated size of the rows of a file as plain text."""
    if source.packing is not None:
        return PACKED_RATIO * source.n_bytes
    if source.kind != "parquet":
        return source.n_bytes
    try:
        return ROW_BYTES * int(pyarrow.parquet.read_metadata(source.path).num_rows)
    except (pa.ArrowException, OSError):
        return 0  # the reader of whole files names the damage


def days_of(valid_rows: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Yield each day of valid rows with its events (EVENT_SCHEMA), oldest first."""
    date = pl.from_epoch(TIMESTAMP, time_unit="us").dt.strftime("%Y-%m-%d").alias("date")
    rows = with_columns_of(EVENT_SCHEMA, valid_rows).with_columns(date)
    for (day,), day_rows in sorted(rows.partition_by("date", as_dict=True, include_key=False).items()):
        yield day, day_rows


@dataclass(frozen=True)
class CleanedShards:
    """Counts of a log that was cleaned in shards.

    Attributes:
        counts: Counts of the valid rows.
        removed: Rows by rule, in the order of `RULES`.
        samples: QUARANTINED, at least the first three rows of each rule, in seq order.
        last_seq: Last seq of the import.
        excessive: See `recloop.data.clean.CleanResult`.
        dwell: Dwell percentiles.
        stamps: (rows,) int64 timestamps of the valid rows, in any order.
    """

    counts: LogCounts
    removed: dict[str, int]
    samples: pl.DataFrame
    last_seq: int
    excessive: tuple[UserError, ...]
    dwell: DwellPercentiles | None
    stamps: NDArray[np.int64]


@dataclass(frozen=True)
class SplitRows:
    """Cut (us), and user_id and stamp of the moments held out for validation."""

    cut: int
    holdout: pl.DataFrame


class ShardedLog:
    """Rows of a large log in temporary files.

    Call `read`, `clean`, `split` and `write` in this order.
    """

    def __init__(self, folder: Path, n_shards: int, config: Config, forgotten: ForgottenUsers) -> None:
        self._folder = folder
        self._forgotten = forgotten
        self._config = config
        self._columns = [
            name
            for name in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
            if name in REQUIRED_COLUMNS or name == EVENT_TYPE or getattr(config.data.columns, name)
        ]
        self._users = Shards(folder / "users", n_shards)
        self._days = Shards(folder / "days", 0)
        self._removed = Shards(folder / "removed", 0)
        self._acts = Shards(folder / "acts", n_shards)
        self._stamps = np.zeros(0, dtype=np.int64)
        self._event_hashes = np.zeros(0, dtype=np.uint64)
        self._has_dwell = False
        self._day_starts = np.zeros(0, dtype=np.int64)

    @classmethod
    def open(cls, folder: Path, sources: Sequence[InputFile], config: Config, forgotten: ForgottenUsers) -> ShardedLog:
        """Empty log with shards for the size of the files."""
        n_bytes = sum(map(text_bytes, sources))
        return cls(folder, max(1, -(-n_bytes // SHARD_BYTES)), config, forgotten)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Delete the temporary files."""
        for shards in (self._users, self._days, self._removed, self._acts):
            shards.release()
        shutil.rmtree(self._folder, ignore_errors=True)

    def read(self, blocks: EventBlocks) -> RawEvents:
        """Divide the events by user; the result has rejects and counts without events."""
        stamps, event_hashes = [self._stamps], [self._event_hashes]
        first = 0
        for frame in blocks:
            rows = frame.select(self._columns).with_columns(pl.int_range(first, first + len(frame)).alias(ROW))
            first += len(rows)
            self._users.append(rows, rows[USER_ID].hash(0) % self._users.n_shards)
            stamps.append(rows[TIMESTAMP].to_numpy())
            self._has_dwell |= bool((rows[EVENT_TYPE] == DWELL).any())
            if EVENT_ID in self._columns:
                event_hashes.append(rows[EVENT_ID].drop_nulls().hash(0).to_numpy())
        self._users.close()
        self._stamps = np.concatenate(stamps)
        self._event_hashes = np.concatenate(event_hashes)
        return blocks.raw()

    def clean(self, after: int, items: pl.DataFrame | None) -> CleanedShards:
        """Apply the cleaning rules; see `recloop.data.clean.clean`."""
        config = self._config
        check_conditions(config)
        signal = EventLabeler(config.events, config.clean)
        end = robust_end(self._stamps, self._user_of_row)
        seqs = self._number(after)
        repeated = self._repeated(seqs)
        dwell = self._fit_dwell(signal, seqs, end, repeated, items) if self._has_dwell else None
        labeler = EventLabeler(config.events, config.clean, dwell)
        counts, stamps, samples = [], [np.zeros(0, dtype=np.int64)], [pl.DataFrame(schema=QUARANTINED)]
        removed: dict[str, int] = {}
        for shard in range(self._users.n_shards):
            numbered = self._numbered(shard, seqs, end)
            if numbered is None:
                continue
            rule = rule_of_rows(numbered, signal, config, numbered[SEQ].is_in(repeated.implode()))
            valid = with_moments(labeler.label(numbered.filter(rule.is_null())), config).select(*LABELLED)
            quarantine = numbered.with_columns(rule.alias(RULE)).filter(rule.is_not_null()).select(*QUARANTINED)
            valid, quarantine, left_out = leave_out(self._forgotten, valid, quarantine, {}, after + len(seqs))
            for name, rows in left_out.items():
                removed[name] = removed.get(name, 0) + rows
            self._keep(shard, valid, quarantine)
            self._users.remove(shard)
            counts.append(LogCounts.of(valid, config))
            stamps.append(valid[TIMESTAMP].to_numpy())
            for name, rows in quarantine.group_by(RULE).len().iter_rows():
                removed[name] = removed.get(name, 0) + rows
            samples.append(quarantine.filter(pl.int_range(pl.len()).over(RULE) < N_SAMPLES))
        for shards in (self._days, self._removed, self._acts):
            shards.close()
        first_rows = pl.concat(samples).sort(SEQ)
        readable = len(seqs)
        names = (*(info.name for info in RULES), FORGOTTEN)
        removed = {name: removed[name] for name in names if name in removed}
        errors = excessive_rules(first_rows, removed, readable, config.clean.max_removed)
        total = LogCounts.total(counts)
        return CleanedShards(total, removed, first_rows, after + readable, tuple(errors), dwell, np.concatenate(stamps))

    def split(self, cleaned: CleanedShards) -> SplitRows:
        """Find the cut and the validation moments; see `recloop.data.split.temporal`."""
        config = self._config.split
        cut = _at_cut(cleaned.stamps, config.quantile)
        parts, n_past, n_positive = [], 0, 0
        for rows in self._acts:
            past = rows.filter(pl.col(STAMP) < cut)
            n_past += len(past)
            n_positive += int((past[LABEL] > 0).sum())
            parts.append(HoldoutCandidates.of(past))
        counts = cleaned.counts
        check_past(
            SplitFacts(counts.rows, counts.has_positive, counts.first == counts.last), n_past, n_positive, config
        )
        n_users = min(config.validation_users, len(counts.of_users) // 2)
        return SplitRows(cut, HoldoutCandidates.total(parts).chosen(n_users))

    def write(self, files: AtomicFolder, split_rows: SplitRows) -> dict[str, int]:
        """Write days, splits and quarantine in seq order; return the rows of each split."""
        splits = {name: files.stream(f"split/{name}.parquet", LABELLED) for name in SPLITS}
        quarantine = files.stream("quarantine.parquet", QUARANTINED)
        keys = [USER_ID, STAMP]
        try:
            for number in range(len(self._day_starts)):
                rows = self._days.rows(number)
                if rows is not None:
                    rows = rows.sort(SEQ)
                    past = rows.filter(pl.col(STAMP) < split_rows.cut)
                    splits["test"].append(rows.filter(pl.col(STAMP) >= split_rows.cut))
                    for name, how in (("valid", "semi"), ("train", "anti")):
                        part = past.join(split_rows.holdout, on=keys, how=how, maintain_order="left")  # type: ignore[arg-type]
                        splits[name].append(part)
                    for day, day_rows in days_of(rows):
                        files.table(f"archive/date={day}/events.parquet", day_rows)
                    files.drain()
                removed = self._removed.rows(number)
                if removed is not None:
                    quarantine.append(removed.sort(SEQ))
            for name, stream in splits.items():
                files.finished(f"split/{name}.parquet", stream)
            files.finished("quarantine.parquet", quarantine)
        finally:
            for stream in (*splits.values(), quarantine):
                stream.abort()
        return {name: stream.rows for name, stream in splits.items()}

    # -- steps

    def _user_of_row(self) -> pl.Series:
        """(n,) user of each row; read only if the end of the log depends on users."""
        parts = [rows.select(ROW, USER_ID) for rows in self._users]
        return pl.concat(parts).sort(ROW)[USER_ID]

    def _number(self, after: int) -> NDArray[np.int64]:
        """(n,) seq of each row by time.

        It also sets the first days of the parts that are written together.
        """
        order = np.argsort(self._stamps, kind="stable")
        seqs = np.empty(len(order), dtype=np.int64)
        seqs[order] = np.arange(after + 1, after + 1 + len(order))
        ascending = self._stamps[order]
        del order
        starts = []
        row = 0
        while row < len(ascending):
            starts.append(int(ascending[row]) // DAY * DAY)
            last = min(row + DAY_ROWS, len(ascending)) - 1
            row = int(np.searchsorted(ascending, (int(ascending[last]) // DAY + 1) * DAY))
        self._day_starts = np.array(starts, dtype=np.int64)
        self._stamps = np.zeros(0, dtype=np.int64)
        return seqs

    def _numbered(self, shard: int, seqs: NDArray[np.int64], end: int) -> pl.DataFrame | None:
        """Rows of a shard (EVENT_SCHEMA) in seq order; None without rows."""
        rows = self._users.rows(shard)
        if rows is None:
            return None
        rows = rows.with_columns(pl.Series(SEQ, seqs[rows[ROW].to_numpy()])).sort(SEQ)
        return with_columns_of(EVENT_SCHEMA, received_by(rows, end))

    def _repeated(self, seqs: NDArray[np.int64]) -> pl.Series:
        """Seqs of the rows with the event_id of an earlier row.

        Only ids with equal hashes are compared.
        """
        hashes = np.sort(self._event_hashes)
        self._event_hashes = hashes[:0]
        shared = pl.Series(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
        del hashes
        if not len(shared):
            return pl.Series(SEQ, [], dtype=pl.Int64)
        parts = []
        for shard in range(self._users.n_shards):
            rows = self._users.rows(shard, [ROW, EVENT_ID])
            if rows is not None:
                is_shared = rows[EVENT_ID].hash(0).is_in(shared.implode()) & rows[EVENT_ID].is_not_null()
                parts.append(rows.filter(is_shared))
        candidates = pl.concat(parts)
        candidates = candidates.with_columns(pl.Series(SEQ, seqs[candidates[ROW].to_numpy()])).sort(SEQ)
        return candidates.filter(~candidates[EVENT_ID].is_first_distinct())[SEQ]

    def _fit_dwell(
        self, signal: EventLabeler, seqs: NDArray[np.int64], end: int, repeated: pl.Series, items: pl.DataFrame | None
    ) -> DwellPercentiles | None:
        """Percentiles of the dwells before the cut that no rule removes."""
        stamps, dwells = [], []
        for shard in range(self._users.n_shards):
            numbered = self._numbered(shard, seqs, end)
            if numbered is not None:
                rule = rule_of_rows(numbered, signal, self._config, numbered[SEQ].is_in(repeated.implode()))
                kept = numbered.filter(rule.is_null())
                stamps.append(kept[TIMESTAMP].to_numpy())
                is_dwell = pl.col(EVENT_TYPE) == DWELL
                dwells.append(kept.filter(is_dwell).select(ITEM_ID, EVENT_TYPE, VALUE, TIMESTAMP))
        rows = pl.concat(dwells)
        if not len(rows):
            return None
        cut = _at_cut(np.concatenate(stamps), self._config.split.quantile)
        return DwellPercentiles.fit(rows.filter(pl.col(TIMESTAMP) < cut), items)

    def _keep(self, shard: int, valid: pl.DataFrame, quarantine: pl.DataFrame) -> None:
        """Write the rows of a shard by day, and its acts for `split`."""
        absent = [name for name in EVENT_SCHEMA if name not in (*self._columns, SEQ, "received_at")]
        self._days.append(valid.drop(absent), self._day_of(valid))
        self._removed.append(quarantine.drop(absent), self._day_of(quarantine))
        acts = valid.select(USER_ID, ITEM_ID, STAMP, LABEL, WEIGHT, USE, PAIR, UNITS)
        self._acts.append(acts, pl.Series([shard], dtype=pl.UInt32).new_from_index(0, len(acts)))

    def _day_of(self, rows: pl.DataFrame) -> pl.Series:
        return pl.Series(np.searchsorted(self._day_starts, rows[TIMESTAMP].to_numpy(), side="right") - 1)


def _at_cut(stamps: NDArray[np.int64], quantile: float) -> int:
    index = cut_index(len(stamps), quantile)
    return int(np.partition(stamps, index)[index])
