"""Posted rows of a project, collected so that a new first run can renumber them.

They are in log.db and, after an update has archived them, in ``data/``. Rows that an update read from a file of
``data.events`` are excluded, because the new import reads that file again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import msgspec
import polars as pl

from recloop.records import (
    CONTENT,
    EVENT_ID,
    EVENT_SCHEMA,
    FILE_ROW,
    ITEM_SCHEMA,
    RECEIVED_AT,
    RULE,
    SEQ,
    USER_ID,
    USER_SCHEMA,
    max_int,
)  # fmt: skip
from recloop.storage import EventLog
from recloop.storage.archive import Archive
from recloop.storage.identities import IDENTIFIED, MOVED, MOVED_WITHOUT_ID, Identity
from recloop.storage.retractions import RESTORED, retracted_at

ANONYMOUS_ID: Final = "anonymous_id"
IDENTITY_SCHEMA: Final = {ANONYMOUS_ID: pl.String, USER_ID: pl.String, RECEIVED_AT: pl.Int64, SEQ: pl.Int64}
REAPPLIED_RULES: Final = ("event_id", "exclude_items", "keep", "burst", "duplicates", "k_core")
"""Rules that a new first run applies again; rows keep any other rule, such as a manual withdrawal."""


@dataclass(frozen=True)
class PostedRows:
    """Rows after the import, each frame in seq order.

    Attributes:
        events: EVENT_SCHEMA and ``rule``, which is null unless a rule removed the row permanently.
        items, users: ITEM_SCHEMA, USER_SCHEMA.
        withdrawn: CONTENT and ``rule`` of rows of the import that were withdrawn manually.
        identities: ``seq``, ``anonymous_id``, ``user_id``, ``received_at``. Rows before them have the user: no row of
            ``events`` is stored again.
    """

    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    withdrawn: pl.DataFrame
    identities: pl.DataFrame

    @classmethod
    def collect(cls, archive: Archive, log: EventLog) -> PostedRows:
        """Collect every posted row of a project."""
        after, imported = archive.watermark, archive.manifest.imported_until
        archived = archive.matching(pl.col(SEQ) > imported).with_columns(pl.lit(None, pl.String).alias(RULE))
        schema = [*EVENT_SCHEMA, RULE]
        quarantined = archive.quarantine().filter(pl.col(SEQ) > imported)
        events = pl.concat(
            [archived.select(schema), quarantined.select(schema), log.events(after=after).select(schema)]
        )
        retractions = log.retractions()
        retracted = retracted_at(retractions)
        rule_by_seq = {
            row.retracted_seq: row.rule
            for row in retractions
            if row.retracted_seq in retracted and row.rule not in {*REAPPLIED_RULES, RESTORED, IDENTIFIED}
        }
        for seq, event_id in events.filter(is_moved_row()).select(SEQ, EVENT_ID).iter_rows():
            if seq in rule_by_seq:  # the rule of a row stored again is that of the anonymous row
                rule_by_seq[int(event_id.rpartition(":")[2])] = rule_by_seq[seq]
        manual_rules = pl.DataFrame(
            {SEQ: list(rule_by_seq), "by_hand": list(rule_by_seq.values())}, {SEQ: pl.Int64, "by_hand": pl.String}
        )
        kept_rule = pl.when(~pl.col(RULE).is_in(REAPPLIED_RULES)).then(RULE)
        events = (
            events.unique(SEQ)
            .join(manual_rules, on=SEQ, how="left")
            .with_columns(pl.coalesce("by_hand", kept_rule).alias(RULE))
            .filter(~pl.col(EVENT_ID).str.starts_with(FILE_ROW).fill_null(False))
            .filter(~is_moved_row())
            .select(schema)
            .sort(SEQ)
        )
        identities = pl.DataFrame([msgspec.structs.asdict(row) for row in log.identities()], IDENTITY_SCHEMA)
        withdrawn = archive.matching(pl.col(SEQ) <= imported).join(manual_rules, on=SEQ).rename({"by_hand": RULE})
        return cls(
            with_first_users(events, identities),
            _later(archive.items(), log.items(after), ITEM_SCHEMA, imported),
            _later(archive.users(), log.users(after), USER_SCHEMA, imported),
            with_first_users(withdrawn, identities).select(*CONTENT, RULE).unique(maintain_order=True),
            identities,
        )

    def __len__(self) -> int:
        return len(self.events) + len(self.items) + len(self.users)

    @property
    def last_seq(self) -> int:
        """Largest seq; 0 without rows."""
        frames = (self.events, self.items, self.users, self.identities)
        return max((max_int(frame[SEQ]) for frame in frames), default=0)

    def renumbered(self, seq: int) -> PostedRows:
        """Number the rows from ``seq + 1``, in order of arrival."""
        frames = self.events, self.items, self.users, self.identities
        seqs = pl.concat([frame[SEQ] for frame in frames]).sort()
        numbers = pl.DataFrame(
            {SEQ: seqs, "new": pl.int_range(seq + 1, seq + 1 + len(seqs), dtype=pl.Int64, eager=True)}
        )
        events, items, users, identities = (
            frame.join(numbers, on=SEQ, how="left", maintain_order="left")
            .with_columns(pl.col("new").alias(SEQ))
            .drop("new")
            for frame in frames
        )
        return replace(self, events=events, items=items, users=users, identities=identities)


def is_moved_row() -> pl.Expr:
    """Select rows that were stored again as rows of a user."""
    event_id = pl.col(EVENT_ID)
    return (event_id.str.starts_with(MOVED) | event_id.str.starts_with(MOVED_WITHOUT_ID)).fill_null(False)


def with_first_users(rows: pl.DataFrame, identities: pl.DataFrame) -> pl.DataFrame:
    """Give rows of identified anonymous ids the user of the first identify.

    Args:
        rows: Rows before the identities, with user_id and anonymous_id.
        identities: In seq order.
    """
    first = identities.unique(ANONYMOUS_ID, keep="first", maintain_order=True)
    users = dict(first.select(ANONYMOUS_ID, USER_ID).iter_rows())
    if not users:
        return rows
    is_identified = pl.col(USER_ID).is_in(pl.Series(list(users), dtype=pl.String).implode())
    return rows.with_columns(
        pl.when(is_identified).then(USER_ID).otherwise(ANONYMOUS_ID).alias(ANONYMOUS_ID),
        pl.col(USER_ID).replace(users),
    )


def identities_of(frame: pl.DataFrame) -> tuple[Identity, ...]:
    """Build the identities of a frame."""
    return tuple(Identity(**row) for row in frame.iter_rows(named=True))


def _later(archived: pl.DataFrame | None, logged: pl.DataFrame, schema: Iterable[str], imported: int) -> pl.DataFrame:
    frames = [logged] if archived is None else [archived.filter(pl.col(SEQ) > imported), logged]
    return pl.concat([frame.select(*schema) for frame in frames]).unique(SEQ).sort(SEQ)
