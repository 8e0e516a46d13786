"""A file system that becomes read-only under a service: lists go on, posts are refused, no acknowledged row is lost."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import servers
from fault_runs import Facts, size
from posts import NOT_STORED, STORED, UNKNOWN, post

from recloop.project import open_project

IMAGE_BYTES = 192 * 2**20


@dataclass
class FailingDisk:
    """An ext4 file system that turns read-only at its first error, as Debian's installer sets it up."""

    image: Path
    folder: Path

    def mount(self) -> None:
        done = subprocess.run(
            ["mount", "-o", "loop,errors=remount-ro", self.image, self.folder], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"an image cannot be mounted here: {done.stderr.strip()}")

    def fail(self) -> None:
        """Report an error to the file system."""
        found = subprocess.run(
            ["findmnt", "-n", "-o", "SOURCE", self.folder], capture_output=True, text=True, check=True
        )
        Path("/sys/fs/ext4", Path(found.stdout.strip()).name, "trigger_fs_error").write_text("1")
        with pytest.raises(OSError, match="Read-only"):
            (self.folder / "file").touch()

    def repair(self) -> None:
        """Unmount, check and mount again."""
        subprocess.run(["umount", self.folder], check=True)
        checked = subprocess.run(["e2fsck", "-f", "-y", self.image], capture_output=True)
        assert checked.returncode in (0, 1), checked.stdout
        self.mount()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    disk = FailingDisk(tmp_path / "image", tmp_path / "disk")
    disk.folder.mkdir()
    with disk.image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    if not shutil.which("mkfs.ext4"):
        pytest.skip("needs mkfs.ext4: apt-get install e2fsprogs")
    subprocess.run(["mkfs.ext4", "-q", disk.image], check=True)
    disk.mount()
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk.folder], check=True)


def until_refused(client: httpx.Client, first: int) -> tuple[set[str], str]:
    """Post rows until one is refused; return the acknowledged ids and the code of the error."""
    stored: set[str] = set()
    end = time.monotonic() + servers.PATIENCE
    number = first
    while (answer := post(client, number)) == STORED:
        stored.add(f"e{number}")
        number += 1
        assert time.monotonic() < end
    return stored, answer


def test_service_on_a_disk_that_turns_read_only_keeps_what_it_acknowledged(
    disk: FailingDisk, serving: Callable[..., servers.Server], trained_folder: Path, facts: Facts
) -> None:
    folder = Path(shutil.copytree(trained_folder, disk.folder / "shop"))
    subprocess.run(["sync", "-f", folder], check=True)  # the copy itself, which recloop did not write
    stored: set[str] = set()
    lists = refused = 0
    failures = size(1, 20)
    for failure in range(failures):
        server = serving(folder, logs=disk.image.parent)
        for number in range(100):
            assert post(server.client, 1_000 * failure + number) == STORED
            stored.add(f"e{1_000 * failure + number}")
        disk.fail()
        kept, code = until_refused(server.client, 1_000 * failure + 100)
        stored |= kept
        assert code in {NOT_STORED, UNKNOWN}
        for number in range(20):
            answer = server.client.get(f"/v1/recommend/u{number + 1:02}", params={"n": 3})
            assert (answer.status_code, len(answer.json()["items"])) == (200, 3)
            lists += 1
            assert post(server.client, 1_000 * failure + 900 + number) != STORED
            refused += 1
        status = server.client.get("/v1/status")
        assert status.status_code == 200, status.text
        assert "log" in status.json()["alarms"]
        assert server.client.get("/metrics").status_code == 200
        invalid = server.client.post("/v1/events", json={"user_id": "visitor", "item_id": ""})
        assert (invalid.status_code, invalid.json()["rejected"]) == (207, 1)
        assert server.stop() == 2, "decisions that could not be written are lost, and the exit code says so"
        assert "Read-only file system" in server.errors.read_text()
        assert "Traceback" not in server.errors.read_text()
        disk.repair()
    with open_project(folder).open_log(write=True) as log:
        found = log.events()["event_id"].to_list()
    lost = stored - set(found)
    facts["read-only disk"] = {
        "failures": failures, "acknowledged": len(stored), "acknowledged_but_lost": len(lost), "posts_refused": refused,
        "lists_answered": lists,
    }  # fmt: skip
    assert lost == set()
    assert len(found) == len(set(found))
