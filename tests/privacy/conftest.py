"""A shop of 300 users whose ids no other text contains, after its first run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recloop import loop
from recloop.project import open_project
from recloop.simulation.shop import SimulatedShop

MODEL = """
[model]
name = "mf"
[placement.home]
weights = { model = 1.0, history = 1.0, popular = 0.25 }
"""
IMPORTED = ("events.csv", "users.csv")


@pytest.fixture(scope="session")
def named_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A read-only project folder with a table of users in its live bundle."""
    folder = SimulatedShop(seed=0, users=300, items=80).write(tmp_path_factory.mktemp("named") / "shop")
    for name in IMPORTED:
        file = folder / name
        file.write_text(re.sub(r"\bu(\d{3})\b", r"person-\1-x", file.read_text("utf-8")), "utf-8")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file_:
        file_.write(MODEL)
    loop.first_run(open_project(folder))
    return folder
