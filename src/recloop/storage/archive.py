"""Archive: read access to the prepared rows in ``data/``."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final, NamedTuple

import polars as pl
import pyarrow.parquet

from recloop.errors import UserError
from recloop.records import EPOCH, EVENT_SCHEMA, RULE, SEQ, TIMESTAMP, USER_ID, Event
from recloop.storage.archived_ids import ArchivedIds
from recloop.storage.data_manifest import DataManifest
from recloop.storage.forgotten import ForgottenUsers

MAX_INT: Final = 2**63 - 1
NO_ROWS: Final = pl.DataFrame(schema={**EVENT_SCHEMA, RULE: pl.String})


class FileSpan(NamedTuple):
    """File of events, with its first and last seq and its newest timestamp."""

    file: Path
    first: int
    last: int
    newest: int

    @classmethod
    def read(cls, file: Path) -> FileSpan:
        """Read the statistics of a Parquet file; without statistics the span is open."""
        metadata = pyarrow.parquet.read_metadata(file)
        names = metadata.schema.names
        bounds: dict[str, list[int]] = {SEQ: [], TIMESTAMP: []}
        for group in range(metadata.num_row_groups):
            for name, values in bounds.items():
                statistics = metadata.row_group(group).column(names.index(name)).statistics
                if statistics is None or not statistics.has_min_max:
                    return cls(file, 0, MAX_INT, MAX_INT)
                values.extend((statistics.min, statistics.max))
        if not bounds[SEQ]:
            return cls(file, 0, -1, 0)
        return cls(file, min(bounds[SEQ]), max(bounds[SEQ]), max(bounds[TIMESTAMP]))


class Archive:
    """Read-only view of ``data/`` as written by `prepare` or an update.

    An update may append while the archive is open; rows after its watermark are ignored, and so are rows of forgotten
    users that an update has yet to remove.

    Raises:
        UserError: no data was prepared yet.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self.manifest = DataManifest.read(data)
        self.forgotten = ForgottenUsers.read(data.parent)
        self._ids: ArchivedIds | None = None
        self._spans: list[FileSpan] | None = None
        self._newest = 0

    @property
    def watermark(self) -> int:
        """Last seq in the archive."""
        return self.manifest.watermark

    def events(self) -> pl.DataFrame:
        """All valid events by seq: EVENT_SCHEMA."""
        return self.forgotten.without(self._believed().collect()).sort(SEQ)

    def items(self) -> pl.DataFrame | None:
        """All item versions; None without a catalog."""
        return self._table("items.parquet")

    def users(self) -> pl.DataFrame | None:
        """All user versions; None without user attributes."""
        users = self._table("users.parquet")
        return None if users is None else self.forgotten.without(users)

    def quarantine(self) -> pl.DataFrame:
        """Rows quarantined by a rule, by seq: EVENT_SCHEMA + rule."""
        return self.forgotten.without(self._quarantined().collect()).sort(SEQ)

    def load_ids(self) -> None:
        """Open the look-up of ids and the spans of the files; write what is missing.

        Call it before a transaction or a request needs them: the first time reads the ids of all rows.
        """
        self.open_ids()
        self._spans = [FileSpan.read(file) for files in self._days().values() for file in files]
        quarantined = self._quarantined().filter(pl.col(RULE) != "clock").select(pl.col(TIMESTAMP).max()).collect()
        self._newest = max([quarantined.item() or 0, *(span.newest for span in self._spans)])

    def open_ids(self) -> ArchivedIds:
        """Open the look-up of ids; write what is missing of it."""
        if self._ids is None:
            self._ids = ArchivedIds.open(self.data, self._rows_after, self.watermark)
        return self._ids

    def known(self, event_ids: Sequence[str]) -> dict[str, Event]:
        """Events with one of these event_ids, by event_id; the first of several.

        Without a match no row is read; otherwise only the files with a match.
        """
        seqs = self.open_ids().seqs_of(event_ids) if event_ids else []
        if not seqs:
            return {}
        files = [
            span.file for span in self._loaded_spans() if bisect_left(seqs, span.first) < bisect_right(seqs, span.last)
        ]
        rows = pl.concat([self._scan(files), self._quarantined().select(*EVENT_SCHEMA)])
        is_asked = pl.col(SEQ).is_in(pl.Series(seqs, dtype=pl.Int64).implode())
        matches = self.forgotten.without(rows.filter(pl.col(SEQ).is_between(seqs[0], seqs[-1]) & is_asked).collect())
        asked = set(event_ids)
        events = (Event(**row) for row in matches.sort(SEQ, descending=True).iter_rows(named=True))
        return {event.event_id: event for event in events if event.event_id is not None and event.event_id in asked}

    def owners(self, seqs: Sequence[int]) -> dict[int, str]:
        """User id of each of these seqs."""
        in_seqs = pl.col(SEQ).is_in(pl.Series(list(seqs), dtype=pl.Int64).implode())
        return dict(self.forgotten.without(self._all().filter(in_seqs).select(SEQ, USER_ID).collect()).iter_rows())

    def for_users(self, users: Sequence[str] | pl.Series) -> pl.DataFrame:
        """Valid events of these users by seq: EVENT_SCHEMA."""
        of_users = pl.col(USER_ID).is_in(pl.Series(users, dtype=pl.String).implode())
        return self.forgotten.without(self._believed().filter(of_users).collect()).sort(SEQ)

    def matching(self, condition: pl.Expr) -> pl.DataFrame:
        """Valid events that meet a condition, by seq: EVENT_SCHEMA."""
        return self.forgotten.without(self._believed().filter(condition).collect()).sort(SEQ)

    def quarantined(self, condition: pl.Expr) -> pl.DataFrame:
        """Quarantined rows that meet a condition, by seq: EVENT_SCHEMA + rule."""
        return self.forgotten.without(self._quarantined().filter(condition).collect()).sort(SEQ)

    def users_of(self, condition: pl.Expr) -> pl.Series:
        """Distinct users of the valid events that meet a condition."""
        rows = self._believed().filter(condition).select(USER_ID, SEQ)
        if not self.forgotten.pending:
            return rows.select(pl.col(USER_ID).unique()).collect().to_series()
        return self.forgotten.without(rows.collect())[USER_ID].unique()

    def newest_timestamps(self, n_rows: int) -> pl.Series:
        """The largest timestamps of valid events, in any order."""
        return self._believed().select(pl.col(TIMESTAMP).top_k(n_rows)).collect().to_series()

    def new_ids(self, column: str, raw_ids: pl.Series) -> set[str]:
        """Those of these users or items that no valid event has.

        An id without an archived row is found without a scan; the others may have quarantined rows only.
        """
        asked = raw_ids.unique()
        archived = asked.filter(pl.Series(self.open_ids().has(column, asked)))
        new = set(asked) - set(archived)
        in_quarantine = self._quarantined().select(pl.col(column).unique()).collect().to_series()
        doubtful = archived.filter(archived.is_in(in_quarantine.implode()))
        if len(doubtful):
            scan = self._believed().filter(pl.col(column).is_in(doubtful.implode()))
            new |= set(doubtful) - set(scan.select(pl.col(column).unique()).collect().to_series())
        return new

    def count(self, condition: pl.Expr | None = None) -> int:
        """Count the valid events, or those that meet a condition."""
        rows = self._believed() if condition is None else self._believed().filter(condition)
        if self.forgotten.pending:
            return len(self.forgotten.without(rows.select(USER_ID, SEQ).collect()))
        return int(rows.select(pl.len()).collect().item())

    def between(self, users: Sequence[str], after: int, until: int) -> pl.DataFrame:
        """Rows of these users with ``after`` < timestamp <= ``until``, by seq.

        Includes quarantined rows: EVENT_SCHEMA + rule.
        """
        spans = self._loaded_spans()
        if after >= self._newest:
            return NO_ROWS
        user_ids = pl.Series(list(users), dtype=pl.String).implode()
        matches = pl.col(USER_ID).is_in(user_ids) & (pl.col(TIMESTAMP) > after) & (pl.col(TIMESTAMP) <= until)
        first_day = _day(after, -1)
        last_day = _day(until, 1)  # one day of margin for the time zone of the folders
        files = [
            span.file
            for span in spans
            if span.newest > after and first_day <= span.file.parent.name.removeprefix("date=") <= last_day
        ]
        parts = [self._quarantined().filter(matches)]
        if files:
            parts.append(self._scan(files).filter(matches).with_columns(pl.lit(None, pl.String).alias(RULE)))
        return self.forgotten.without(pl.concat(parts).collect()).sort(SEQ)

    def has_id(self, column: str, raw_id: str) -> bool:
        """True if an archived event has this user_id or item_id; reads no row."""
        if column == USER_ID and self.forgotten.former_until(raw_id):
            return False
        return bool(self.open_ids().has(column, pl.Series([raw_id], dtype=pl.String))[0])

    def _loaded_spans(self) -> list[FileSpan]:
        if self._spans is None:
            self.load_ids()
            assert self._spans is not None
        return self._spans

    def files(self) -> dict[str, list[str]]:
        """Paths of the event files in ``data/`` by day, oldest rows first."""
        names = self.manifest.files_in("archive")
        if not names:  # a manifest that does not name them
            names = [str(path.relative_to(self.data)) for path in sorted(self.data.glob("archive/date=*/*.parquet"))]
        days: dict[str, list[str]] = {}
        for name in sorted(names, key=_first_seq):
            days.setdefault(name.split("/")[1].removeprefix("date="), []).append(name)
        return dict(sorted(days.items()))

    def _days(self) -> dict[str, list[Path]]:
        return {day: [self.data / name for name in names] for day, names in self.files().items()}

    def _believed(self) -> pl.LazyFrame:
        return self._scan([file for files in self._days().values() for file in files])

    def _quarantined(self) -> pl.LazyFrame:
        file = self.data / "quarantine.parquet"
        schema = {**EVENT_SCHEMA, RULE: pl.String}
        if not file.exists():
            return pl.LazyFrame(schema=schema)
        return pl.scan_parquet(file).select(*schema).filter(pl.col(SEQ) <= self.watermark)

    def _rows_after(self, seq: int) -> pl.LazyFrame:
        """Rows of the files that may hold a row after a seq, quarantined rows included."""
        imported = self.manifest.imported_until
        names = [name for names in self.files().values() for name in names if _last_seq(name, imported) > seq]
        return pl.concat([self._scan([self.data / name for name in names]), self._quarantined().select(*EVENT_SCHEMA)])

    def _all(self) -> pl.LazyFrame:
        return pl.concat([self._believed(), self._quarantined().select(*EVENT_SCHEMA)])

    def _scan(self, files: list[Path]) -> pl.LazyFrame:
        if not files:
            return pl.LazyFrame(schema=EVENT_SCHEMA)
        rows = pl.scan_parquet(files, hive_partitioning=False).select(*EVENT_SCHEMA)
        return rows.filter(pl.col(SEQ) <= self.watermark)

    def _table(self, name: str) -> pl.DataFrame | None:
        file = self.data / name
        if not file.exists():
            return None
        try:
            return pl.read_parquet(file).filter(pl.col(SEQ) <= self.watermark)
        except pl.exceptions.PolarsError as error:
            raise UserError("data", file, f"an undamaged file ({error})", "recloop prepare") from None


def _first_seq(name: str) -> tuple[int, str]:
    """Order of event files: an import, then by the first seq in the name."""
    words = name.removesuffix(".parquet").rsplit("/", 1)[1].split("-")
    return int(words[1]) if len(words) == 3 else 0, name


def _last_seq(name: str, imported: int) -> int:
    """Last seq in the name of an event file of an update.

    Names of the import's files have none; their rows end at ``imported``.
    """
    words = name.removesuffix(".parquet").rsplit("/", 1)[1].split("-")
    return int(words[2]) if len(words) == 3 else imported


def _day(stamp: int, days: int) -> str:
    """Folder name of a timestamp's UTC day plus ``days`` days."""
    try:
        return f"{EPOCH + timedelta(days=days, microseconds=stamp):%Y-%m-%d}"
    except OverflowError:
        return "0000-00-00" if stamp < 0 else "9999-99-99"
