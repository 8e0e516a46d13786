"""Slots for catalog items without a row in the bundle."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import polars as pl
import pytest

import recloop
from recloop.bundle import Bundle
from recloop.errors import UserError
from recloop.evaluation import cold_items
from recloop.policy import Placement
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import Recommender
from recloop.recommend.slots import COLD_SOURCE
from recloop.records import Item, Query
from recloop.settings import build
from recloop.simulation.shop import SimulatedShop

SHOP = SimulatedShop(seed=0, users=60, items=40, days=60)
CONFIG = {"split": {"filter_seen": False}, "ranker": {"model": "off"}, "baselines": {"half_life": "none", "extra": []}}

FEATURES = {"item": {"category": {}, "price": {"kind": "number"}}}
FRUIT, PETS = "new-fruit", "new-pets"


@pytest.fixture(scope="module")
def fitted() -> Any:
    config = {**CONFIG, "placement": {"home": {"cold_share": 0.1}}, "features": FEATURES}
    return recloop.fit(SHOP.events(), SHOP.items(), SHOP.users(), config=config, holdout="temporal")


@pytest.fixture
def catalog(fitted: Any) -> Catalog:
    table = fitted.bundle.items
    return Catalog.from_table(table.ids.ids, table.attributes)


def ask(fitted: Any, catalog: Catalog, user: str, **query: Any) -> Any:
    states = fitted._states([user])
    return Recommender(fitted.bundle, catalog).recommend(states, [Query(user_id=user, now=fitted.bundle.cut, **query)])[
        0
    ]


def posted(item_id: str, seq: int = 10**9, **attributes: Any) -> Item:
    return Item(item_id=item_id, attributes=attributes, seq=seq)


def test_posted_item_with_attributes_is_in_the_next_list(fitted: Any, catalog: Catalog) -> None:
    before = ask(fitted, catalog, "u01")
    catalog.upsert(posted(FRUIT, category="fruit", price=3.0))
    after = ask(fitted, catalog, "u01")
    assert after.items == [*before.items[:9], FRUIT]
    assert (after.sources[-1], after.scores[-1]) == (COLD_SOURCE, -1.0)
    assert after.inputs["catalogue"] != before.inputs["catalogue"]


def test_posted_item_without_attributes_has_no_slot(fitted: Any, catalog: Catalog) -> None:
    catalog.upsert(posted("nameless"))
    catalog.upsert(posted("unknown", category="never seen", price=float("nan")))
    assert not {"nameless", "unknown"} & set(ask(fitted, catalog, "u01").items)


def test_cold_slot_obeys_filters_and_short_lists_have_none(fitted: Any, catalog: Catalog) -> None:
    catalog.upsert(posted(FRUIT, category="fruit", price=3.0))
    catalog.upsert(posted(PETS, category="pets", price=2.0))
    assert FRUIT not in ask(fitted, catalog, "u01", filter="category = 'pets'").items
    assert ask(fitted, catalog, "u01", exclude=(FRUIT,)).items[-1] == PETS
    assert not {FRUIT, PETS} & set(ask(fitted, catalog, "u01", n=5).items)
    assert len({FRUIT, PETS} & set(ask(fitted, catalog, "u01", n=20).items)) == 2


def test_slots_of_the_table_are_computed_at_the_warm_up_or_when_a_list_needs_them(
    fitted: Any, catalog: Catalog
) -> None:
    def is_computed(bundle: Bundle) -> bool:
        return "attribute_slots" in bundle._shared

    no_share = {name: replace(one, cold_share=0.0) for name, one in fitted.bundle.policy.placements.items()}
    bundle = replace(fitted.bundle, policy=replace(fitted.bundle.policy, placements=no_share))
    recommender = Recommender(bundle, catalog)
    recommender.recommend(fitted._states(["u01"]), [Query(user_id="u01", now=bundle.cut)])
    assert not is_computed(bundle)
    recommender.slots.warm_up()
    assert is_computed(bundle)
    again = replace(bundle)
    states, queries = fitted._states(["unknown"]), [Query(user_id="unknown", now=bundle.cut)]
    lists = [one.recommend(states, queries)[0].slots for one in (recommender, Recommender(again, catalog))]
    assert lists[0] == lists[1] != []


def test_cold_slot_depends_on_what_the_user_chose(fitted: Any, catalog: Catalog) -> None:
    categories = sorted({row["category"] for row in fitted.bundle.items.attributes})
    for category in categories:
        catalog.upsert(posted(f"new-{category}", category=category))
    users = [f"u{n:02}" for n in range(1, 11)]
    orders = [ask(fitted, catalog, user, n=80).items[-len(categories) :] for user in users]
    assert all(sorted(order) == [f"new-{category}" for category in categories] for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_cold_share_is_judged_against_the_same_lists_without_it(fitted: Any) -> None:
    table = fitted.evaluate()
    result = table.cold_items[0]
    values = {name: estimate.value for name, estimate in result.estimates.items()}
    assert (result.placement, result.share) == ("home", 0.1)
    assert values["cost"] == pytest.approx(values["warm"] - values["warm_without"])
    assert (
        "placement home, cold_share 0.1, cold_own 1: on targets with a row NDCG@10" in cold_items.lines([result], 10)[0]
    )
    assert table.to_json()["cold_items"][0]["moments"] == result.moments


def test_bundle_without_item_fields_has_no_cold_slot() -> None:
    config = {**CONFIG, "placement": {"home": {"cold_share": 0.5}}}
    fitted = recloop.fit(SHOP.events(), config=config, holdout="temporal")
    catalog = Catalog.from_table(fitted.bundle.items.ids.ids, fitted.bundle.items.attributes)
    catalog.upsert(posted("new", category="fruit"))
    assert "new" not in ask(fitted, catalog, "u01").items


@pytest.mark.parametrize(("n", "slots"), [(1, 0), (9, 0), (10, 1), (19, 1), (20, 2), (1000, 100)])
def test_cold_slots_are_rounded_down(n: int, slots: int) -> None:
    assert Placement("for_you", {}, "", 10, cold_share=0.1).cold_slots(n) == slots


@pytest.mark.parametrize("key", ["min_new", "cold_share"])
def test_share_of_a_list_that_is_not_personal_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=rf"placement.again.{key}=0.3: expected 0 for a list `again`"):
        build({"placement": {"again": {"list": "again", key: 0.3}}}, (), {})


def test_posted_item_with_only_a_text_or_a_vector_is_in_the_next_list() -> None:
    categories = sorted(SHOP.items()["category"].unique())
    corners = {
        category: ";".join(str(int(c == n)) for c in range(len(categories))) for n, category in enumerate(categories)
    }
    items = (
        SHOP.items().with_columns(pl.col("category").replace_strict(corners).alias("taste")).drop("category", "price")
    )
    features = {"item": {"words": {"kind": "text", "from": "name"}, "taste": {"kind": "vector", "separator": ";"}}}
    config = {**CONFIG, "placement": {"home": {"cold_share": 0.1}}, "features": features}
    fitted = recloop.fit(SHOP.events(), items, config=config, holdout="temporal")
    assert [fitted.bundle.fields.columns(f"item.{name}") for name in ("taste", "words")] == [2, 2]
    for number, attributes in enumerate(({"name": "plain fruit"}, {"taste": [0.9, *[0.1] * (len(categories) - 1)]})):
        catalog = Catalog.from_table(fitted.bundle.items.ids.ids, fitted.bundle.items.attributes)
        catalog.upsert(posted(f"new-{number}", **attributes))
        catalog.upsert(posted("bad", taste=[1.0, 2.0], name=""))
        assert ask(fitted, catalog, "u01").items[-1] == f"new-{number}"
