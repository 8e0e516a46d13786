"""Swaps of the live bundle under load, each fifth to a damaged one: no request fails, and each list is of one bundle."""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable

import pytest
from bundle_copies import damaged_bundle, popular_bundle
from fault_runs import Facts, size
from servers import PATIENCE, Server
from shoppers import Shopper

from recloop.project import Project


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
