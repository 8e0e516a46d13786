"""Atomic writes: readers see the old or the new file, and an error leaves no temporary file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from recloop import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replace_file_existing_file_holds_new_content_only(tmp_path: Path) -> None:
    target = tmp_path / "new" / "page.html"
    files.replace_file(target, "first")
    files.replace_file(target, "zweites, für alle")
    assert target.read_bytes() == "zweites, für alle".encode()
    files.replace_file(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    assert names(target.parent) == ["page.html"]


def test_replacing_error_in_block_keeps_old_file(tmp_path: Path) -> None:
    target = tmp_path / "state.json"
    files.replace_json(target, {"b": 1, "a": "é"})

    def write_half() -> None:
        with files.replacing(target) as temporary:
            temporary.write_text("half", "utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert json.loads(target.read_text("utf-8")) == {"a": "é", "b": 1}
    assert names(tmp_path) == ["state.json"]


def test_replacing_block_in_progress_shows_old_file(tmp_path: Path) -> None:
    target = tmp_path / "state"
    files.replace_file(target, "old")
    with files.replacing(target) as temporary:
        temporary.write_text("new", "utf-8")
        assert target.read_text("utf-8") == "old"
    assert target.read_text("utf-8") == "new"


def test_move_second_call_changes_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "stage" / "bundle", tmp_path / "bundles" / "bundle"
    for folder, text in ((source, "new"), (target, "old")):
        folder.mkdir(parents=True)
        (folder / "file").write_text(text, "utf-8")
    files.move(source, target)
    files.move(source, target)
    assert (target / "file").read_text("utf-8") == "new"
    assert not source.exists()


@pytest.mark.parametrize("swapped", [False, True])
def test_recover_folder_interrupted_swap_leaves_one_folder(tmp_path: Path, swapped: bool) -> None:
    target, old = tmp_path / "data", tmp_path / "data.old"
    old.mkdir()
    (old / "old").touch()
    if swapped:
        target.mkdir()
        (target / "new").touch()
    files.recover_folder(target)
    assert names(tmp_path) == ["data"]
    assert names(target) == ["new" if swapped else "old"]


def test_unchanged_sha256_reads_a_settled_file_once_and_a_changed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, reads = tmp_path / "array", []
    read = files.file_sha256
    monkeypatch.setattr(files, "file_sha256", lambda path: reads.append(path) or read(path))
    file.write_bytes(b"old")
    assert {files.unchanged_sha256(file) for _ in range(2)} == {read(file)}
    assert len(reads) == 2  # written just now
    monkeypatch.setattr(files, "SETTLED_SECONDS", -1)
    assert {files.unchanged_sha256(file) for _ in range(3)} == {read(file)}
    assert len(reads) == 3
    times = file.stat()
    file.write_bytes(b"new")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # the size and the time of the content are the same
    assert files.unchanged_sha256(file) == read(file)


@pytest.mark.parametrize("keep", [True, False])
def test_private_file_is_synced_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: bool
) -> None:
    """Otherwise a power cut leaves an empty file under the name."""
    synced: list[str] = []
    sync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(f"{Path(f'/proc/self/fd/{descriptor}').readlink().name} {(tmp_path / 'store/key').exists()}")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    files.write_private(tmp_path / "store/key", b"secret", keep=keep)
    assert synced == [f".key.{os.getpid()}.tmp False", "store True"]
    assert (tmp_path / "store/key").stat().st_mode & 0o777 == 0o600
    files.write_private(tmp_path / "store/key", b"other", keep=keep)
    assert (tmp_path / "store/key").read_bytes() == (b"secret" if keep else b"other")
    assert [file.name for file in (tmp_path / "store").iterdir()] == ["key"]
