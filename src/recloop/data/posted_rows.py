"""Posted rows of a project, collected so that a new first run can renumber them.

They are in log.db and, after an update has archived them, in ``data/``. Rows that an update read from a file of
``data.events`` are excluded, because the new import reads that file again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import polars as pl

from recloop.records import CONTENT, EVENT_ID, EVENT_SCHEMA, FILE_ROW, ITEM_SCHEMA, RULE, SEQ, USER_SCHEMA, max_int
from recloop.storage import EventLog
from recloop.storage.archive import Archive
from recloop.storage.retractions import RESTORED, retracted_at

REAPPLIED_RULES: Final = ("event_id", "exclude_items", "keep", "burst", "duplicates", "k_core")
"""Rules that a new first run applies again; rows keep any other rule, such as a manual withdrawal."""


@dataclass(frozen=True)
class PostedRows:
    """Rows after the import, each frame in seq order.

    Attributes:
        events: EVENT_SCHEMA and ``rule``, which is null unless a rule removed the row permanently.
        items, users: ITEM_SCHEMA, USER_SCHEMA.
        withdrawn: CONTENT and ``rule`` of rows of the import that were withdrawn manually.
    """

    events: pl.DataFrame
    items: pl.DataFrame
    users: pl.DataFrame
    withdrawn: pl.DataFrame

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
            if row.retracted_seq in retracted and row.rule not in {*REAPPLIED_RULES, RESTORED}
        }
        manual_rules = pl.DataFrame(
            {SEQ: list(rule_by_seq), "by_hand": list(rule_by_seq.values())}, {SEQ: pl.Int64, "by_hand": pl.String}
        )
        kept_rule = pl.when(~pl.col(RULE).is_in(REAPPLIED_RULES)).then(RULE)
        events = (
            events.unique(SEQ)
            .join(manual_rules, on=SEQ, how="left")
            .with_columns(pl.coalesce("by_hand", kept_rule).alias(RULE))
            .filter(~pl.col(EVENT_ID).str.starts_with(FILE_ROW).fill_null(False))
            .select(schema)
            .sort(SEQ)
        )
        withdrawn = archive.matching(pl.col(SEQ) <= imported).join(manual_rules, on=SEQ).rename({"by_hand": RULE})
        return cls(
            events,
            _later(archive.items(), log.items(after), ITEM_SCHEMA, imported),
            _later(archive.users(), log.users(after), USER_SCHEMA, imported),
            withdrawn.select(*CONTENT, RULE).unique(maintain_order=True),
        )

    def __len__(self) -> int:
        return len(self.events) + len(self.items) + len(self.users)

    @property
    def last_seq(self) -> int:
        """Largest seq; 0 without rows."""
        return max((max_int(frame[SEQ]) for frame in (self.events, self.items, self.users)), default=0)

    def renumbered(self, seq: int) -> PostedRows:
        """Number the rows from ``seq + 1``, in order of arrival."""
        frames = self.events, self.items, self.users
        seqs = pl.concat([frame[SEQ] for frame in frames]).sort()
        numbers = pl.DataFrame(
            {SEQ: seqs, "new": pl.int_range(seq + 1, seq + 1 + len(seqs), dtype=pl.Int64, eager=True)}
        )
        events, items, users = (
            frame.join(numbers, on=SEQ, how="left", maintain_order="left")
            .with_columns(pl.col("new").alias(SEQ))
            .drop("new")
            for frame in frames
        )
        return replace(self, events=events, items=items, users=users)


def _later(archived: pl.DataFrame | None, logged: pl.DataFrame, schema: Iterable[str], imported: int) -> pl.DataFrame:
    frames = [logged] if archived is None else [archived.filter(pl.col(SEQ) > imported), logged]
    return pl.concat([frame.select(*schema) for frame in frames]).unique(SEQ).sort(SEQ)
