"""A project folder from Python: ``recloop.open``.

shop = recloop.open("shop")
shop.update()
shop.evaluate()
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recloop import loop, standing, turn, voice
from recloop.json_object import JsonTree
from recloop.learn.table import Table
from recloop.project import Project, open_project
from recloop.serve import offline


def open_shop(folder: str | Path = ".", **settings: Any) -> Shop:
    """A project folder; ``settings`` beat recloop.toml, written ``serve__port=9000``."""
    sets = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
    return Shop(open_project(folder, sets))


class Shop:
    """A project folder from Python: what the verbs of the command line do."""

    def __init__(self, project: Project) -> None:
        self.project = project

    def update(self) -> str:
        """One turn: the id of the bundle that it made live (the first) or registered; live's where none was let in."""
        live = self.project.live_bundle_id()
        if live is None:
            return loop.turn(self.project).bundle.id
        return loop.update(self.project).bundle or live

    def evaluate(self, *bundle_ids: str) -> Table:
        """The table of these bundles, of the live one without an id."""
        return turn.evaluate_bundles(self.project, list(bundle_ids), voice.Silent())

    def recommend(self, user_id: str, k: int | None = None, placement: str = "home") -> JsonTree:
        """The service's answer without the service; ``k`` None: the placement's own."""
        return offline.recommend(self.project, user_id, k, placement)

    def status(self) -> JsonTree:
        """What is live, what is tried, since when."""
        return standing.status(self.project)
