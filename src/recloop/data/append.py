"""Append the log's rows after the watermark to ``data/`` and renew the split.

Causal rules were applied when a row arrived; ``rule`` names the rule that removed it. Retrospective rules run here and
remove rows that serving accepted: repeats without an event_id (`duplicates`) and the rows of a burst before its tenth
(`burst`). No split contains such rows. They stay in the archive, because states contained them. A retraction with a
separate seq, which the caller appends to the log, removes them from the states (`AppendResult.taken_back`).

All files are written into a staged folder; `publish_data` renames it into ``data/``, the manifest last.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from recloop import __version__
from recloop.config import Clean, Config
from recloop.data.atomic_folder import AtomicFolder
from recloop.data.clean import QUARANTINED, duplicate_rows
from recloop.data.label_report import RuleCount, count_by_rule
from recloop.data.prepare import SPLITS, split_hash
from recloop.data.split import SplitFrames, holdout_rows, n_users
from recloop.features.labels import EventLabeler
from recloop.features.learned_range import LearnedRange, NewWindow, window_of
from recloop.features.moments import moment_stamps, number_moments
from recloop.files import move, replace_json
from recloop.project import Project
from recloop.records import (
    EVENT_SCHEMA,
    ITEM_ID,
    LABEL,
    RULE,
    SECOND,
    SEQ,
    STAMP,
    TIMESTAMP,
    USER_ID,
    FileFacts,
    is_guest,
)
from recloop.storage import EventLog
from recloop.storage.archive import Archive
from recloop.storage.data_manifest import MANIFEST, DataManifest, UpdateRecord, WindowLoss


@dataclass(frozen=True)
class AppendResult:
    """Row counts of one update, as in ``recloop update --json``, and its test window.

    ``cut``, ``held_seq``, ``late``, ``fresh`` are those of `recloop.features.learned_range.NewWindow`.

    ``signals``: new valid rows by the rule of ``[events]`` that decides them (`recloop.data.label_report.count_by_rule`).
    ``taken_back``: (seq, rule) of the valid rows that a retrospective rule removes and that are not yet retracted.
    """

    read: int
    kept: int
    removed: dict[str, int]
    new_users: int
    new_items: int
    cut: int
    held_seq: int
    late: int
    fresh: int
    positives: int
    signals: list[RuleCount]
    taken_back: list[tuple[int, str]]


def append(
    project: Project,
    log: EventLog,
    until: int,
    learned: LearnedRange,
    signal: EventLabeler,
    target: Path,
    retracted_seqs: Sequence[int] = (),
) -> AppendResult:
    """Write the next version of ``data/`` as a staged folder.

    It contains the new files and a full manifest.

    Args:
        until: The last seq to append.
        learned: The moments that the live bundle has learned; every other moment is new.
        signal: The labeler of the candidate's spec.
        retracted_seqs: The seq of rows that were retracted before.
        target: The staged folder; an existing one is replaced.
    """
    archive = project.open_archive()
    after = archive.watermark
    rows = log.events(after=after, until=until)
    new_rows = rows.filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
    old_rows = archive.events()
    valid_rows = pl.concat([old_rows, new_rows]).filter(
        ~pl.col(SEQ).is_in(pl.Series(retracted_seqs, dtype=pl.Int64).implode())
    )
    removed_rules = retracted_rows(valid_rows, rows, project.config.clean, signal)
    labelled = number_moments(moment_stamps(signal.label(valid_rows.filter(~pl.col(SEQ).is_in(list(removed_rules))))))
    window = window_of(labelled, learned)
    split_frames = split_at(labelled, window, project.config)
    removed = Counter(rows[RULE].drop_nulls().to_list()) + Counter(
        rule for seq, rule in removed_rules.items() if seq > after
    )
    result = AppendResult(
        read=len(rows),
        kept=len(rows) - removed.total(),
        removed=dict(sorted(removed.items())),
        new_users=sum(not is_guest(user) for user in set(new_rows[USER_ID]) - set(old_rows[USER_ID].unique())),
        new_items=len(set(new_rows[ITEM_ID]) - set(old_rows[ITEM_ID].unique())),
        cut=window.cut,
        held_seq=window.held_seq,
        late=window.late,
        fresh=window.fresh,
        positives=int(((labelled[SEQ] > after) & (labelled[LABEL] > 0)).sum()),
        signals=count_by_rule(signal, new_rows),
        taken_back=sorted(removed_rules.items()),
    )
    _write(project, archive, log, rows, new_rows, split_frames, result, until, target)
    return result


def retracted_rows(valid_rows: pl.DataFrame, rows: pl.DataFrame, clean: Clean, signal: EventLabeler) -> dict[int, str]:
    """Valid rows that a retrospective rule removes: rule by seq.

    Args:
        valid_rows: All valid rows, in seq order.
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


def split_at(labelled: pl.DataFrame, window: NewWindow, config: Config) -> SplitFrames:
    """Split the labelled log at a window.

    The moments of the window are the test; the others are train and valid.
    """
    marked = labelled.sort(SEQ).with_columns(window.tested.alias("tested"))
    past, test = (marked.filter(condition).drop("tested") for condition in (~pl.col("tested"), pl.col("tested")))
    holdout = holdout_rows(past, config.split.validation_users, n_users(labelled) // 2)
    keys = [USER_ID, STAMP]
    valid = past.join(holdout, on=keys, how="semi", maintain_order="left")
    return SplitFrames(past.join(holdout, on=keys, how="anti", maintain_order="left"), valid, test, window.cut)


def _write(
    project: Project, archive: Archive, log: EventLog, rows: pl.DataFrame, new_rows: pl.DataFrame,
    split_frames: SplitFrames, result: AppendResult, until: int, target: Path,
) -> None:  # fmt: skip
    shutil.rmtree(target, ignore_errors=True)
    files = AtomicFolder(target)
    after = archive.watermark
    try:
        date = pl.from_epoch(TIMESTAMP, time_unit="us").dt.strftime("%Y-%m-%d").alias("date")
        days = new_rows.with_columns(date).partition_by("date", as_dict=True, include_key=False)
        for (day,), day_rows in sorted(days.items()):
            files.table(f"archive/date={day}/events-{after + 1}-{until}.parquet", day_rows)
        for name, frame in zip(SPLITS, split_frames[:3], strict=True):
            files.table(f"split/{name}.parquet", frame)
        for name, archived, logged in (
            ("items", archive.items(), log.items(after, until)),
            ("users", archive.users(), log.users(after, until)),
        ):
            if len(logged):
                files.table(f"{name}.parquet", logged if archived is None else pl.concat([archived, logged]))
        quarantined = rows.filter(pl.col(RULE).is_not_null()).select(*QUARANTINED)
        if len(quarantined):
            files.table("quarantine.parquet", pl.concat([archive.quarantine(), quarantined]))
        files.wait()
        files.manifest(_manifest(project, archive.manifest, files.written, split_frames, result, until).to_json())
    finally:
        files.close()


def _manifest(
    project: Project,
    previous: DataManifest,
    written: Mapping[str, FileFacts],
    split_frames: SplitFrames,
    result: AppendResult,
    until: int,
) -> DataManifest:
    old_counts = previous.counts
    counts = replace(
        old_counts,
        read=old_counts.read + result.read,
        kept=old_counts.kept + result.kept,
        removed={
            rule: old_counts.removed.get(rule, 0) + result.removed.get(rule, 0)
            for rule in sorted({*old_counts.removed, *result.removed})
        },
        **{name: len(frame) for name, frame in zip(SPLITS, split_frames[:3], strict=True)},
    )
    return replace(
        previous,
        code=__version__,
        cut=result.cut,
        held_seq=result.held_seq,
        watermark=until,
        split_hash=split_hash(written),
        counts=counts,
        files={**previous.files, **written},
        config=project.config.model_dump(mode="json", by_alias=True),
        updates=(*previous.updates, UpdateRecord(previous.watermark + 1, until, result.read, result.kept)),
    )


def publish_data(staged: Path, data: Path, windows: tuple[WindowLoss, ...]) -> None:
    """Rename the files of `append` into ``data/``, the manifest last.

    A call after a crash continues the interrupted one.

    Args:
        windows: Losses of the earlier windows, for the next input check.
    """
    for table in sorted(staged.rglob("*.parquet")):
        move(table, data / table.relative_to(staged))
    manifest_file = staged / MANIFEST
    if not manifest_file.exists():
        return
    manifest = replace(DataManifest.read(staged), windows=windows)
    if (data / MANIFEST).exists():  # files may have been read while this run was interrupted
        manifest = replace(manifest, sources=DataManifest.read(data).sources)
    replace_json(data / MANIFEST, manifest.to_json())
    manifest_file.unlink()
