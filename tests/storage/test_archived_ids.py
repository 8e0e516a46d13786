"""Hashes of archived ids: grown per update, merged, rebuilt, and read without the rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from recloop.storage import archived_ids
from recloop.storage.archived_ids import HASHES, ArchivedIds


def rows(first: int, last: int) -> pl.LazyFrame:
    seqs = range(first, last + 1)
    return pl.LazyFrame(
        {
            "seq": seqs, "event_id": [f"e{seq // 2}" if seq % 3 else None for seq in seqs],
            "user_id": [f"u{seq % 5}" for seq in seqs], "item_id": [f"i{seq}" for seq in seqs],
        },
        schema_overrides={"event_id": pl.String},
    )  # fmt: skip


def rows_after(last: int) -> Callable[[int], pl.LazyFrame]:
    return lambda after: rows(after + 1, last)


def seqs_by_scan(ids: list[str], last: int) -> list[int]:
    return rows(1, last).filter(pl.col("event_id").is_in(ids)).collect()["seq"].to_list()


def test_archived_ids_equal_a_scan_of_the_rows_after_each_update(tmp_path: Path) -> None:
    asked = ["e1", "e7", "e20", "e31", "e99", ""]
    for last in (0, 20, 20, 24, 31, 45, 46, 47, 48, 49, 64):
        ids = ArchivedIds.open(tmp_path, rows_after(last), last)
        assert ids.seqs_of(asked) == seqs_by_scan(asked, last)
        users, items = pl.Series(["u0", "u4", "u5", "i1"]), pl.Series(["i1", "i64", "u0"])
        assert ids.has("user_id", users).tolist() == [last > 0, last > 0, False, False]
        assert ids.has("item_id", items).tolist() == [last > 0, last == 64, False]
        mapped = ArchivedIds.open(tmp_path, rows_after(0), last)  # without rows to read
        assert mapped.seqs_of(asked) == ids.seqs_of(asked)
    folders = list((tmp_path / "ids" / HASHES).iterdir())
    assert len(folders) <= 5, "folders of similar size are merged"


def test_archived_ids_of_a_small_update_do_not_rewrite_the_large_part(tmp_path: Path) -> None:
    ArchivedIds.open(tmp_path, rows_after(1_000), 1_000)
    large = tmp_path / "ids" / HASHES / "0-1000"
    before = large.stat().st_ino
    ids = ArchivedIds.open(tmp_path, rows_after(1_010), 1_010)
    assert large.stat().st_ino == before
    assert (large.parent / "1000-1010").is_dir()
    assert ids.seqs_of(["e1", "e505"]) == seqs_by_scan(["e1", "e505"], 1_010)


def cut_short(folder: Path) -> None:
    file = folder / "hashes.npy"
    file.write_bytes(file.read_bytes()[:140])


def without_file(folder: Path) -> None:
    (folder / "seqs.npy").unlink()


def other_version(folder: Path) -> None:
    folder.parent.rename(folder.parent.with_name("0.1"))


@pytest.mark.parametrize("damage", [cut_short, without_file, other_version])
def test_archived_ids_after_damage_are_written_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    ArchivedIds.open(tmp_path, rows_after(40), 40)
    folder = tmp_path / "ids" / HASHES / "0-40"
    damage(folder)
    assert ArchivedIds.open(tmp_path, rows_after(40), 40).seqs_of(["e7"]) == seqs_by_scan(["e7"], 40)
    assert ArchivedIds.open(tmp_path, rows_after(0), 40).seqs_of(["e7"]) == seqs_by_scan(["e7"], 40)
    assert [path.name for path in (tmp_path / "ids").iterdir()] == [HASHES]


def test_archived_ids_on_a_full_disk_work_from_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archived_ids.os, "fsync", full)
    assert ArchivedIds.open(tmp_path, rows_after(40), 40).seqs_of(["e7"]) == seqs_by_scan(["e7"], 40)
    monkeypatch.undo()
    assert ArchivedIds.open(tmp_path, rows_after(40), 40).seqs_of(["e7"]) == seqs_by_scan(["e7"], 40)
