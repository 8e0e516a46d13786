"""Backup of a project while it works, and its restore: a drill, damage, wrong targets."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import servers
from access import control_of

from recloop.bundle import Bundle
from recloop.errors import Refused, UserError
from recloop.pipeline import backup as backups
from recloop.project import Project, open_project
from recloop.storage import api_keys, open_decisions


@pytest.fixture(scope="module")
def saved(trained_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, Path]:
    """A project with every store and a key, and its backup."""
    folder = tmp_path_factory.mktemp("saved")
    project = open_project(shutil.copytree(trained_folder, folder / "shop"))
    api_keys.add(project.root, control_of(project.root), "shop", ["read"])
    open_decisions(project.config.stores.decisions, project.root, write=True).close()
    backups.backup(project, folder / "copy")
    return project, folder / "copy"


@pytest.fixture
def copy(saved: tuple[Project, Path], tmp_path: Path) -> Path:
    return shutil.copytree(saved[1], tmp_path / "copy")


def contents(folder: Path) -> dict[str, bytes]:
    """Files of a project by path, without caches and locks."""
    left_out = {".lock", "-wal", "-shm"}
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not any(str(file).endswith(end) for end in left_out) and "/states-" not in str(file)
    }


def test_restored_project_has_the_files_and_rows_of_the_backup(saved: tuple[Project, Path], tmp_path: Path) -> None:
    project, copy = saved
    result = backups.restore(copy, tmp_path / "back")
    restored = open_project(tmp_path / "back")
    ours, theirs = contents(project.root), contents(restored.root)
    stores = {f"store/{name}" for name in backups.STORES}
    assert {name: theirs[name] for name in theirs if name not in stores and name != "reports/verify.json"} == {
        name: ours[name] for name in theirs if name not in stores and name != "reports/verify.json"
    }
    assert {"recloop.toml", "data/manifest.json", "store/api-keys.json"} < set(theirs)
    with project.open_log() as log, restored.open_log() as copied:
        assert copied.last_seq() == log.last_seq() == result.last_seq
    assert restored.live_bundle_id() == project.live_bundle_id()
    assert isinstance(restored.load_bundle(), Bundle)
    assert result.files == len(json.loads((copy / "backup.json").read_text())["files"])
    assert stat.S_IMODE((restored.root / "store").stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in (restored.root / "store").glob("*.db")} == {0o600}
    assert not list(tmp_path.glob(".*"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(copy: Path) -> None:
        listed = json.loads((copy / "backup.json").read_text())
        change(listed)
        (copy / "backup.json").write_text(json.dumps(listed))

    return damage


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda copy: flip(copy / "store" / "log.db"), "with the hash in backup.json"),
        (lambda copy: flip(next((copy / "data" / "archive").rglob("*.parquet"))), "with the hash in backup.json"),
        (lambda copy: (copy / "recloop.toml").unlink(), "a file, as listed in backup.json"),
        (lambda copy: (copy / "backup.json").unlink(), "a folder with backup.json"),
        (lambda copy: (copy / "backup.json").write_text("{"), "the list of a backup"),
        (edit(lambda listed: listed.update(format=99)), "format 1 or older, not 99"),
        (edit(lambda listed: listed.update(last_seq=listed["last_seq"] + 1)), "a log that ends at"),
        (edit(lambda listed: listed["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}})), "paths inside the backup"),
        (edit(lambda listed: listed["files"].update({"/etc/x": {"sha256": "0" * 64, "bytes": 1}})), "paths inside the backup"),
    ],
)  # fmt: skip
def test_damaged_backup_is_refused_and_nothing_is_left(
    copy: Path, tmp_path: Path, damage: Callable[[Path], Any], problem: str
) -> None:
    damage(copy)
    with pytest.raises(UserError, match=problem):
        backups.restore(copy, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def newer(store: str) -> Callable[[Path], None]:
    """Give a store of a backup a newer schema; the list agrees."""

    def damage(copy: Path) -> None:
        file = copy / "store" / store
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("PRAGMA user_version = 99")
        facts = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
        edit(lambda listed: listed["files"].update({f"store/{store}": facts}))(copy)

    return damage


@pytest.mark.parametrize("store", ["control.db", "decisions.db", "log.db"])
def test_backup_with_a_store_of_a_newer_schema_is_refused_and_nothing_is_left(
    copy: Path, tmp_path: Path, store: str
) -> None:
    newer(store)(copy)
    with pytest.raises(UserError, match=rf"{store}=.*99.*; try: pip install --upgrade recloop"):
        backups.restore(copy, tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_backup_whose_stores_were_read_is_restored(copy: Path, tmp_path: Path) -> None:
    """SQLite removes its side files when the last reader of a store closes it."""
    for file in sorted((copy / "store").glob("*.db")):
        with closing(sqlite3.connect(file)) as connection:
            assert connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    assert backups.restore(copy, tmp_path / "back").verified is not None


def test_restore_over_a_folder_with_files_is_refused(saved: tuple[Project, Path]) -> None:
    project, copy = saved
    before = contents(project.root)
    with pytest.raises(UserError, match="a new folder"):
        backups.restore(copy, project.root)
    assert contents(project.root) == before


def test_restore_into_the_backup_is_refused(saved: tuple[Project, Path]) -> None:
    _, copy = saved
    before = contents(copy)
    for inside in (copy / "back", copy / "store" / "back"):
        with pytest.raises(UserError, match=r"--to=.*expected a folder outside the backup; try: recloop restore"):
            backups.restore(copy, inside)
    assert contents(copy) == before


def test_backup_into_a_project_folder_or_over_files_is_refused(saved: tuple[Project, Path]) -> None:
    project, copy = saved
    with pytest.raises(UserError, match="a folder that does not exist yet"):
        backups.backup(project, copy)
    for name in ("data/x", "store/x", "bundles/x/y"):
        with pytest.raises(UserError, match="a folder outside data/"):
            backups.backup(project, project.root / name)


def test_backup_copies_again_if_data_is_published_meanwhile(
    saved: tuple[Project, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, _ = saved
    manifests: Iterator[bytes] = iter([b"before", b"as it is", b""])
    real = backups._published
    monkeypatch.setattr(
        backups, "_published", lambda project: b"other" if next(manifests) == b"before" else real(project)
    )
    monkeypatch.setattr(backups, "WAIT_SECONDS", 0.0)
    assert backups.backup(project, tmp_path / "copy").files
    assert next(manifests) == b""  # the second attempt was consistent


@pytest.mark.parametrize("change", ["published", "half moved", "removed"])
def test_backup_of_data_that_keep_changing_is_refused(
    saved: tuple[Project, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    project, _ = saved
    monkeypatch.setattr(backups, "WAIT_SECONDS", 0.0)
    copied = backups._copy_project

    def changed(project: Project, staged: Path, progress: Any) -> None:
        copied(project, staged, progress)
        if change == "published":
            (staged / "data" / "manifest.json").write_bytes(b"{}")
        elif change == "half moved":
            flip(staged / "data" / "items.parquet")
        else:
            raise FileNotFoundError

    monkeypatch.setattr(backups, "_copy_project", changed)
    with pytest.raises(Refused, match="data/ changed during each attempt"):
        backups.backup(project, tmp_path / "copy")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_drill_every_event_acknowledged_before_the_backup_is_restored(project: Project, tmp_path: Path) -> None:
    """A backup under load; the folder is lost; the restored project serves and verifies."""
    server = servers.start(project.root)
    acknowledged: list[str] = []
    stop = threading.Event()

    def load() -> None:
        number = 0
        while not stop.is_set():
            name = f"drill-{number}"
            row = {"user_id": f"d{number}", "item_id": "i01", "event_type": "purchase", "event_id": name}
            if server.client.post("/v1/events", json=row).json()["accepted"]:
                acknowledged.append(name)
            server.client.get(f"/v1/recommend/u{number % 60:02}")
            number += 1

    sender = threading.Thread(target=load)
    try:
        sender.start()
        while len(acknowledged) < 50:
            stop.wait(0.05)
        before = set(acknowledged)
        backups.backup(project, tmp_path / "copy")
    finally:
        stop.set()
        sender.join()
        server.close()
    shutil.rmtree(project.root)
    result = backups.restore(tmp_path / "copy", tmp_path / "back")
    assert result.verified is not None
    assert result.verified["checked"] >= 20
    with open_project(tmp_path / "back").open_log() as log:
        restored = set(log.events()["event_id"])
    assert before <= restored
    again = servers.start(tmp_path / "back")
    try:
        assert again.client.get("/v1/recommend/u05").status_code == 200
        assert again.stop() == 0
    finally:
        again.close()
