"""A log cleaned in shards gives the same ``data/``, byte for byte, as the same log in memory."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet
import pytest

from recloop.data import prepare as module
from recloop.data import sharded_log, shards, sources, tables
from recloop.data.atomic_folder import AtomicFolder
from recloop.data.csv import table as csv_table
from recloop.data.prepare import prepare
from recloop.data.shards import Shards
from recloop.errors import UserError
from recloop.files import remove_folder
from recloop.project import Project, open_project
from recloop.records import DAY, USER_ID, now
from recloop.storage.forgotten import Erasure, person_hash, record

SETTINGS = """[data]
events = "events.csv"
items = "items.csv"
[data.columns]
user_id = "user_id"
item_id = "item_id"
timestamp = "timestamp"
event_type = "event_type"
value = "value"
quantity = "quantity"
group_id = "group_id"
event_id = "event_id"
[events]
positive = ["purchase"]
history = ["view"]
[events.undo]
return = "purchase"
[clean]
max_removed = 0.9
max_rejected = 0.9
exclude_items = ["i3"]
keep = "quantity > 0"
[clean.burst]
events = 3
seconds = 7200
"""


def write_log(folder: Path, size: int = 1_500) -> None:
    """Log in any order with guests, baskets, repeated ids, duplicates, bursts, dwells and rejects."""
    rng = np.random.default_rng(5)
    frame = pl.DataFrame(
        {
            "event_id": [f"e{number}" for number in rng.integers(0, size * 20, size)],
            "user_id": [f"u{number}" if number < 50 else "" for number in rng.integers(0, 52, size)],
            "item_id": [f"i{number}" if number < 60 else "" for number in rng.integers(0, 61, size)],
            "timestamp": rng.integers(0, 12 * 24, size) * (DAY // 24) + 1_700_000_000_000_000,
            "event_type": rng.choice(["view", "purchase", "return", "dwell", "odd"], size),
            "value": rng.integers(0, 90, size),
            "quantity": rng.integers(0, 9, size),
            "group_id": [f"g{number}" if number < 300 else "" for number in rng.integers(0, 500, size)],
        }
    )
    unnamed = frame[:60].with_columns(event_id=pl.lit(""))
    copies = pl.concat([frame, frame[:60], unnamed, unnamed])
    stamps = pl.from_epoch("timestamp", time_unit="us").dt.strftime("%Y-%m-%dT%H:%M:%S")
    copies.with_columns(stamps).write_csv(folder / "events.csv")
    with (folder / "events.csv").open("a") as file:
        file.write("x,u1,i1,2023-11-20T00:00:00\n")
    pl.DataFrame({"item_id": [f"i{n}" for n in range(50)], "duration": range(50)}).write_csv(folder / "items.csv")
    (folder / "recloop.toml").write_text(SETTINGS)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def sharded(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Function that makes `prepare` use a number of shards, and small blocks and days."""

    def use(n_shards: int) -> None:
        monkeypatch.setattr(sharded_log, "MIN_SHARDED_BYTES", 0)
        monkeypatch.setattr(sharded_log, "DAY_ROWS", 500)
        monkeypatch.setattr(csv_table, "BLOCK_BYTES", 1 << 15)
        monkeypatch.setattr(
            sharded_log.ShardedLog,
            "open",
            classmethod(lambda cls, folder, sources, config, forgotten: cls(folder, n_shards, config, forgotten)),
        )

    return use


def refuse(*_: object) -> None:
    raise AssertionError("the log was read whole")


def test_prepare_in_shards_equals_prepare_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: Callable[[int], None]
) -> None:
    write_log(tmp_path)
    project = open_project(tmp_path)
    in_memory = prepare(project)
    whole = files_of(project.data)
    removed = in_memory.report.removed
    assert {"event_id", "exclude_items", "keep", "burst", "duplicates"} <= set(removed)
    assert in_memory.report.guests.rows
    assert in_memory.report.rejected > 1
    assert project_has_dwells(project)
    for n_shards in (1, 7):
        sharded(n_shards)
        monkeypatch.setattr(module, "_prepare_whole", refuse)
        assert prepare(project) == in_memory
        assert files_of(project.data) == whole


def test_prepare_in_shards_leaves_out_the_forgotten_users_of_prepare_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: Callable[[int], None]
) -> None:
    """Other rows keep their seqs, and the left-out rows are counted."""
    write_log(tmp_path)
    project = open_project(tmp_path)
    prepare(project)
    before = project.open_archive().events()
    names = [person_hash(tmp_path, user) for user in ("u1", "u2")]
    record(tmp_path, [Erasure(user=name, requested=now(), seq=1, stores=1) for name in names])
    in_memory = prepare(project)
    whole = files_of(project.data)
    assert project.open_archive().events().equals(before.filter(~pl.col(USER_ID).is_in(["u1", "u2"])))
    assert in_memory.report.removed["forgotten"] > 10
    report = in_memory.report
    assert report.read == report.kept + sum(report.removed.values()) + report.rejected
    sharded(7)
    monkeypatch.setattr(module, "_prepare_whole", refuse)
    assert prepare(project) == in_memory
    assert files_of(project.data) == whole


@pytest.mark.parametrize("form", ["seconds", "milliseconds.gz", "parquet", "parquet.zoned", "parquet.seconds"])
def test_prepare_in_shards_of_other_forms_equals_prepare_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: Callable[[int], None], form: str
) -> None:
    write_log(tmp_path, 500)
    lines = (tmp_path / "events.csv").read_text().splitlines()
    frame = pl.read_csv("\n".join(lines[:-1]).encode(), infer_schema=False).with_columns(
        pl.col("timestamp").str.to_datetime(time_unit="us"), pl.col("value").cast(pl.Float64)
    )
    seconds = frame.with_columns(pl.col("timestamp").dt.epoch("s"))
    if form == "parquet":
        frame.write_parquet(tmp_path / "events.csv")
    elif form == "parquet.zoned":
        frame.with_columns(pl.col("timestamp").dt.replace_time_zone("UTC")).write_parquet(tmp_path / "events.csv")
    elif form == "parquet.seconds":
        seconds.write_parquet(tmp_path / "events.csv")
    elif form == "seconds":
        seconds.write_csv(tmp_path / "events.csv")
    else:
        text = frame.with_columns(pl.col("timestamp").dt.epoch("ms")).write_csv()
        (tmp_path / "events.csv").write_bytes(gzip.compress(text.encode(), mtime=0))
    project = open_project(tmp_path)
    in_memory = prepare(project)
    assert in_memory.report.rejected
    whole = files_of(project.data)
    sharded(3)
    monkeypatch.setattr(tables, "BLOCK_ROWS", 100)
    monkeypatch.setattr(module, "_prepare_whole", refuse)
    assert prepare(project) == in_memory
    assert files_of(project.data) == whole


@pytest.mark.parametrize("form", ["lines", "array", "baskets", "lines.gz", "numbers"])
def test_prepare_of_json_in_blocks_equals_prepare_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: Callable[[int], None], form: str
) -> None:
    write_log(tmp_path, 300)
    rows = [*csv.DictReader((tmp_path / "events.csv").read_text().splitlines())][:-1]
    path = "events.jsonl.gz" if form == "lines.gz" else "events.json"
    settings = SETTINGS.replace("events.csv", path)
    if form == "baskets":
        settings = settings.replace('item_id = "item_id"', 'item_id = "lines[].item_id"')
        settings = settings.replace('items = "items.csv"\n', "")
        names = ("event_id", "item_id")
        rows = [
            {**row, "lines": [{name: part[name] for name in names} for part in (row, rows[0])], "item_id": "x"}
            for row in rows
        ]
    if form == "numbers":
        rows = [{**row, "value": int(row["value"] or 0), "user_id": int(row["user_id"][1:] or 7)} for row in rows]
    texts = [json.dumps(row) for row in rows]
    if form == "array":
        text = "[" + ",\n".join(texts) + "]"
    else:
        text = "\n".join([*texts[:40], '{"user_id": "u1"', "[]", *texts[40:], '{"user_id": "u1", "item_id": "i1"}', ""])
    (tmp_path / path).write_bytes(gzip.compress(text.encode(), mtime=0) if form == "lines.gz" else text.encode())
    (tmp_path / "recloop.toml").write_text(settings)
    project = open_project(tmp_path)
    in_memory = prepare(project)
    assert in_memory.report.rejected >= (3 if form == "lines" else 1)
    whole = files_of(project.data)
    sharded(3)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1 << 13)
    monkeypatch.setattr(module, "_prepare_whole", refuse)
    assert prepare(project) == in_memory
    assert files_of(project.data) == whole


def test_prepare_of_json_with_a_late_column_reads_the_log_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: Callable[[int], None]
) -> None:
    write_log(tmp_path, 300)
    rows = [*csv.DictReader((tmp_path / "events.csv").read_text().splitlines())][:-1]
    for row in rows[:200]:
        del row["group_id"]
    (tmp_path / "events.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "recloop.toml").write_text(SETTINGS.replace("events.csv", "events.jsonl"))
    project = open_project(tmp_path)
    in_memory = prepare(project)
    whole = files_of(project.data)
    sharded(3)
    monkeypatch.setattr(sources, "BLOCK_BYTES", 1 << 13)
    assert prepare(project) == in_memory
    assert files_of(project.data) == whole


def project_has_dwells(project: Project) -> bool:
    return module.load(project).dwell is not None


@pytest.mark.parametrize(
    "setting", ["data.columns.anonymous_id=event_type", "split.k_core=2", 'data.timezone="Europe/Berlin"', "decimals"]
)
def test_prepare_of_dependent_rows_reads_the_log_whole(
    tmp_path: Path, sharded: Callable[[int], None], setting: str
) -> None:
    write_log(tmp_path, 600)
    if setting == "decimals":
        path = tmp_path / "events.csv"
        path.write_text(path.read_text().replace(",view,5", ',view,"5,5"', 1))
    project = open_project(tmp_path, [] if setting == "decimals" else [setting])
    in_memory = prepare(project)
    whole = files_of(project.data)
    sharded(3)
    assert prepare(project) == in_memory
    assert files_of(project.data) == whole


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("clean.max_removed=0.01", "rule"),
        ("clean.max_rejected=0.01", "rejected"),
        ('clean.keep="value > 99"', "rule keep"),
    ],
)
def test_prepare_in_shards_of_a_bad_log_keeps_the_old_data(
    tmp_path: Path, sharded: Callable[[int], None], setting: str, name: str
) -> None:
    write_log(tmp_path, 600)
    prepare(open_project(tmp_path))
    before = files_of(tmp_path)
    project = open_project(tmp_path, [setting])
    with pytest.raises(UserError) as in_memory:
        prepare(project)
    sharded(2)
    with pytest.raises(UserError) as in_shards:
        prepare(project)
    assert str(in_shards.value) == str(in_memory.value)
    assert str(in_shards.value).startswith(name)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("full_at", ["users", "days", "split"])
def test_prepare_in_shards_on_a_full_disk_keeps_the_old_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: Callable[[int], None], full_at: str
) -> None:
    write_log(tmp_path, 600)
    project = open_project(tmp_path)
    prepare(project)
    before = files_of(tmp_path)
    sharded(2)

    owner, step = (AtomicFolder, "drain") if full_at == "split" else (Shards, "_flush")
    original = getattr(owner, step)

    def full(self: Any) -> None:
        if full_at in ("split", self.folder.name):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self)

    monkeypatch.setattr(owner, step, full)
    with pytest.raises(UserError, match="free space"):
        prepare(project)
    assert files_of(tmp_path) == before


def test_prepare_after_a_crash_between_shards_starts_clean(tmp_path: Path, sharded: Callable[[int], None]) -> None:
    write_log(tmp_path, 600)
    project = open_project(tmp_path)
    prepare(project)
    before = files_of(project.data)
    remove_folder(project.data)
    (tmp_path / "data.tmp" / "shards" / "users").mkdir(parents=True)
    (tmp_path / "data.tmp" / "shards" / "users" / "00000.arrow").write_bytes(b"cut short")
    sharded(2)
    prepare(project)
    assert files_of(project.data) == before
    assert not (tmp_path / "data.tmp").exists()


def test_shards_return_rows_in_the_order_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_PENDING_ROWS", 10)
    store = Shards(tmp_path / "rows", 4)
    rows = pl.DataFrame({"row": range(100), "text": [f"t{n % 5}" for n in range(100)]})
    for start in range(0, 100, 7):
        part = rows[start : start + 7]
        store.append(part, part["row"] % 3)
    store.close()
    assert store.rows(3) is None
    assert [frame["row"].to_list() for frame in store] == [list(range(shard, 100, 3)) for shard in range(3)]


def test_streamed_table_equals_a_table_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recloop.data.atomic_folder.GROUP_ROWS", 64)
    frame = pl.DataFrame({"n": range(500), "text": [f"t{n % 9}" for n in range(500)], "none": [None] * 500})
    schema = {"n": pl.Int64, "text": pl.String, "none": pl.String}
    files = AtomicFolder(tmp_path / "staged")
    stream = files.stream("parts.parquet", schema)
    for start, end in ((0, 1), (1, 130), (130, 130), (130, 499), (499, 500)):
        stream.append(frame[start:end].drop("none"))
    files.finished("parts.parquet", stream)
    files.table("whole.parquet", frame.cast({"none": pl.String}))
    empty = files.stream("empty.parquet", schema)
    files.finished("empty.parquet", empty)
    files.table("no-rows.parquet", pl.DataFrame(schema=schema))
    files.wait()
    files.close()
    assert files.written["parts.parquet"] == files.written["whole.parquet"]
    assert files.written["empty.parquet"] == files.written["no-rows.parquet"]
    read = pyarrow.parquet.read_table(io.BytesIO((tmp_path / "staged" / "parts.parquet").read_bytes()))
    assert read.num_rows == 500
