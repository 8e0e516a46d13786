"""Checks of a cleaned log for ``recloop doctor``: all findings as typed records."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from recloop.config import Config
from recloop.data.doctor.anomalies import Crawler, StampOutliers, TiedRows, crawlers, stamp_outliers, tied_rows
from recloop.data.doctor.id_checks import (
    JoinShare,
    NonProduct,
    join_share,
    missing_words,
    non_products,
    spreadsheet_ids,
)
from recloop.data.doctor.profile import LogProfile, profile
from recloop.data.doctor.sufficiency import Job, LogSize, jobs, log_size
from recloop.data.entities import EntityTable
from recloop.files import JsonTree
from recloop.records import ITEM_ID, LABEL, TIMESTAMP, USER_ID, guest_rows

N_LISTED = 20


@dataclass(frozen=True)
class LogChecks:
    """Findings over the kept rows of a log.

    Attributes:
        profile: Counts for the pictures; None without rows.
        non_products: Items with positive rows that are probably charges.
        missing_users: Rows by text in user_id that means a missing user.
        spreadsheet_ids: Rows by id in scientific notation, of items and users.
        joins: Share of the log's ids in the file, by ``items`` and ``users``, for the files that exist.
        crawlers: Users with rows that a person does not produce.
        outliers: Rows with stamps far from all others; None without them.
        tied: Rows that share user and stamp.
        size: Numbers that decide what the log is enough for, and ``jobs`` the verdicts.
    """

    profile: LogProfile | None
    non_products: tuple[NonProduct, ...]
    missing_users: dict[str, int]
    spreadsheet_ids: dict[str, int]
    joins: dict[str, JoinShare]
    crawlers: tuple[Crawler, ...]
    outliers: StampOutliers | None
    tied: TiedRows
    size: LogSize
    jobs: tuple[Job, ...]

    def to_json(self) -> JsonTree:
        """Keys that ``recloop doctor --json`` adds to the counts."""
        return {
            "profile": None if self.profile is None else self.profile.to_json(),
            "non_products": [{**vars(found), "reasons": list(found.reasons)} for found in self.non_products],
            "missing_users": self.missing_users,
            "spreadsheet_ids": self.spreadsheet_ids,
            "joins": {name: {**vars(join), "best": join.best} for name, join in self.joins.items()},
            "crawlers": [{**vars(found), "reasons": list(found.reasons)} for found in self.crawlers],
            "outliers": None if self.outliers is None else vars(self.outliers),
            "tied": {**vars(self.tied), "reveals_label": self.tied.reveals_label},
            "size": vars(self.size),
            "jobs": [job.to_json() for job in self.jobs],
        }


def run_checks(
    valid_rows: pl.DataFrame, items: EntityTable | None, users: EntityTable | None, config: Config
) -> LogChecks:
    """Run every check on the labelled rows of a log."""
    with_user = valid_rows.filter(~guest_rows())
    items_file, users_file = items if config.data.items else None, users if config.data.users else None
    tables = {"items": (valid_rows[ITEM_ID], items_file), "users": (with_user[USER_ID], users_file)}
    ids = pl.concat([valid_rows[ITEM_ID], with_user[USER_ID]])
    catalog = () if items_file is None else items_file.frame[ITEM_ID].to_list()
    known_users = () if users_file is None else users_file.frame[USER_ID].to_list()
    size = log_size(valid_rows, None if items is None else items.frame, config)
    return LogChecks(
        profile=profile(valid_rows, config.data.timezone),
        non_products=non_products(valid_rows.filter(pl.col(LABEL) > 0), catalog)[:N_LISTED],
        missing_users=missing_words(with_user[USER_ID], known_users),
        spreadsheet_ids=dict(list(spreadsheet_ids(ids).items())[:N_LISTED]),
        joins={
            name: join_share(ids_of_log, table.frame[ids_of_log.name])
            for name, (ids_of_log, table) in tables.items()
            if table is not None
        },
        crawlers=crawlers(with_user),
        outliers=stamp_outliers(valid_rows[TIMESTAMP]),
        tied=tied_rows(with_user),
        size=size,
        jobs=jobs(size, config),
    )
