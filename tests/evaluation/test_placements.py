"""Evaluation of a placement by its own protocol."""

from __future__ import annotations

from typing import Any

import pytest

import recloop
from recloop.evaluation.placements import lines
from recloop.simulation.shop import SimulatedShop


@pytest.fixture(scope="module")
def evaluated() -> Any:
    events = SimulatedShop(seed=0, users=60, items=40, days=60).events()
    config = {
        "placement": {"home": {}, "again": {"list": "again"}, "discover": {"filter_seen": True}},
        "split": {"filter_seen": False},
        "ranker": {"model": "off"},
    }
    return recloop.fit(events, model="auto", config=config, holdout="temporal").evaluate()


def test_discover_is_judged_on_new_targets_and_lists_only_new_items(evaluated: Any) -> None:
    result = evaluated.placements[1]
    assert (result.placement, result.targets, result.new_share) == ("discover", "new", 1.0)
    assert 0 < result.moments <= evaluated.protocol.moments
    assert result.estimates["NDCG"].low <= result.estimates["NDCG"].value <= result.estimates["NDCG"].high
    assert evaluated.to_json()["placements"][1]["placement"] == "discover"


def test_discover_finds_new_items_that_the_main_list_misses(evaluated: Any) -> None:
    result = evaluated.placements[1]
    served = next(row for row in evaluated.rows if row.row.model == "served")
    assert result.estimates["NDCG"].value > served.estimates["explore", "NDCG@10"].value


def test_again_is_judged_on_targets_that_the_user_had_and_lists_only_these(evaluated: Any) -> None:
    result = evaluated.placements[0]
    assert (result.placement, result.targets, result.new_share) == ("again", "had", 0.0)
    assert result.estimates["NDCG"].value > 0
    gain = result.estimates["NDCG"].value - result.estimates["history"].value
    assert result.estimates["gain"].value == pytest.approx(gain)
    assert "Bought-before NDCG@10" in lines([result], 10)[0]
