"""Cleaning rules: number the rows, quarantine invalid ones, keep valid ones.

Causal rules run first, as on arrival, then the retrospective rules, which need the whole log. Every readable row gets a
``seq``. A removed row goes to the quarantine with the name of its rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import polars as pl

from recloop.config import Config
from recloop.data.posted_rows import PostedRows
from recloop.data.rejected_rows import rounded_up
from recloop.data.split import cut_of
from recloop.errors import UserError
from recloop.features.clock_rule import received_by_end
from recloop.features.dwell import DWELL, DWELL_PCT, DwellPercentiles
from recloop.features.labels import EventLabeler, matcher
from recloop.features.moments import moment_stamps, number_moments
from recloop.records import (
    CONTENT,
    EVENT_ID,
    EVENT_SCHEMA,
    EVENT_TYPE,
    FILE_ROW,
    GROUP_ID,
    ITEM_ID,
    LABEL,
    MOMENT,
    PAIR,
    QUANTITY,
    RULE,
    SEQ,
    STAMP,
    TIMESTAMP,
    UNITS,
    USE,
    USER_ID,
    VALUE,
    WEIGHT,
    iso,
)

LABELLED: Final = {
    **EVENT_SCHEMA,
    STAMP: pl.Int64,
    LABEL: pl.Int8,
    WEIGHT: pl.Float32,
    USE: pl.Int8,
    PAIR: pl.String,
    UNITS: pl.Float64,
    MOMENT: pl.Int32,
}
QUARANTINED: Final = {**EVENT_SCHEMA, RULE: pl.String}


class CleaningRule(NamedTuple):
    """Cleaning rule: the rows it removes, when it applies, how to disable it."""

    name: str
    reason: str
    kind: Literal["causal", "retrospective"]
    off: str


RULES: Final = (
    CleaningRule("event_id", "rows with the event_id of an earlier row", "causal", 'data.columns.event_id=""'),
    CleaningRule(
        "clock",
        "stamps before 1970, or more than clean.future after the row's arrival (in a file: after its end)",
        "causal",
        'clean.future="off"',
    ),
    CleaningRule("exclude_items", "rows of items that are not products", "causal", "clean.exclude_items=[]"),
    CleaningRule("keep", "rows that do not meet clean.keep", "causal", 'clean.keep=""'),
    CleaningRule("burst", "more rows of a user at once than a person produces", "causal", 'clean.burst="off"'),
    CleaningRule("duplicates", "rows equal to an earlier row", "retrospective", 'clean.duplicates="off"'),
    CleaningRule("k_core", "users and items with fewer positives than split.k_core", "retrospective", "split.k_core=1"),
)
"""Evaluation order; the first rule that matches a row removes it."""


@dataclass(frozen=True)
class CleanResult:
    """Cleaned log: valid rows, quarantine and counts by rule.

    Attributes:
        valid_rows: LABELLED, in seq order.
        quarantine: QUARANTINED, in seq order.
        removed: Rows by rule, in the order of `RULES`; rules without rows are left out.
        watermark: The last seq assigned.
        dwell: Dwell percentiles of the valid rows before the cut.
        excessive: An error for each rule that removed more than ``clean.max_removed``.
    """

    valid_rows: pl.DataFrame
    quarantine: pl.DataFrame
    removed: dict[str, int]
    watermark: int
    excessive: tuple[UserError, ...]
    dwell: DwellPercentiles | None = None


def clean(
    frame: pl.DataFrame,
    config: Config,
    after: int = 0,
    items: pl.DataFrame | None = None,
    posted: PostedRows | None = None,
) -> CleanResult:
    """Apply the cleaning rules to a log.

    Args:
        frame: EVENT_SCHEMA without seq, in the order of file and row.
        config: The configuration; ``[events]``, ``[clean]`` and ``[split]`` are read.
        after: The last seq already assigned to items and users.
        items: The catalog, for the durations and categories of items with dwells.
        posted: Rows of an earlier generation of the data, numbered after ``frame``'s.

    Returns:
        The `CleanResult`; the caller stops or warns if ``excessive`` is not empty.
    """
    signal = EventLabeler(config.events, config.clean)
    check_conditions(config)
    numbered = (
        received_by_end(frame)
        .sort(TIMESTAMP, maintain_order=True)
        .select(pl.int_range(after + 1, after + 1 + pl.len(), dtype=pl.Int64).alias(SEQ), pl.all())
    )
    imported = after + len(numbered)
    if posted is not None:
        numbered = pl.concat([numbered, posted.events.select(numbered.columns)])
    rule = rule_of_rows(numbered, signal, config, repeated_ids(numbered))
    if posted is not None:
        rule = _add_kept_rules(numbered, rule, posted)
    is_removed = rule.is_not_null()
    kept_rows = numbered.filter(~is_removed)
    dwell = None
    if (kept_rows[EVENT_TYPE] == DWELL).any():
        early_rows = kept_rows.filter(pl.col(TIMESTAMP) < cut_of(kept_rows, config.split.quantile))
        dwell = DwellPercentiles.fit(early_rows, items)
    kept_rows = EventLabeler(config.events, config.clean, dwell).label(kept_rows)
    if config.split.k_core > 1:
        is_outside_core = _outside_core(kept_rows, config.split.k_core)
        core_rules = pl.DataFrame({SEQ: kept_rows[SEQ].filter(is_outside_core)}, schema={SEQ: pl.Int64}).with_columns(
            core=pl.lit("k_core")
        )
        rule = numbered.select(SEQ).join(core_rules, on=SEQ, how="left", maintain_order="left")["core"].fill_null(rule)
        is_removed = rule.is_not_null()
        kept_rows = kept_rows.filter(~is_outside_core)
    valid_rows = with_moments(kept_rows, config)
    quarantine = numbered.with_columns(rule.alias(RULE)).filter(is_removed)
    counts = dict(quarantine.group_by(RULE).len().iter_rows())
    removed = {info.name: counts[info.name] for info in RULES if info.name in counts}
    return CleanResult(
        valid_rows=valid_rows.select(*LABELLED),
        quarantine=quarantine.select(*QUARANTINED),
        removed=removed,
        watermark=imported if posted is None else max(imported, posted.last_seq),
        excessive=tuple(_excess(quarantine, imported, imported - after, config)),
        dwell=dwell,
    )


def check_conditions(config: Config) -> None:
    """Reject conditions that compare a text with a number, before rows are read."""
    texts = [
        (text, f"events.{name}")
        for name in ("undo", "weights", "neutral", "negative", "history", "positive")
        for text in getattr(config.events, name)
    ]
    if config.clean.keep.strip():
        texts.append((config.clean.keep, "clean.keep"))
    empty = pl.DataFrame(schema={**EVENT_SCHEMA, DWELL_PCT: pl.Float64})
    for text, key in texts:
        try:
            empty.with_columns(matcher(text, key).alias("passes"))
        except pl.exceptions.PolarsError as error:
            expected = f"numbers compared with numbers, and texts with texts ({str(error).splitlines()[0]})"
            raise UserError(key, text, expected, f"correct {key} in recloop.toml") from None


def repeated_ids(numbered: pl.DataFrame) -> pl.Series:
    """(n,) Boolean: the row has the event_id of an earlier one, in seq order."""
    event_ids = numbered[EVENT_ID]
    if event_ids.null_count() == len(event_ids):
        return pl.Series([False], dtype=pl.Boolean).new_from_index(0, len(event_ids))
    return event_ids.is_not_null() & ~event_ids.is_first_distinct()


def rule_of_rows(numbered: pl.DataFrame, signal: EventLabeler, config: Config, is_repeated: pl.Series) -> pl.Series:
    """Return the causal rule or ``duplicates`` that removes each row, or null.

    Causal rules see the same rows as on arrival: a repeated event_id never enters the log.

    Args:
        numbered: All rows of some users (EVENT_SCHEMA), in seq order.
        is_repeated: (n,) Boolean: the row has the event_id of an earlier row of any user.
    """
    if is_repeated.any():
        first_rows = numbered.filter(~is_repeated)
        rules = first_rows.select(SEQ).with_columns(signal.causal_rule(first_rows).alias(RULE))
        joined = numbered.select(SEQ).join(rules, on=SEQ, how="left", maintain_order="left")[RULE]
        rule = pl.select(pl.when(is_repeated).then(pl.lit("event_id")).otherwise(joined)).to_series()
    else:
        rule = signal.causal_rule(numbered)
    if config.clean.duplicates == "exact":
        duplicates = duplicate_rows(numbered.filter(rule.is_null()))
        if len(duplicates):
            rule = pl.select(
                pl.when(numbered[SEQ].is_in(duplicates.implode())).then(pl.lit("duplicates")).otherwise(rule)
            ).to_series()
    return rule.alias(RULE)


def _add_kept_rules(numbered: pl.DataFrame, rule: pl.Series, posted: PostedRows) -> pl.Series:
    """Keep the manual withdrawals of an earlier generation of the data."""
    posted_rules = posted.events.select(SEQ, pl.col(RULE).alias("stays"))
    rows = numbered.with_columns(rule.alias(RULE)).join(posted_rules, on=SEQ, how="left", maintain_order="left")
    withdrawn = posted.withdrawn.rename({RULE: "by_hand"}).with_columns(file_id(EVENT_ID)).unique(CONTENT)
    rows = rows.with_columns(file_id(EVENT_ID)).join(
        withdrawn, on=CONTENT, how="left", nulls_equal=True, maintain_order="left"
    )
    return rows.select(pl.coalesce("stays", "by_hand", RULE).alias(RULE)).to_series()


def file_id(name: str) -> pl.Expr:
    """Event_id as its sender set it.

    Null if it was generated from a file's row number.
    """
    return pl.when(~pl.col(name).str.starts_with(FILE_ROW)).then(name).alias(name)


def duplicate_rows(rows: pl.DataFrame) -> pl.Series:
    """Return the seq of each row that equals an earlier one.

    ``rows`` are in seq order.
    """
    if rows[EVENT_ID].null_count() < len(rows):
        rows = rows.with_columns(file_id(EVENT_ID))
    # cheap test first: few rows share these three columns
    candidates = rows.select(SEQ, *CONTENT).filter(pl.struct(USER_ID, ITEM_ID, TIMESTAMP).is_duplicated())
    return candidates.filter(~pl.struct(*CONTENT).is_first_distinct())[SEQ]


def with_moments(labelled: pl.DataFrame, config: Config) -> pl.DataFrame:
    """Add ``stamp`` and ``moment`` to labelled rows of some users, in seq order."""
    return number_moments(row_stamps(labelled) if config.split.ties == "row" else moment_stamps(labelled))


def row_stamps(valid_rows: pl.DataFrame) -> pl.DataFrame:
    """Give every row a separate moment, in file order (``ties = "row"``).

    It is used only to reproduce published tables. Rows with one stamp are set one microsecond apart.
    """
    number = pl.int_range(pl.len(), dtype=pl.Int64).over(USER_ID)
    rows = valid_rows.sort(SEQ).with_columns(number.alias("number"))
    # s(i) = max(t(i), s(i-1) + 1), written as a running maximum.
    stamp = (pl.col(TIMESTAMP) - pl.col("number")).cum_max().over(USER_ID) + pl.col("number")
    return rows.with_columns(stamp.alias(STAMP)).drop("number")


def _outside_core(labelled: pl.DataFrame, k: int) -> pl.Series:
    """(n,) Boolean mask of rows outside the k-core by positive rows."""
    rows = labelled.select(USER_ID, ITEM_ID, LABEL).with_row_index("row")
    size = len(rows) + 1
    while len(rows) < size:
        size = len(rows)
        for side in (USER_ID, ITEM_ID):
            rows = rows.filter((pl.col(LABEL) > 0).sum().over(side) >= k)
    return ~pl.int_range(len(labelled), eager=True, dtype=pl.UInt32).is_in(rows["row"].implode())


def _excess(quarantine: pl.DataFrame, imported: int, readable: int, config: Config) -> list[UserError]:
    """Apply `excess` to the import only, because posted rows were checked on arrival."""
    import_rows = quarantine.filter(pl.col(SEQ) <= imported)
    removed = dict(import_rows.group_by(RULE).len().iter_rows())
    return excessive_rules(import_rows, removed, readable, config.clean.max_removed)


def excessive_rules(
    quarantine: pl.DataFrame, removed: dict[str, int], readable: int, max_share: float
) -> list[UserError]:
    """Errors for the rules that removed more than ``clean.max_removed`` of the rows.

    ``k_core`` and ``exclude_items`` are exempt, because their settings name what they remove.
    """
    errors = []
    for info in RULES:
        count = removed.get(info.name, 0)
        if info.name in {"k_core", "exclude_items"} or count <= max_share * readable:
            continue
        share = count / readable
        samples = quarantine.filter(pl.col(RULE) == info.name).head(3)
        error = UserError(
            f"rule {info.name}",
            f"{share:.1%} of the rows ({count:,} of {readable:,})",
            f"at most {max_share:.1%} (clean.max_removed); it removes {info.reason}",
            f"--set clean.max_removed={rounded_up(share)} or --set '{info.off}'",
            tuple(describe_row(row) for row in samples.iter_rows(named=True)),
        )
        errors.append(error)
    return errors


def nothing_left(n_valid: int, removed: Mapping[str, int], quarantine: pl.DataFrame) -> UserError | None:
    """Error for a log of which the rules leave no row, else None.

    The fix is the setting of the rule that removed most. ``quarantine`` holds at least the first three rows.
    """
    if n_valid or not removed:
        return None
    counts = ", ".join(f"{rule} removed {count:,}" for rule, count in removed.items())
    largest = max(RULES, key=lambda rule: removed.get(rule.name, 0))
    return UserError(
        f"rule {largest.name}",
        f"no row is left of {sum(removed.values()):,} ({counts})",
        f"rows that pass the rules of [clean]; {largest.name} removes {largest.reason}",
        f"--set '{largest.off}'",
        tuple(describe_row(row) for row in quarantine.head(3).iter_rows(named=True)),
    )


def describe_row(row: dict[str, object]) -> str:
    """Format one row of the log as a line of a message."""
    fields = [
        f"{name}={row[name]!r}"
        for name in (USER_ID, ITEM_ID, EVENT_TYPE, VALUE, QUANTITY, GROUP_ID)
        if row[name] is not None
    ]
    return f"  {iso(int(str(row[TIMESTAMP])))}  {'  '.join(fields)}"
