"""Lists about an item and lists of the newest, ranked by hand on a bundle of five items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recloop.bundle import Bundle
from recloop.errors import UserError
from recloop.features.spec import FeatureSpec
from recloop.features.state import StateBatch, UserState
from recloop.features.vocabulary import FieldCodes
from recloop.policy import Placement
from recloop.recommend import similar_items
from recloop.recommend.catalog import Catalog
from recloop.recommend.recommender import RankedList, Recommender
from recloop.records import Item, Query
from recloop.settings import build

Make = Callable[..., Bundle]

VECTORS = np.array([[0, 0], [1, 0], [2, 1], [0, 3], [-1, 0], [4, 1]], dtype=np.float32)
"""Cosines to apple (1, 0): bread 2/sqrt 5 = .894, cheese 0, dates -1, eggs 4/sqrt 17 = .970."""


def ask(recommender: Recommender, item_id: str, state: UserState | None = None, **query: object) -> RankedList:
    asked = Query(user_id="u", now=0, **{"placement": "similar", "item_id": item_id, "n": 5, **query})  # type: ignore[arg-type]
    return recommender.recommend(StateBatch.of(["u"], [state or UserState()]), [asked])[0]


def with_vectors(bundle: Bundle) -> Bundle:
    return replace(bundle, arrays={**bundle.arrays, "item_vectors": VECTORS})


def described(bundle: Bundle, catalogue: Catalog) -> tuple[Bundle, Catalog]:
    """Kinds for the five items: apple, dates and eggs are fruit (to this test), bread and cheese are not."""
    kinds = ["fruit", "food", "food", "fruit", "fruit"]
    rows = [{"kind": kind} for kind in kinds]
    for item_id, row in zip(bundle.items.ids.ids, rows, strict=True):
        catalogue.upsert(Item(item_id=item_id, attributes=row))
    spec = FeatureSpec.of(
        build({"features": {"context": [], "item": {"kind": {"kind": "category", "from": "kind"}}}}, (), {})
    )
    items = replace(bundle.items, attributes=rows)
    return replace(bundle, spec=spec, fields=FieldCodes.fit(spec, rows, [], np.zeros(0)), items=items), catalogue


def test_counts_alone_give_the_row_of_covisitation_filled_by_popular(make_bundle: Make, catalogue: Catalog) -> None:
    """Row of apple: bread .5, cheese .25; then popular in its order, then what the table does not know, newest first."""
    answer = ask(Recommender(make_bundle({"popular": 1.0}), catalogue), "apple", n=6)
    assert answer.items == ["bread", "cheese", "dates", "eggs", "grapes", "figs"]
    assert answer.sources == ["neighbours"] * 2 + ["popular"] * 2 + ["latest"] * 2
    assert answer.scores == pytest.approx([1 / 61, 1 / 62, -1, -2, -3, -4])


def test_cosine_and_covisitation_are_fused(make_bundle: Make, catalogue: Catalog) -> None:
    """By cosine eggs, bread, cheese, dates; by the row bread, cheese: bread 1/62 + 1/61, cheese 1/63 + 1/62."""
    answer = ask(Recommender(with_vectors(make_bundle({"popular": 1.0})), catalogue), "apple", n=4)
    assert answer.items == ["bread", "cheese", "eggs", "dates"]
    assert answer.scores == pytest.approx([1 / 62 + 1 / 61, 1 / 63 + 1 / 62, 1 / 61, 1 / 64])
    assert answer.sources == ["neighbours", "neighbours", "model", "model"]


def test_a_mix_of_its_own(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = with_vectors(make_bundle({"popular": 1.0}))
    page = Placement(list="similar", weights={"model": 1.0}, filter="price > 2.5", k=2)
    bundle = replace(bundle, policy=bundle.policy.with_placement("page", page))
    answer = ask(Recommender(bundle, catalogue), "apple", placement="page", n=0)
    assert answer.items == ["eggs", "cheese"]  # bread costs 2
    assert answer.sources == ["model", "model"]


def test_an_item_without_a_row_goes_by_its_attributes(make_bundle: Make, catalogue: Catalog) -> None:
    bundle, catalogue = described(make_bundle({"popular": 1.0}), catalogue)
    for name, kind in (("figs", "fruit"), ("grapes", "fruit"), ("rice", "food"), ("thing", None)):
        catalogue.upsert(Item(item_id=name, attributes={} if kind is None else {"kind": kind}, seq=20))
    recommender = Recommender(bundle, catalogue)
    answer = ask(recommender, "figs")
    assert answer.items == ["apple", "dates", "eggs", "grapes", "bread"]  # popular ones first, then those without a row
    assert answer.sources == ["attributes"] * 4 + ["popular"]
    assert set(ask(recommender, "thing", n=4).sources) == {"popular"}
    assert set(ask(recommender, "never heard of", n=4).sources) == {"popular"}


def test_attributes_fill_behind_the_row(make_bundle: Make, catalogue: Catalog) -> None:
    bundle, catalogue = described(make_bundle({"popular": 1.0}), catalogue)
    answer = ask(Recommender(bundle, catalogue), "dates", n=4)
    assert answer.items == ["eggs", "apple", "bread", "cheese"]
    assert answer.sources == ["neighbours", "attributes", "popular", "popular"]


def test_the_same_filters_hold(make_bundle: Make, catalogue: Catalog) -> None:
    state = UserState()
    state.add("bread", 5, None, -1)
    recommender = Recommender(with_vectors(make_bundle({"popular": 1.0})), catalogue)
    answer = ask(recommender, "apple", state, exclude=("eggs",), filter="price < 4.5")
    assert answer.items == ["dates", "figs"]  # cheese costs 5, bread is disliked, apple is the item itself
    assert (
        answer.inputs["filters"]
        != ask(recommender, "dates", state, exclude=("eggs",), filter="price < 4.5").inputs["filters"]
    )


def test_a_batch_gives_what_single_requests_give(make_bundle: Make, catalogue: Catalog) -> None:
    recommender = Recommender(with_vectors(make_bundle({"popular": 1.0})), catalogue)
    names = ["apple", "eggs", "figs", "bread"]
    queries = [Query(user_id="u", now=0, n=5, placement="similar", item_id=name) for name in names]
    together = recommender.recommend(StateBatch.of(["u"] * 4, [UserState()] * 4), queries)
    assert together == [ask(recommender, name) for name in names]


def test_latest_are_the_newest_of_all(make_bundle: Make, catalogue: Catalog) -> None:
    """First seqs: apple 1 .. eggs 5 of the table, figs 10, grapes 11; hidden and filtered ones stay out."""
    bundle = make_bundle({"popular": 1.0})
    fresh = Placement(list="latest", weights={}, filter="", k=4)
    bundle = replace(bundle, policy=bundle.policy.with_placement("new", fresh))
    catalogue.upsert(Item(item_id="figs", attributes={"price": 3.0}, seq=30))  # a new version is no new item
    recommender = Recommender(bundle, catalogue)
    answer = ask(recommender, "", placement="new", n=0)
    assert answer.items == ["grapes", "figs", "eggs", "dates"]
    assert answer.sources == ["latest"] * 4
    assert answer.scores == [-1, -2, -3, -4]
    catalogue.upsert(Item(item_id="dates", attributes={"price": 4.0}, hidden=True, seq=31))
    answer = ask(recommender, "", placement="new", n=10, exclude=("eggs",), filter="price < 6")
    assert answer.items == ["figs", "cheese", "bread", "apple"]


def test_a_query_is_taken_as_its_placement_takes_it(make_bundle: Make, catalogue: Catalog) -> None:
    recommender = Recommender(make_bundle({"popular": 1.0}), catalogue)
    home = Query(user_id="u", now=0, item_id="apple")
    assert recommender.asked(home).item_id == ""
    about = Query(user_id="u", now=0, item_id="apple", placement="similar")
    assert recommender.asked(about) == about
    with pytest.raises(UserError, match="item=: expected an item id, required by the placement similar"):
        recommender.asked(Query(user_id="u", now=0, placement="similar"))
    assert recommender.placement("similar") == similar_items.PLACEMENT


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        ({"home": {"list": "similar"}}, "placement.home.list=similar"),
        ({"similar": {"list": "popular"}}, "placement.similar.list=popular"),
        ({"page": {"list": "similar", "weights": {"history": 1.0}}}, "placement.page.weights="),
        ({"page": {"list": "trending"}}, "'for_you', 'popular'"),
    ],
)
def test_lists_that_cannot_be(placement: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build({"placement": placement}, (), {})
