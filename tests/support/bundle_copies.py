"""Registered copies of the live bundle: one with other lists, one that is damaged."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import damaged_bundles

from recloop import bundle as bundles
from recloop.project import Project
from recloop.recommend.catalog import Catalog
from recloop.recommend.golden import make_golden
from recloop.recommend.recommender import Recommender
from recloop.records import now
from recloop.storage import releases


def register(project: Project, folder: Path) -> str:
    sha256 = bundles.manifest_hash(folder)
    evidence: dict[str, Any] = {"gates": []}
    releases.register(
        project.open_control(), folder.name, sha256, by="test", reason="a swap", at=now(), evidence=evidence
    )
    return folder.name


def popular_bundle(project: Project) -> str:
    """Register a bundle that shows popular items."""
    live = project.load_bundle()
    home = replace(live.policy.placements["home"], weights={"popular": 1.0})
    made = replace(live, policy=live.policy.with_placement("home", home))
    own = Recommender(made, Catalog.from_table(made.items.ids.ids, made.items.attributes))
    states = [case.state.to_batch("golden") for case in live.golden]
    golden = [case for state in states for case in make_golden(own, state, made.cut, "home", 10)]
    made = bundles.write(replace(made, golden=golden), project.bundles, datetime.now(UTC))
    return register(project, project.bundles / made.id)


def damaged_bundle(project: Project, source: str, seed: int) -> str:
    """Register a damaged copy of a bundle, whose manifest agrees with its files."""
    draw = random.Random(seed)
    while True:
        folder = project.bundles / "damaged"
        shutil.copytree(project.bundles / source, folder)
        damaged_bundles.damage(folder, draw)
        try:
            name = json.loads((folder / "manifest.json").read_text("utf-8"))["bundle"]
        except (ValueError, KeyError, TypeError):
            name = source
        is_refused = damaged_bundles.outcome(folder, to_train=False).startswith("refused")
        if name == source or not isinstance(name, str) or not is_refused:
            shutil.rmtree(folder)
            continue
        return register(project, folder.rename(project.bundles / name))
