"""Evaluation of a placement by its own protocol."""

from __future__ import annotations

from typing import Any

import pytest

import recloop
from recloop.simulation.shop import SimulatedShop


@pytest.fixture(scope="module")
def evaluated() -> Any:
    events = SimulatedShop(seed=0, users=60, items=40, days=60).events()
    config = {
        "placement": {"home": {}, "discover": {"filter_seen": True}},
        "split": {"filter_seen": False},
        "ranker": {"model": "off"},
    }
    return recloop.fit(events, model="auto", config=config, holdout="temporal").evaluate()


def test_discover_is_judged_on_new_targets_and_lists_only_new_items(evaluated: Any) -> None:
    (result,) = evaluated.placements
    assert (result.placement, result.targets, result.new_share) == ("discover", "new", 1.0)
    assert 0 < result.moments <= evaluated.protocol.moments
    assert result.estimates["NDCG"].low <= result.estimates["NDCG"].value <= result.estimates["NDCG"].high
    assert evaluated.to_json()["placements"][0]["placement"] == "discover"


def test_discover_finds_new_items_that_the_main_list_misses(evaluated: Any) -> None:
    (result,) = evaluated.placements
    served = next(row for row in evaluated.rows if row.row.model == "served")
    assert result.estimates["NDCG"].value > served.estimates["explore", "NDCG@10"].value
