"""Labels of an update: the change from new rows equals that from all rows."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from recloop.config import Clean, Events
from recloop.data import append
from recloop.data import split_change as changes
from recloop.data.compaction import absorbed
from recloop.data.labelled_log import LabelledLog
from recloop.data.split_change import NewRows, SplitChange
from recloop.features.labels import EventLabeler
from recloop.features.learned_range import LearnedRange
from recloop.features.moments import moment_stamps
from recloop.records import DAY, EVENT_SCHEMA, RULE, SECOND, SEQ, USER_ID
from recloop.storage.archive import Archive
from recloop.storage.data_manifest import DataManifest

START = 20_000 * DAY
SIGNAL = EventLabeler(Events(weights={"purchase": 5, "view": 1}, negative=("dislike",)), Clean())
N_OLD, N_NEW = 60, 25


def log(random: np.random.Generator, groups: bool) -> pl.DataFrame:
    """Rows of four users with rule: reused groups, repeats, late rows and removed rows of bursts."""
    n = N_OLD + N_NEW
    days = np.sort(random.uniform(0, 90, n)) - (random.random(n) < 0.15) * random.uniform(0, 40, n)
    close = random.random(n) < 0.3
    stamps = START + np.where(close, np.floor(days), days * 1.0) * DAY + close * random.integers(0, 3, n) * SECOND // 2
    group = np.where((random.random(n) < 0.5) & groups, random.choice(["g1", "g2", "g3"], n), None)
    frame = pl.DataFrame(
        {
            SEQ: np.arange(1, n + 1), USER_ID: random.choice(["ann", "bob", "cas", "dan"], n, p=(0.4, 0.3, 0.2, 0.1)),
            "item_id": random.choice(["a", "b", "c"], n), "timestamp": stamps.astype(np.int64),
            "event_type": random.choice(["view", "purchase", "dislike"], n), "group_id": group.tolist(),
            RULE: np.where((np.arange(n) >= N_OLD) & (random.random(n) < 0.2), "burst", None).tolist(),
        },
        schema_overrides={RULE: pl.String, "group_id": pl.String},
    )  # fmt: skip
    missing = [pl.lit(None, kind).alias(name) for name, kind in EVENT_SCHEMA.items() if name not in frame.columns]
    return frame.with_columns(missing).select(*EVENT_SCHEMA, RULE)


def stored(folder: Path, rows: pl.DataFrame, retracted: list[int]) -> tuple[Archive, LabelledLog]:
    """A data folder over the older rows, and its labels."""
    valid = rows[:N_OLD].select(*EVENT_SCHEMA)
    labelled = moment_stamps(SIGNAL.label(changes.without(valid, retracted)))
    labelled = changes.without(labelled, changes.duplicate_rows(changes.without(valid, retracted)).to_list())
    dropped = sorted({*retracted, *changes.duplicate_rows(valid)})
    tables = {
        "archive/date=2024-10-04/events.parquet": valid,
        f"split/rows-0-{N_OLD}.parquet": labelled.select(changes.COLUMNS),
        f"split/dropped-{N_OLD}.parquet": pl.DataFrame({SEQ: dropped}, schema={SEQ: pl.Int64}),
    }
    for name, frame in tables.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(folder / name)
    counts = {"read": 0, "kept": 0, "removed": {}, "rejected": 0, "train": 0, "valid": 0, "test": 0}
    manifest = {
        "format": 3, "fingerprint": "", "cut": 0, "held_seq": 0, "watermark": N_OLD, "split_hash": "", "counts": counts,
        "config": {}, "labels": "key", "files": {name: {"sha256": "", "bytes": 1} for name in tables},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return Archive(folder), LabelledLog(folder)


def both(folder: Path, seed: int, groups: bool, more: list[int]) -> tuple[SplitChange | None, SplitChange, LabelledLog]:
    """The change from new rows and from all rows; ``more`` are seqs retracted since the last update."""
    random = np.random.default_rng(seed)
    rows = log(random, groups)
    archive, labels = stored(folder, rows, [2, 3])
    learned = LearnedRange(int(random.integers(N_OLD - 20, N_OLD + 1)), START + int(random.integers(30, 80)) * DAY, 40)
    retracted = sorted({*labels.dropped, *more})
    new = rows[N_OLD:]
    inputs = NewRows(
        archive, new, new.filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA), retracted, SIGNAL, "key", Clean(), learned
    )  # fmt: skip
    return changes._of_new_rows(inputs, labels), changes._of_all_rows(inputs), labels


def check_equal(delta: SplitChange, full: SplitChange, labels: LabelledLog) -> None:
    rows = pl.concat([changes.without(labels.rows(), delta.dropped), delta.rows]).sort(SEQ)
    assert rows.equals(full.rows)
    assert (delta.window, delta.n_rows, delta.n_test) == (full.window, full.n_rows, full.n_test)
    assert (delta.dropped, delta.removed_rules) == (full.dropped, full.removed_rules)


@pytest.mark.parametrize("seed", range(12))
def test_change_of_new_rows_equals_that_of_all_rows(seed: int, tmp_path: Path) -> None:
    delta, full, labels = both(tmp_path, seed, groups=True, more=[])
    assert len(full.rows) > N_OLD // 2
    assert delta is not None
    check_equal(delta, full, labels)


@pytest.mark.parametrize("seed", range(4))
def test_change_without_groups_drops_retracted_rows(seed: int, tmp_path: Path) -> None:
    delta, full, labels = both(tmp_path, seed, groups=False, more=[10, 11, N_OLD + 5])
    assert delta is not None
    check_equal(delta, full, labels)
    assert {10, 11} <= set(delta.dropped)


def test_change_needs_all_rows_after_a_restoration_other_labels_or_a_removed_group(tmp_path: Path) -> None:
    rows = log(np.random.default_rng(0), groups=True)
    archive, labels = stored(tmp_path, rows, [2, 3])
    new = rows[N_OLD:]
    learned = LearnedRange(N_OLD, START + 60 * DAY, 40)

    def change(retracted: list[int], key: str) -> SplitChange:
        valid = new.filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
        inputs = NewRows(archive, new[:0], valid[:0], retracted, SIGNAL, key, Clean(), learned)
        return changes.split_change(inputs, labels)

    dropped = labels.dropped.to_list()
    assert not change(dropped, "key").replaces
    assert change([seq for seq in dropped if seq != 2], "key").replaces
    assert change(dropped, "other").replaces
    assert change([*dropped, 20], "key").replaces


def test_absorbed_files_are_the_newest_small_ones_and_stay_few() -> None:
    assert absorbed([], 5) == 0
    assert absorbed([100, 10], 5) == 1
    assert absorbed([100, 11], 5) == 0
    assert absorbed([50, 10, 10], 5) == 3, "what was absorbed counts"
    sizes = [1_000_000]
    for _ in range(1_000):
        count = absorbed(sizes, 10)
        sizes = [*sizes[: len(sizes) - count], 10 + sum(sizes[len(sizes) - count :])]
    assert len(sizes) <= 8
    assert sizes[0] == 1_000_000


def test_staged_data_merges_small_files_of_a_day_and_of_the_split(tmp_path: Path) -> None:
    rows = log(np.random.default_rng(1), groups=True)
    is_new = pl.col(SEQ) > N_OLD
    rows = rows.with_columns(
        pl.when(is_new).then(START + pl.col(SEQ) * DAY // 100).otherwise("timestamp").alias("timestamp")
    )
    data = tmp_path / "data"
    archive, labels = stored(data, rows, [2, 3])
    new = rows[N_OLD:]
    valid = new.filter(pl.col(RULE).is_null()).select(*EVENT_SCHEMA)
    learned = LearnedRange(N_OLD, START + 60 * DAY, 40)
    inputs = NewRows(archive, new, valid, labels.dropped.to_list(), SIGNAL, "key", Clean(), learned)
    change = changes.split_change(inputs, labels)
    assert not change.replaces
    project: Any = SimpleNamespace(config=SimpleNamespace(model_dump=lambda **_: {}))
    nothing: Any = SimpleNamespace(items=lambda *_: pl.DataFrame(), users=lambda *_: pl.DataFrame())
    result = append._result(inputs, change)
    append._StagedData(project, labels, inputs, change, result, N_OLD + N_NEW).write(nothing, tmp_path / "staged")
    append.publish_data(tmp_path / "staged", data, ())
    after = Archive(data)
    assert after.events().equals(pl.concat([archive.events(), valid]))
    day = "archive/date=2024-10-04"
    assert after.files() == {"2024-10-04": [f"{day}/events-1-{N_OLD + N_NEW}.parquet"]}
    assert set(after.manifest.superseded) == set(labels.manifest.files)
    assert LabelledLog(data).rows().equals(changes._of_all_rows(inputs).rows)
    assert (data / day / "events.parquet").exists(), "a server may still read it"
    append.remove_superseded(data)
    assert not (data / day / "events.parquet").exists()
    assert Archive(data).events().equals(after.events())


def published(folder: Path, name: str, files: dict[str, str], superseded: list[str]) -> Path:
    """A folder with a manifest over these files, which hold their text."""
    counts = {"read": 0, "kept": 0, "removed": {}, "rejected": 0, "train": 0, "valid": 0, "test": 0}
    manifest = {
        "format": 3, "fingerprint": name, "cut": 0, "split_hash": "", "counts": counts, "config": {},
        "files": {file: {"sha256": "", "bytes": 1} for file in files}, "superseded": superseded,
    } | {"watermark": ("data", "staged", "later").index(name)}  # fmt: skip
    for file, text in files.items():
        (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / file).write_text(text)
    (folder / name / "manifest.json").write_text(json.dumps(manifest))
    return folder / name


@pytest.mark.parametrize("crash_at", range(3))
def test_publish_data_after_a_crash_continues_and_deletes_files_one_version_later(
    crash_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = "archive/date=2024-10-04"
    old = {f"{day}/events-1-2.parquet": "b", f"{day}/events-3-3.parquet": "c"}
    data = published(tmp_path, "data", old, [f"{day}/events.parquet"])
    (data / day / "events.parquet").write_text("a")
    staged = published(
        tmp_path, "staged", {f"{day}/events-1-4.parquet": "bcd", "split/rows-4-4.parquet": "d"}, list(old)
    )
    calls = 0

    def fail(step: str) -> None:
        original = getattr(append, step)

        def one(*arguments: object) -> None:
            nonlocal calls
            calls += 1
            if calls == crash_at + 1:
                raise OSError("no space left on device")
            original(*arguments)

        monkeypatch.setattr(append, step, one)

    fail("move")
    fail("replace_json")
    with pytest.raises(OSError, match="no space"):
        append.publish_data(staged, data, ())
    assert DataManifest.read(data).fingerprint == "data", "the manifest is last"
    assert all((data / name).exists() for name in old)
    monkeypatch.undo()
    append.publish_data(staged, data, ())
    assert DataManifest.read(data).fingerprint == "staged"
    assert sorted(path.name for path in (data / day).iterdir()) == [
        "events-1-2.parquet", "events-1-4.parquet", "events-3-3.parquet",
    ]  # fmt: skip
    append.publish_data(published(tmp_path, "later", {f"{day}/events-1-4.parquet": "bcd"}, []), data, ())
    assert sorted(path.name for path in (data / day).iterdir()) == ["events-1-4.parquet"]
