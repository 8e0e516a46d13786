"""A small project folder whose log a test writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from recloop.project import Project, open_project

ProjectFactory = Callable[..., Project]


@pytest.fixture
def project_factory(tmp_path: Path) -> ProjectFactory:
    """Make a project with a log; settings have the form of ``--set``."""

    def make(log: str | bytes | None, *sets: str, name: str = "log.csv", toml: str = "") -> Project:
        (tmp_path / "recloop.toml").write_text(toml, "utf-8")
        if log is not None:
            (tmp_path / name).write_bytes(log if isinstance(log, bytes) else log.encode())
        return open_project(tmp_path, [f'data.events="{name}"', *sets])

    return make
