"""``data/``: written atomically, byte-identical, hashed, and read back unchanged."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow.parquet
import pytest

from recloop.data import staging
from recloop.data.clean import LABELLED, QUARANTINED
from recloop.data.prepare import load, prepare
from recloop.data.read import read_events
from recloop.errors import UserError
from recloop.project import Project, open_project
from recloop.records import EVENT_SCHEMA, ITEM_SCHEMA, USER_SCHEMA
from recloop.simulation.shop import SimulatedShop

ProjectFactory = Callable[..., Project]


def tree(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def project_with_bad_rows(tmp_path: Path) -> Project:
    """A small simulated shop with one rejected and one quarantined row."""
    folder = SimulatedShop(seed=0, users=100, items=100, days=90).write(tmp_path / "shop")
    with (folder / "events.csv").open("a") as file:
        file.write("x1,,i001,2025-03-01T00:00:00Z,click,,,\n")
        file.write("x2,u001,i001,2025-03-01T00:00:00Z,purchase,1,0,\n")
    return open_project(folder)


def test_prepare_accounts_for_every_row(project_with_bad_rows: Project) -> None:
    made = prepare(project_with_bad_rows)
    report = made.report
    assert report.read == report.kept + sum(report.removed.values()) + report.rejected
    assert report.rejected == 1
    assert report.removed == {"keep": 1}
    assert report.kept == len(load(project_with_bad_rows).events) == made.train + made.valid + made.test
    rejects = (project_with_bad_rows.data / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in rejects] == ["no user_id"]
    assert [json.loads(line)["raw"] for line in rejects] == ["x1,,i001,2025-03-01T00:00:00Z,click,,,"]


def test_prepare_numbers_every_row_in_order_of_time(project_with_bad_rows: Project) -> None:
    made, data = prepare(project_with_bad_rows), load(project_with_bad_rows)
    assert data.items is not None
    assert data.users is not None
    quarantine = pl.read_parquet(project_with_bad_rows.data / "quarantine.parquet")
    assert dict(quarantine.schema) == QUARANTINED
    seqs = [*data.items["seq"], *data.users["seq"], *sorted([*data.events["seq"], *quarantine["seq"]])]
    assert seqs == list(range(1, made.watermark + 1))
    assert data.events["seq"].is_sorted()
    by_seq = pl.concat([data.events.select("seq", "timestamp"), quarantine.select("seq", "timestamp")]).sort("seq")
    assert by_seq["timestamp"].is_sorted()


def test_prepare_writes_files_with_the_documented_schemas(project_with_bad_rows: Project) -> None:
    made = prepare(project_with_bad_rows)
    data = load(project_with_bad_rows)
    for name, frame in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        assert dict(frame.schema) == LABELLED
        assert len(frame) == getattr(made, name) > 0
    assert data.items is not None
    assert dict(data.items.schema) == ITEM_SCHEMA
    assert data.users is not None
    assert dict(data.users.schema) == USER_SCHEMA
    archive = sorted((project_with_bad_rows.data / "archive").glob("date=*/*.parquet"))
    frames = [pl.read_parquet(path, hive_partitioning=False) for path in archive]
    assert all(dict(frame.schema) == EVENT_SCHEMA for frame in frames)
    assert pl.concat(frames).sort("seq").equals(data.events.select(*EVENT_SCHEMA))
    for path, frame in zip(archive, frames, strict=True):
        days = pl.from_epoch(frame["timestamp"], time_unit="us").dt.strftime("%Y-%m-%d").unique().to_list()
        assert [f"date={day}" for day in days] == [path.parent.name]
    chunk = pyarrow.parquet.ParquetFile(archive[0]).metadata.row_group(0).column(0)
    assert chunk.compression == "ZSTD"


def test_prepare_manifest_contains_the_hash_of_every_file(project_with_bad_rows: Project) -> None:
    made = prepare(project_with_bad_rows)
    manifest = load(project_with_bad_rows).manifest
    written = tree(project_with_bad_rows.data)
    del written["manifest.json"]
    assert {name: facts.sha256 for name, facts in manifest.files.items()} == written
    split_hash = hashlib.sha256("".join(written[f"split/{n}.parquet"] for n in ("train", "valid", "test")).encode())
    assert manifest.split_hash == split_hash.hexdigest()
    assert (manifest.cut, manifest.watermark) == (made.cut, made.watermark)
    assert manifest.fingerprint == made.fingerprint
    assert manifest.config["data"]["events"] == "events.csv"


def test_prepare_of_equal_input_gives_equal_bytes(project_with_bad_rows: Project, tmp_path: Path) -> None:
    prepare(project_with_bad_rows)
    first = tree(project_with_bad_rows.data)
    prepare(project_with_bad_rows)
    assert tree(project_with_bad_rows.data) == first
    shutil.copytree(project_with_bad_rows.root, tmp_path / "other", ignore=shutil.ignore_patterns("data"))
    other = open_project(tmp_path / "other")
    prepare(other)
    assert tree(other.data) == first


def test_prepare_test_rows_follow_the_cut(project_with_bad_rows: Project) -> None:
    made = prepare(project_with_bad_rows)
    data = load(project_with_bad_rows)
    assert data.test["stamp"].min() >= made.cut  # type: ignore[operator]
    assert data.train["stamp"].max() < made.cut  # type: ignore[operator]
    assert data.valid["stamp"].max() < made.cut  # type: ignore[operator]


def test_load_with_a_flipped_byte_raises(project_with_bad_rows: Project) -> None:
    prepare(project_with_bad_rows)
    path = project_with_bad_rows.data / "split" / "train.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(UserError, match="a complete file"):
        load(project_with_bad_rows)


def test_prepare_that_fails_keeps_the_earlier_data(
    project_with_bad_rows: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(project_with_bad_rows)
    before = tree(project_with_bad_rows.root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging, "swap_folder", full)
    with pytest.raises(OSError, match="No space"):
        prepare(project_with_bad_rows)
    monkeypatch.undo()
    with pytest.raises(UserError):
        prepare(open_project(project_with_bad_rows.root, ['clean.keep="quantity > 5"']))
    assert tree(project_with_bad_rows.root) == before


def test_prepare_of_a_bad_log_writes_no_files(project_factory: ProjectFactory) -> None:
    project = project_factory("user_id,item_id,timestamp\nu,i,2025-01-01\nv,j,2025-01-01\n")
    before = tree(project.root)
    with pytest.raises(UserError, match="one instant"):
        prepare(project)
    assert tree(project.root) == before
    assert not project.data.exists()


def test_load_after_an_interrupted_swap_restores_the_data(project_with_bad_rows: Project) -> None:
    prepare(project_with_bad_rows)
    before = tree(project_with_bad_rows.data)
    project_with_bad_rows.data.rename(project_with_bad_rows.root / "data.old")
    assert load(project_with_bad_rows).manifest.watermark > 0
    assert tree(project_with_bad_rows.data) == before
    assert not (project_with_bad_rows.root / "data.old").exists()


def test_prepare_of_another_import_with_logged_rows_is_refused(project_with_bad_rows: Project) -> None:
    prepare(project_with_bad_rows)
    prepare(project_with_bad_rows, logged=True)
    prepare(
        open_project(project_with_bad_rows.root, ['clean.burst="off"']), logged=True
    )  # other rules with the same import
    before = tree(project_with_bad_rows.data)
    with (project_with_bad_rows.root / "events.csv").open("a") as file:
        file.write("x3,u001,i001,2025-03-01T00:00:00Z,purchase,1,1,\n")
    with pytest.raises(UserError) as caught:
        prepare(project_with_bad_rows, logged=True)
    assert "recloop update --restart" in caught.value.fix
    assert tree(project_with_bad_rows.data) == before
    prepare(project_with_bad_rows)


def test_load_without_prepared_data_names_update(project_factory: ProjectFactory) -> None:
    with pytest.raises(UserError, match="try: recloop update"):
        load(project_factory(""))


def test_prepare_of_one_user_or_one_item_warns(project_factory: ProjectFactory) -> None:
    head = "user_id,item_id,timestamp\n"
    for rows in (["u,i{},2025-01-{:02}"] * 20, ["u{},i,2025-01-{:02}"] * 20):
        log = head + "\n".join(row.format(n, n + 1) for n, row in enumerate(rows))
        made = prepare(project_factory(log))
        assert (made.train + made.valid, made.test) == (18, 2)
        assert any(warning.startswith("only one ") for warning in made.report.warnings)


def test_read_events_keeps_the_order_of_the_file(project_with_bad_rows: Project) -> None:
    raw = read_events(project_with_bad_rows)
    assert raw.read == len(raw.frame) + 1
    assert raw.frame["event_id"].to_list()[:2] == ["e0000001", "e0000002"]
