"""Slots for items that a user had and that the bundle has not learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recloop.bundle import Bundle
from recloop.evaluation.lists import ListRecommender
from recloop.policy import Placement
from recloop.recommend.catalog import Catalog
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.recommender import Recommender
from recloop.recommend.slots import OWN_COLD_SOURCE
from recloop.records import DAY, Item, Query
from recloop.testing.states import UserActs, states_of

NOW = 1_000 * DAY
TWICE = ("newest", "newest")
Make = Callable[..., Bundle]


def acts(*items: str) -> UserActs:
    """One moment a day, the first item the newest."""
    state = UserActs()
    for days, item in sorted(enumerate(items, start=1), reverse=True):
        state.add(item, NOW - days * DAY, None, 1)
    return state


@pytest.fixture
def bundle(make_bundle: Make) -> Bundle:
    made = make_bundle({"history": 1.0, "popular": 0.5})
    return replace(made, policy=made.policy.with_placement("home", replace(made.policy.placements["home"], cold_own=1)))


@pytest.fixture
def shown(catalogue: Catalog) -> Catalog:
    for name, price in (("newest", 1.0), ("newer", 2.0)):
        catalogue.upsert(Item(item_id=name, attributes={"price": price}, seq=10**9))
    return catalogue


def ask(bundle: Bundle, catalogue: Catalog, *items: str, **query: Any) -> RankedList:
    asked = Query(user_id="u", now=NOW, **{"n": 3, **query})
    return Recommender(bundle, catalogue).recommend(states_of(["u"], [acts(*items)]), [asked])[0]


def test_item_that_the_user_took_twice_after_the_training_ends_the_next_list(bundle: Bundle, shown: Catalog) -> None:
    plain = ask(bundle, shown, "apple")
    assert ask(bundle, shown, "newest", "apple").items == plain.items  # taken once
    answer = ask(bundle, shown, "newest", "newest", "apple")
    assert answer.items == [*plain.items[:2], "newest"]
    assert answer.sources[-1] == OWN_COLD_SOURCE
    assert answer.scores == sorted(answer.scores, reverse=True)
    twice = ["apple", "newer", "newest", "newest", "newer"]
    assert ask(bundle, shown, *twice).items[-1] == "newer"  # the newer of two
    assert ask(bundle, shown, *twice, "newest").items[-1] == "newest"  # more often


def test_more_slots_hold_more_items_and_one_slot_is_left_for_others(bundle: Bundle, shown: Catalog) -> None:
    home = replace(bundle.policy.placements["home"], cold_own=5)
    several = replace(bundle, policy=bundle.policy.with_placement("home", home))
    assert ask(several, shown, *TWICE, "newer", "newer", "apple").items[1:] == ["newest", "newer"]
    assert ask(several, shown, *TWICE, "apple", n=1).items == ["apple"]
    assert "newest" not in ask(bundle, shown, *TWICE, "apple", n=1).items


@pytest.mark.parametrize(
    "query", [{"filter_seen": True}, {"exclude": ("newest",)}, {"filter": "price > 1"}, {"placement": "plain"}]
)
def test_slot_obeys_filters_and_the_placement(bundle: Bundle, shown: Catalog, query: dict[str, Any]) -> None:
    plain = replace(bundle.policy.placements["home"], cold_own=0)
    both = replace(bundle, policy=bundle.policy.with_placement("plain", plain))
    assert "newest" not in ask(both, shown, *TWICE, "apple", **query).items


def test_hidden_or_unknown_item_has_no_slot(bundle: Bundle, catalogue: Catalog) -> None:
    plain = ask(bundle, catalogue, "apple")
    assert ask(bundle, catalogue, *TWICE, "apple").items == plain.items
    catalogue.upsert(Item(item_id="newest", attributes={}, hidden=True, seq=10**9))
    assert ask(bundle, catalogue, *TWICE, "apple").items == plain.items


def test_batch_and_evaluation_have_the_lists_of_single_requests(bundle: Bundle, shown: Catalog) -> None:
    histories = [(*TWICE, "apple"), ("apple",), ("bread", "newer", *TWICE, "newer")]
    expected = [ask(bundle, shown, *items).items for items in histories]
    states = states_of(["a", "b", "c"], [acts(*items) for items in histories])
    queries = [Query(user_id=user, now=NOW, n=3) for user in states.users]
    assert [one.items for one in Recommender(bundle, shown).recommend(states, queries)] == expected
    evaluated = ListRecommender(bundle, shown, "home", 3)
    assert evaluated.ids(evaluated.recommend(states, np.full(3, NOW)).items) == expected


@pytest.mark.parametrize(("own", "n", "slots"), [(1, 10, 1), (1, 1, 0), (3, 3, 2), (0, 10, 0)])
def test_own_cold_slots_leave_one_slot(own: int, n: int, slots: int) -> None:
    assert Placement("for_you", {}, "", 10, cold_own=own).own_cold_slots(n) == slots
