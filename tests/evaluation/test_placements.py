"""Evaluation of a placement by its own protocol."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import recloop
from recloop.evaluation import new_items
from recloop.evaluation.placements import lines
from recloop.simulation.shop import SimulatedShop


@pytest.fixture(scope="module")
def evaluated() -> Any:
    events = SimulatedShop(seed=0, users=60, items=40, days=60).events()
    config = {
        "placement": {"home": {"min_new": 0.3}, "again": {"list": "again"}, "discover": {"filter_seen": True}},
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
    assert "0% of the slots are new to the user" in lines([result], 10)[0]
    assert lines([replace(result, new_share=float("nan"))], 10)[0].endswith("; no slot was filled")


def test_min_new_is_judged_against_the_same_lists_without_it(evaluated: Any) -> None:
    result = evaluated.new_items[0]
    served = next(row for row in evaluated.rows if row.row.model == "served")
    values = {name: estimate.value for name, estimate in result.estimates.items()}
    assert (result.placement, result.share) == ("home", 0.3)
    assert values["NDCG"] == pytest.approx(served.estimates["all", "NDCG@10"].value)
    assert values["explore"] == pytest.approx(served.estimates["explore", "NDCG@10"].value)
    assert values["cost"] == pytest.approx(values["NDCG"] - values["NDCG_without"])
    assert values["cost"] < 0 < values["explore"] - values["explore_without"]
    assert result.new_share_without < 0.3 <= result.new_share
    assert "placement home, min_new 0.3: NDCG@10" in new_items.lines([result], 10)[0]
    assert evaluated.to_json()["new_items"][0]["placement"] == "home"


def test_min_new_with_zero_share_has_no_cost_line() -> None:
    events = SimulatedShop(seed=1, users=30, items=30, days=40).events()
    config = {"split": {"filter_seen": False}, "ranker": {"model": "off"}}
    assert recloop.fit(events, model="auto", config=config, holdout="temporal").evaluate().new_items == []
