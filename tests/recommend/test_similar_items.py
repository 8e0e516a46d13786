"""Similar and latest lists, ranked by hand on a bundle of five items."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recloop.bundle import Bundle
from recloop.errors import UserError
from recloop.features.spec import FeatureSpec
from recloop.features.vocabulary import FieldCodes
from recloop.policy import Placement
from recloop.recommend import similar_items
from recloop.recommend.catalog import Catalog
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.recommender import Recommender
from recloop.records import Item, Query
from recloop.settings import build
from recloop.testing.states import UserActs, states_of

Make = Callable[..., Bundle]

VECTORS = np.array([[0, 0], [1, 0], [2, 1], [0, 3], [-1, 0], [4, 1]], dtype=np.float32)
"""Cosines to apple (1, 0): bread 2/sqrt 5 = 0.894, cheese 0, dates -1, eggs 4/sqrt 17 = 0.970."""


def ask(recommender: Recommender, item_id: str, state: UserActs | None = None, **query: object) -> RankedList:
    request = Query(user_id="u", now=0, **{"placement": "similar", "item_id": item_id, "n": 5, **query})  # type: ignore[arg-type]
    return recommender.recommend(states_of(["u"], [state or UserActs()]), [request])[0]


def with_vectors(bundle: Bundle) -> Bundle:
    return replace(bundle, arrays={**bundle.arrays, "item_vectors": VECTORS})


def with_kinds(bundle: Bundle, catalogue: Catalog) -> tuple[Bundle, Catalog]:
    """Add kinds: apple, dates and eggs are fruit, bread and cheese are food."""
    kinds = ["fruit", "food", "food", "fruit", "fruit"]
    rows = [{"kind": kind} for kind in kinds]
    for item_id, row in zip(bundle.items.ids.ids, rows, strict=True):
        catalogue.upsert(Item(item_id=item_id, attributes=row))
    spec = FeatureSpec.from_config(
        build({"features": {"context": [], "item": {"kind": {"kind": "category", "from": "kind"}}}}, (), {})
    )
    items = replace(bundle.items, attributes=rows)
    return replace(bundle, spec=spec, fields=FieldCodes.fit(spec, rows, [], np.zeros(0)), items=items), catalogue


def test_similar_items_from_counts_are_covisitation_filled_by_popular(make_bundle: Make, catalogue: Catalog) -> None:
    """Row of apple: bread 0.5, cheese 0.25; then popular, then latest items."""
    answer = ask(Recommender(make_bundle({"popular": 1.0}), catalogue), "apple", n=6)
    assert answer.items == ["bread", "cheese", "dates", "eggs", "grapes", "figs"]
    assert answer.sources == ["neighbours"] * 2 + ["popular"] * 2 + ["latest"] * 2
    assert answer.scores == pytest.approx([1 / 61, 1 / 62, -1, -2, -3, -4])


def test_similar_items_with_vectors_fuse_cosine_and_covisitation(make_bundle: Make, catalogue: Catalog) -> None:
    """Cosine order: eggs, bread, cheese, dates; row order: bread, cheese."""
    answer = ask(Recommender(with_vectors(make_bundle({"popular": 1.0})), catalogue), "apple", n=4)
    assert answer.items == ["bread", "cheese", "eggs", "dates"]
    assert answer.scores == pytest.approx([1 / 62 + 1 / 61, 1 / 63 + 1 / 62, 1 / 61, 1 / 64])
    assert answer.sources == ["neighbours", "neighbours", "model", "model"]


def test_similar_items_with_placement_weights_use_them(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = with_vectors(make_bundle({"popular": 1.0}))
    page = Placement(list="similar", weights={"model": 1.0}, filter="price > 2.5", n=2)
    bundle = replace(bundle, policy=bundle.policy.with_placement("page", page))
    answer = ask(Recommender(bundle, catalogue), "apple", placement="page", n=0)
    assert answer.items == ["eggs", "cheese"]  # bread costs 2
    assert answer.sources == ["model", "model"]


def test_similar_items_of_a_cold_item_follow_its_attributes(make_bundle: Make, catalogue: Catalog) -> None:
    bundle, catalogue = with_kinds(make_bundle({"popular": 1.0}), catalogue)
    for name, kind in (("figs", "fruit"), ("grapes", "fruit"), ("rice", "food"), ("thing", None)):
        catalogue.upsert(Item(item_id=name, attributes={} if kind is None else {"kind": kind}, seq=20))
    recommender = Recommender(bundle, catalogue)
    answer = ask(recommender, "figs")
    assert answer.items == [
        "apple",
        "dates",
        "eggs",
        "grapes",
        "bread",
    ]  # popular items first, then items without a row
    assert answer.sources == ["attributes"] * 4 + ["popular"]
    assert set(ask(recommender, "thing", n=4).sources) == {"popular"}
    assert set(ask(recommender, "unlisted", n=4).sources) == {"popular"}


def test_similar_items_are_filled_by_attributes_then_popular(make_bundle: Make, catalogue: Catalog) -> None:
    bundle, catalogue = with_kinds(make_bundle({"popular": 1.0}), catalogue)
    answer = ask(Recommender(bundle, catalogue), "dates", n=4)
    assert answer.items == ["eggs", "apple", "bread", "cheese"]
    assert answer.sources == ["neighbours", "attributes", "popular", "popular"]


def test_similar_items_apply_filters_and_dislikes(make_bundle: Make, catalogue: Catalog) -> None:
    state = UserActs()
    state.add("bread", 5, None, -1)
    recommender = Recommender(with_vectors(make_bundle({"popular": 1.0})), catalogue)
    answer = ask(recommender, "apple", state, exclude=("eggs",), filter="price < 4.5")
    assert answer.items == ["dates", "figs"]  # cheese costs 5, bread is disliked, apple is the item itself
    assert (
        answer.inputs["filters"]
        != ask(recommender, "dates", state, exclude=("eggs",), filter="price < 4.5").inputs["filters"]
    )


def test_similar_items_of_a_batch_equal_single_requests(make_bundle: Make, catalogue: Catalog) -> None:
    recommender = Recommender(with_vectors(make_bundle({"popular": 1.0})), catalogue)
    names = ["apple", "eggs", "figs", "bread"]
    queries = [Query(user_id="u", now=0, n=5, placement="similar", item_id=name) for name in names]
    together = recommender.recommend(states_of(["u"] * 4, [UserActs()] * 4), queries)
    assert together == [ask(recommender, name) for name in names]


def test_latest_list_orders_visible_items_by_first_seq(make_bundle: Make, catalogue: Catalog) -> None:
    """First seqs: apple 1 to eggs 5, figs 10, grapes 11; hidden items excluded."""
    bundle = make_bundle({"popular": 1.0})
    fresh = Placement(list="latest", weights={}, filter="", n=4)
    bundle = replace(bundle, policy=bundle.policy.with_placement("new", fresh))
    catalogue.upsert(Item(item_id="figs", attributes={"price": 3.0}, seq=30))  # a new version is not a new item
    recommender = Recommender(bundle, catalogue)
    answer = ask(recommender, "", placement="new", n=0)
    assert answer.items == ["grapes", "figs", "eggs", "dates"]
    assert answer.sources == ["latest"] * 4
    assert answer.scores == [-1, -2, -3, -4]
    catalogue.upsert(Item(item_id="dates", attributes={"price": 4.0}, hidden=True, seq=31))
    answer = ask(recommender, "", placement="new", n=10, exclude=("eggs",), filter="price < 6")
    assert answer.items == ["figs", "cheese", "bread", "apple"]


def test_query_item_is_required_or_ignored_by_the_placement(make_bundle: Make, catalogue: Catalog) -> None:
    recommender = Recommender(make_bundle({"popular": 1.0}), catalogue)
    home = Query(user_id="u", now=0, item_id="apple")
    assert recommender.normalize(home).item_id == ""
    about = Query(user_id="u", now=0, item_id="apple", placement="similar")
    assert recommender.normalize(about) == about
    with pytest.raises(UserError, match="item=: expected an item id, required by the placement similar"):
        recommender.normalize(Query(user_id="u", now=0, placement="similar"))
    assert recommender.placement("similar") == similar_items.PLACEMENT


@pytest.mark.parametrize(
    ("placement", "said"),
    [
        ({"home": {"list": "similar"}}, "placement.home.list=similar"),
        ({"similar": {"list": "popular"}}, "placement.similar.list=popular"),
        ({"page": {"list": "similar", "weights": {"history": 1.0}}}, "placement.page.weights="),
        ({"page": {"list": "trending"}}, "'for_you', 'again', 'popular'"),
    ],
)
def test_placement_of_an_invalid_kind_is_refused(placement: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build({"placement": placement}, (), {})
