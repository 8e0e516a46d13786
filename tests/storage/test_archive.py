"""Archived rows: by event_id, by user and timestamp, and all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from recloop.errors import UserError
from recloop.records import DAY, EVENT_SCHEMA, RULE
from recloop.storage.archive import Archive
from recloop.storage.data_manifest import DataManifest

START = 20_000 * DAY  # 2024-10-04


def rows(*given: tuple[int, str | None, str, int]) -> pl.DataFrame:
    """Events of (seq, event_id, user_id, timestamp)."""
    full = [
        {"seq": seq, "event_id": event_id, "user_id": user, "item_id": f"i{seq}", "timestamp": stamp, "event_type": "x"}
        for seq, event_id, user, stamp in given
    ]
    return pl.DataFrame([{name: row.get(name) for name in EVENT_SCHEMA} for row in full], schema=EVENT_SCHEMA)


def manifest(**changed: object) -> dict[str, object]:
    """A manifest of ``data/`` with the keys that every version writes."""
    counts = {"read": 8, "kept": 6, "removed": {"burst": 2}, "rejected": 0, "train": 4, "valid": 0, "test": 0}
    return {
        "format": 2, "code": "0.1.0", "fingerprint": "f" * 64, "cut": START, "split_hash": "s" * 64, "counts": counts,
        "sources": [], "catalogs": [], "report": {}, "files": {"items.parquet": {"sha256": "a" * 64, "bytes": 7}},
        "config": {"split": {"protocol": "temporal"}}, **changed,
    }  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    days = {
        "2024-10-04": rows((3, "e3", "u", START + 5), (4, None, "v", START + 6)),
        "2024-10-05": rows((6, "e6", "u", START + DAY), (7, "e7", "u", START + DAY + 100)),
    }
    for day, frame in days.items():
        folder = tmp_path / "archive" / f"date={day}"
        folder.mkdir(parents=True)
        frame.write_parquet(folder / "events.parquet")
    quarantined = rows((5, "e3", "u", START + 5), (8, "e8", "u", START + DAY + 200))
    quarantined.with_columns(pl.lit("burst").alias(RULE)).write_parquet(tmp_path / "quarantine.parquet")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest(watermark=8)))
    return Archive(tmp_path)


def test_archive_reads_all_rows_in_order(archive: Archive) -> None:
    assert archive.watermark == 8
    assert archive.events()["seq"].to_list() == [3, 4, 6, 7]
    assert archive.events().schema == EVENT_SCHEMA
    assert archive.items() is None
    assert archive.users() is None


def test_archive_known_event_ids_give_the_first_row(archive: Archive) -> None:
    found = archive.known(["e3", "e7", "e8", "nope"])
    assert {name: event.seq for name, event in found.items()} == {"e3": 3, "e7": 7, "e8": 8}
    assert found["e7"].user_id == "u"
    assert archive.known([]) == {}


def test_archive_between_includes_quarantined_rows(archive: Archive) -> None:
    near = archive.between(["u"], START + DAY - 1, START + DAY + 200)
    assert near["seq"].to_list() == [6, 7, 8]
    assert near["rule"].to_list() == [None, None, "burst"]
    assert archive.between(["u", "v"], START, START + 6)["seq"].to_list() == [3, 4, 5]
    assert archive.between(["u"], START + 2 * DAY, START + 3 * DAY).is_empty()
    assert archive.between(["u"], -(10**18), 10**18)["seq"].to_list() == [3, 5, 6, 7, 8]


def test_archive_has_id_of_users_and_items(archive: Archive) -> None:
    assert archive.has_id("item_id", "i4")
    assert archive.has_id("item_id", "i8")
    assert not archive.has_id("item_id", "u")
    assert archive.has_id("user_id", "v")


def test_archive_without_prepared_data_raises_and_names_update(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data=.*manifest.json: expected a prepared log; try: recloop update"):
        Archive(tmp_path)


def test_data_manifest_round_trips_through_json() -> None:
    tree = manifest(
        watermark=9, held_seq=4, imported=5, dwell={"weight": 1}, later=[1, None],
        sources=[{"name": "a.csv", "sha256": "b" * 64, "bytes": 3, "rows": 2, "rejected": 1}],
        updates=[{"from_seq": 6, "to_seq": 9, "read": 4, "kept": 4}],
        windows=[
            {"to_seq": 9, "bundle": "counts-x", "loss": 0.5, "queries": 30, "spread": 0.25}, {"to_seq": 7, "loss": 1.5},
        ],
    )  # fmt: skip
    parsed = DataManifest.from_json(tree)
    assert parsed.to_json() == tree
    assert parsed.imported_until == 5
    assert replace(parsed, imported=None).imported_until == 5, "before the first update"
    assert replace(parsed, imported=None, updates=()).imported_until == 9


@pytest.mark.parametrize("key", ["fingerprint", "cut", "watermark", "split_hash", "counts", "files", "config"])
def test_data_manifest_without_a_key_raises_and_names_it(key: str) -> None:
    tree = manifest(watermark=8)
    del tree[key]
    with pytest.raises(UserError, match=rf"data/manifest\.json\.{key}=missing.*recloop prepare"):
        DataManifest.from_json(tree)


def test_archive_look_ups_read_only_files_with_a_match(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.load_ids()
    scanned: list[str] = []
    scan = Archive._scan

    def counted(self: Archive, files: list[Path]) -> pl.LazyFrame:
        scanned.extend(file.parent.name for file in files)
        return scan(self, files)

    monkeypatch.setattr(Archive, "_scan", counted)
    assert archive.known(["nope", "e"]) == {}
    assert [archive.has_id("item_id", name) for name in ("i4", "i8", "u")] == [True, True, False]
    assert archive.between(["u"], START + 5 * DAY, START + 6 * DAY).is_empty()
    assert scanned == []
    assert archive.known(["e7"])["e7"].seq == 7
    assert scanned == ["date=2024-10-05"]


def test_new_ids_are_those_without_a_valid_event(archive: Archive) -> None:
    assert archive.new_ids("item_id", pl.Series(["i3", "i5", "i9", "i9", "i7"])) == {"i5", "i9"}, "i5 is in quarantine"
    assert archive.new_ids("user_id", pl.Series(["u", "v", "w"])) == {"w"}


def test_archive_ids_of_new_rows_are_read_from_the_files_of_updates_only(archive: Archive) -> None:
    archive.open_ids()
    (archive.data / "manifest.json").write_text(json.dumps(manifest(watermark=9, imported=8)))
    rows((9, "e9", "w", START + DAY + 300)).write_parquet(
        archive.data / "archive" / "date=2024-10-05" / "events-9-9.parquet"
    )
    for file in archive.data.glob("archive/*/events.parquet"):
        file.write_bytes(b"unreadable")
    ids = Archive(archive.data).open_ids()
    assert [ids.seqs_of([name]) for name in ("e7", "e8", "e9")] == [[7], [8], [9]]
    assert ids.has("user_id", pl.Series(["u", "w", "x"])).tolist() == [True, True, False]
