"""A shop whose user ids no other text contains, so that a scan for bytes finds each of them."""

from __future__ import annotations

import re
from pathlib import Path

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
"""Files of the shop that name users; an erasure names them, and their owner removes the rows."""


def first_run(folder: Path, users: int) -> Path:
    """Write a shop and run it once: its live bundle has a table of users ``person-001-x`` and so on."""
    SimulatedShop(seed=0, users=users, items=80).write(folder)
    for name in IMPORTED:
        file = folder / name
        file.write_text(re.sub(r"\bu(\d{3,})\b", r"person-\1-x", file.read_text("utf-8")), "utf-8")
    with (folder / "recloop.toml").open("a", encoding="utf-8") as file_:
        file_.write(MODEL)
    loop.first_run(open_project(folder))
    return folder
