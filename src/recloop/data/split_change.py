"""Change of the labelled log by one update: new rows, or all rows with new labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl

from recloop.config import Clean, Config
from recloop.data.clean import duplicate_rows
from recloop.data.labelled_log import COLUMNS, LabelledLog
from recloop.features.dwell import DwellPercentiles
from recloop.features.labels import EventLabeler
from recloop.features.learned_range import LearnedRange, NewWindow, nothing_held, window_of, window_of_rows
from recloop.features.log_end import robust_end
from recloop.features.moments import moment_stamps
from recloop.features.spec import FeatureSpec
from recloop.records import EVENT_SCHEMA, GROUP_ID, RULE, SECOND, SEQ, STAMP, TIMESTAMP, USER_ID
from recloop.storage.archive import Archive
from recloop.storage.data_manifest import DataManifest


@dataclass(frozen=True)
class SplitChange:
    """Rows to write, and the window of the result.

    Attributes:
        rows: Labelled rows: the new ones, or all rows if ``replaces``. dropped: Seqs of all removed rows, ascending.
        removed_rules: Rule by seq of the valid rows that a retrospective rule removes.
        n_rows, n_test: Rows of the labelled log and of its test afterwards.
    """

    rows: pl.DataFrame
    dropped: list[int]
    replaces: bool
    removed_rules: dict[int, str]
    window: NewWindow
    n_rows: int
    n_test: int


@dataclass(frozen=True)
class NewRows:
    """Rows of the log after the watermark, and the settings that label them.

    Attributes:
        rows: All new rows with ``rule``. valid: Those without a rule.
        retracted: Seqs of all rows that were retracted before, ascending.
        labels: `FeatureSpec.state_key` of the labeler.
    """

    archive: Archive
    rows: pl.DataFrame
    valid: pl.DataFrame
    retracted: list[int]
    signal: EventLabeler
    labels: str
    clean: Clean
    learned: LearnedRange

    @property
    def after(self) -> int:
        return self.archive.watermark


def split_change(new: NewRows, stored: LabelledLog) -> SplitChange:
    """Label the new rows; label all rows if an earlier label or stamp may differ."""
    return _of_new_rows(new, stored) or _of_all_rows(new)


def _of_all_rows(new: NewRows) -> SplitChange:
    valid_rows = without(pl.concat([new.archive.events(), new.valid]), new.retracted)
    removed_rules = retracted_rows(valid_rows, new.rows, new.clean, new.signal)
    labelled = moment_stamps(new.signal.label(without(valid_rows, removed_rules))).select(COLUMNS)
    window = window_of(labelled, new.learned)
    dropped = sorted({*new.retracted, *removed_rules})
    n_test = len(labelled.filter(window.tested))
    return SplitChange(labelled, dropped, True, removed_rules, window, len(labelled), n_test)


def _of_new_rows(new: NewRows, stored: LabelledLog) -> SplitChange | None:
    """Change from the rows of the users with new rows; None if other rows change too.

    Labels depend on a row alone, and stamps on earlier rows of its user. Both change if a setting changed, if a row was
    restored, or if a removed row's user has groups.
    """
    if labels_of(stored.manifest) != new.labels or not set(stored.dropped) <= set(new.retracted):
        return None
    of_new_rows = new.rows[USER_ID].unique()
    recent = stored.where(pl.col(SEQ) > new.learned.until_seq, (SEQ, USER_ID))
    users = pl.concat([recent[USER_ID], of_new_rows]).unique()
    earlier = stored.where((pl.col(STAMP) >= new.learned.cut) | pl.col(USER_ID).is_in(users.implode()))
    own_rows = earlier.filter(pl.col(USER_ID).is_in(of_new_rows.implode())).select(*EVENT_SCHEMA)
    valid_rows = without(pl.concat([new.archive.forgotten.without(own_rows), new.valid]), new.retracted)
    removed_rules = retracted_rows(valid_rows, new.rows, new.clean, new.signal)
    dropped = sorted({*new.retracted, *removed_rules})
    newly_dropped = [seq for seq in sorted(set(dropped) - set(stored.dropped)) if seq <= new.after]
    if newly_dropped and _have_groups(new.archive, newly_dropped):
        return None
    labelled = moment_stamps(new.signal.label(without(valid_rows, removed_rules)))
    added = labelled.filter(pl.col(SEQ) > new.after).select(COLUMNS)
    affected = pl.concat([without(earlier, newly_dropped), added])
    positions = _all_of((SEQ, STAMP), stored, newly_dropped, added)
    end = robust_end(positions[STAMP], lambda: _all_of((SEQ, USER_ID), stored, newly_dropped, added)[USER_ID])
    window = window_of_rows(affected, new.learned, end, nothing_held(positions))
    if window is None:
        return None
    n_test = len(affected.filter(window.tested))
    return SplitChange(added, dropped, False, removed_rules, window, len(positions), n_test)


def _all_of(columns: Sequence[str], stored: LabelledLog, dropped: Collection[int], added: pl.DataFrame) -> pl.DataFrame:
    """Columns of stored rows without dropped ones (in any order), then of added ones."""
    return pl.concat([without(stored.unordered_rows(columns), dropped), added.select(columns)])


def labels_of(manifest: DataManifest) -> str:
    """`FeatureSpec.state_key` of the labels in a split; empty if unknown."""
    if manifest.labels is not None:
        return manifest.labels
    if manifest.updates:  # an earlier version wrote the split without the rows that were retracted then
        return ""
    dwell = None if manifest.dwell is None else DwellPercentiles.from_json(dict(manifest.dwell))
    return FeatureSpec.from_config(Config.model_validate(manifest.config), dwell).state_key


def retracted_rows(valid_rows: pl.DataFrame, rows: pl.DataFrame, clean: Clean, signal: EventLabeler) -> dict[int, str]:
    """Valid rows that a retrospective rule removes: rule by seq.

    Args:
        valid_rows: All valid rows of the users with new rows, in seq order.
        rows: The new rows; ``rule`` names the causal rule that removed a row.
        signal: The labeler; it marks the rows that the burst rule ignores.
    """
    duplicates = duplicate_rows(valid_rows).to_list() if clean.duplicates == "exact" else []
    in_burst = rows_before_burst(valid_rows, rows, clean, signal)
    return dict.fromkeys(duplicates, "duplicates") | dict.fromkeys(in_burst, "burst")


def rows_before_burst(valid_rows: pl.DataFrame, rows: pl.DataFrame, clean: Clean, signal: EventLabeler) -> list[int]:
    """Return the seq of valid burst rows before the row that revealed the burst.

    The causal rule removes the tenth row of a second and the later ones. This one adds the rows in
    (stamp - seconds, stamp] of each removed row. Targets with at least the weight of a purchase never belong to a burst.
    """
    burst_rows = rows.filter(pl.col(RULE) == "burst").select(USER_ID, pl.col(TIMESTAMP).alias("caught"))
    if clean.burst == "off" or not len(burst_rows):
        return []
    user_rows = valid_rows.filter(pl.col(USER_ID).is_in(burst_rows[USER_ID].unique().implode()))
    candidates = user_rows.select(SEQ).with_columns(signal.acts(user_rows)).filter(~pl.col("strong"))
    # The first removed row at or after a row decides, so a crawler's rows are not joined with each other.
    next_caught = candidates.select(SEQ, USER_ID, TIMESTAMP).sort(TIMESTAMP).join_asof(
        burst_rows.sort("caught"), left_on=TIMESTAMP, right_on="caught", by=USER_ID, strategy="forward",
        check_sortedness=False,
    )  # fmt: skip
    is_before = pl.col("caught") - pl.col(TIMESTAMP) < round(clean.burst.seconds * SECOND)
    return next_caught.filter(is_before)[SEQ].sort().to_list()


def without(rows: pl.DataFrame, seqs: Collection[int]) -> pl.DataFrame:
    """Rows with none of these seqs."""
    return rows.filter(~pl.col(SEQ).is_in(pl.Series(sorted(seqs), dtype=pl.Int64).implode())) if seqs else rows


def _have_groups(archive: Archive, seqs: Sequence[int]) -> bool:
    """True if a user of one of these rows has a row with a group."""
    users = set(archive.owners(seqs).values())
    of_users = pl.col(USER_ID).is_in(pl.Series(sorted(users), dtype=pl.String).implode())
    return archive.count(of_users & pl.col(GROUP_ID).is_not_null()) > 0
