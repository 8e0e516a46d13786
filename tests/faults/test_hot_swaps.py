"""Swaps of the live bundle under load, each fifth to a damaged one: no request fails, and each list is of one bundle."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import damaged_bundles
import httpx
import pytest
from fault_runs import Facts, size
from servers import PATIENCE, Server

from recloop import bundle as bundles
from recloop.project import Project
from recloop.recommend.catalog import Catalog
from recloop.recommend.golden import make_golden
from recloop.recommend.recommender import Recommender
from recloop.records import now
from recloop.storage import releases


@dataclass
class Shopper(threading.Thread):
    """A client that asks for lists without a pause and never asks twice."""

    number: int
    url: str
    until: threading.Event
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    __hash__ = threading.Thread.__hash__

    def run(self) -> None:
        with httpx.Client(base_url=self.url, timeout=PATIENCE) as client:
            while not self.until.is_set():
                user = f"u{len(self.answers) % 60:02d}"
                try:
                    answer = client.get(f"/v1/recommend/{user}", params={"n": 5})
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                    continue
                if answer.status_code == 200:
                    self.answers[answer.json()["request_id"]] = answer.json()
                else:
                    self.failed.append(answer.text)
                time.sleep(0.01)


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
        if name == source or not isinstance(name, str) or not damaged_bundles.outcome(folder).startswith("refused"):
            shutil.rmtree(folder)
            continue
        return register(project, folder.rename(project.bundles / name))


@pytest.mark.slow
@pytest.mark.timeout(14_400)
def test_swaps_under_load_fail_no_request_and_refuse_damaged_bundles(
    serving: Callable[..., Server], project: Project, cli: Callable[..., tuple[int, str, str]], facts: Facts
) -> None:
    swaps, until = size(10, 1_000), threading.Event()
    server = serving(project.root)
    sound = [server.bundle, popular_bundle(project)]
    shoppers = [Shopper(number, server.url, until) for number in range(8)]
    for shopper in shoppers:
        shopper.start()
    refused, order = 0, itertools.cycle(reversed(sound))
    for swap in range(1, swaps + 1):
        is_damaged = swap % 5 == 0
        bundle = damaged_bundle(project, sound[0], swap) if is_damaged else next(order)
        body = {"bundle": bundle, "to": "live", "reason": f"swap {swap}"}
        answer = server.client.post("/v1/admin/promote", json=body)
        assert (answer.status_code == 200) is not is_damaged, (swap, answer.text)
        refused += is_damaged
        if is_damaged:
            shutil.rmtree(project.bundles / bundle)
        time.sleep(0.2)
    until.set()
    for shopper in shoppers:
        shopper.join(PATIENCE)
    decided = {row.request_id: row for row in server.decided()}
    answers = {name: answer for shopper in shoppers for name, answer in shopper.answers.items()}
    mixed = [
        name
        for name, answer in answers.items()
        if (answer["model_version"], [slot["item_id"] for slot in answer["items"]])
        != (decided[name].bundle, decided[name].items)
    ]
    assert server.stop() == 0
    code, stdout, stderr = cli("-C", project.root, "verify", "--last", len(decided), "--json")
    assert code == 0, stderr
    unexplained = json.loads(stdout)["unexplained"]
    facts["hot swaps"] = {
        "swaps": swaps,
        "refused_damaged_bundles": refused,
        "requests": len(answers),
        "failed": sum(len(shopper.failed) for shopper in shoppers),
        "mixed": len(mixed) + unexplained,
    }
    assert [text for shopper in shoppers for text in shopper.failed] == []
    assert (mixed, unexplained) == ([], 0)
    assert len({answer["model_version"] for answer in answers.values()}) == 2
