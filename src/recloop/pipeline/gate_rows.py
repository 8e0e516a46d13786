"""Rows of a promotion gate, read from archive and log for some users at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from recloop.data.clean import duplicate_rows
from recloop.evaluation.queries import Queries, concatenate, make_queries
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps
from recloop.features.spec import FeatureSpec
from recloop.project import Project
from recloop.recommend.catalog import Catalog
from recloop.records import EVENT_SCHEMA, RULE, SEQ, TIMESTAMP, USER_ID
from recloop.storage.archive import Archive
from recloop.storage.retractions import retracted_at

BLOCK_USERS: Final = 50_000
"""Users whose rows are read and labelled together."""


@dataclass(frozen=True)
class GateRows:
    """Valid rows of archive and log, without repeats that an update would retract.

    Attributes:
        log_rows: EVENT_SCHEMA, rows after the archive.
        retracted: Seqs of the retracted rows.
        without_duplicates: Repeats are removed.
        user_versions: USER_SCHEMA; None without user attributes.
        catalog: Catalog at the end of the log.
    """

    archive: Archive
    log_rows: pl.DataFrame
    retracted: pl.Series
    without_duplicates: bool
    user_versions: pl.DataFrame | None
    catalog: Catalog

    @classmethod
    def open(cls, project: Project) -> GateRows:
        """Read what follows the archive; rows of the archive are read by user."""
        archive = project.open_archive()
        with project.open_log() as log:
            log_rows = log.events(after=archive.watermark).filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
            retracted = pl.Series(sorted(retracted_at(log.retractions())), dtype=pl.Int64)
            log_users = log.users(after=archive.watermark)
            catalog = Catalog.from_frames([archive.items(), log.items(after=archive.watermark)])
        archived_users = archive.users()
        user_versions = None if archived_users is None else pl.concat([archived_users, log_users])
        exact = project.config.clean.duplicates == "exact"
        return cls(archive, log_rows, retracted, exact, user_versions, catalog)

    def users_of(self, condition: pl.Expr) -> pl.Series:
        """Users of the rows that meet a condition on EVENT_SCHEMA, ascending."""
        in_log = self.log_rows.filter(condition)[USER_ID]
        return pl.concat([self.archive.users_of(condition), in_log]).unique().sort()

    def of_users(self, users: Sequence[str] | pl.Series, spec: FeatureSpec) -> pl.DataFrame:
        """All rows of these users, labelled by a spec, with the stamp of their moment."""
        asked = pl.Series(USER_ID, users, dtype=pl.String).unique()
        in_log = self.log_rows.filter(pl.col(USER_ID).is_in(asked.implode()))
        rows = pl.concat([self.archive.for_users(asked), in_log])
        rows = rows.filter(~pl.col(SEQ).is_in(self.retracted.implode()))
        if self.without_duplicates:
            rows = rows.filter(~pl.col(SEQ).is_in(duplicate_rows(rows).implode()))
        return moment_stamps(EventLabeler.from_spec(spec).label(rows))

    def versions_of(self, users: Sequence[str]) -> pl.DataFrame | None:
        """Attribute versions of these users; None without user attributes."""
        if self.user_versions is None:
            return None
        asked = pl.Series(users, dtype=pl.String).unique()
        return self.user_versions.filter(pl.col(USER_ID).is_in(asked.implode()))

    def queries(self, users: pl.Series, spec: FeatureSpec, moments: pl.Expr) -> Queries:
        """Successive queries of some users, by user and stamp.

        Args:
            users: Distinct ids, ascending.
            moments: Condition on labelled rows that selects whole moments.
        """
        blocks = (
            self.of_users(users[start : start + BLOCK_USERS], spec) for start in range(0, len(users), BLOCK_USERS)
        )
        return concatenate([make_queries(rows.filter(moments), "successive") for rows in blocks])

    def newest_users(self, n_rows: int) -> pl.Series:
        """Users of the newest rows by timestamp, ascending."""
        timestamps = pl.concat([self.archive.newest_timestamps(n_rows), self.log_rows[TIMESTAMP]])
        return self.users_of(pl.col(TIMESTAMP) >= timestamps.top_k(n_rows).min())
