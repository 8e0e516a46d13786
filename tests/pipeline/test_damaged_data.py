"""Damaged files of ``data/``: an update names the file and a command or copy that works."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import servers

from recloop.pipeline import backup as backups
from recloop.project import Project
from recloop.serve.app import create
from recloop.serve.service import Service

CLI = Callable[..., tuple[int, str, str]]


@pytest.fixture
def posted(project: Project, tmp_path: Path) -> Project:
    """A project with a backup and a row that the next update reads."""

    async def post(client: httpx.AsyncClient, _: Service) -> None:
        row: dict[str, Any] = {"user_id": "u01", "item_id": "i01", "event_type": "purchase"}
        assert (await client.post("/v1/events", json=row)).json()["accepted"] == 1

    servers.inside(create(project), post)
    backups.backup(project, tmp_path / "copy")
    return project


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def test_update_over_a_cut_split_names_the_file_and_prepare_writes_it_again(posted: Project, cli: CLI) -> None:
    cut(posted.data / "split" / "test.parquet")
    code, _, err = cli("-C", posted.root, "update")
    assert code == 2, err
    assert "split/test.parquet: expected a complete file (" in err
    assert err.endswith("; try: recloop prepare\n")
    assert cli("-C", posted.root, "prepare")[0] == 0
    assert cli("-C", posted.root, "update")[0] == 0


@pytest.mark.parametrize("damage", [cut, Path.unlink], ids=["cut", "lost"])
def test_manifest_that_is_lost_is_copied_from_a_backup(
    posted: Project, cli: CLI, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(posted.data / "manifest.json")
    for verb in ("update", "prepare"):
        code, _, err = cli("-C", posted.root, verb)
        assert code == 2, verb
    code, _, err = cli("-C", posted.root, "update", "--restart")
    assert (code, err.endswith("copy from a backup the folder data/\n")) == (2, True), err
    shutil.rmtree(posted.data)
    shutil.copytree(tmp_path / "copy" / "data", posted.data)
    assert cli("-C", posted.root, "update")[0] == 0
