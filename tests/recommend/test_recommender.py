"""Lists by hand: sources, fusion, filters, fallback; batches equal single requests."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from recloop.bundle import Bundle
from recloop.errors import BundleError, UserError
from recloop.recommend.catalog import Catalog
from recloop.recommend.golden import check_golden, make_golden
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.recommender import Recommender
from recloop.records import DAY, Item, Query
from recloop.testing.states import UserActs, states_of

NOW = 1_000 * DAY
Make = Callable[..., Bundle]


def shopper(*moments: tuple[float, list[str]], dislikes: tuple[str, ...] = (), age: str | None = None) -> UserActs:
    """A user state of moments (days ago, items)."""
    state = UserActs(attributes=None if age is None else {"age": age})
    for days, items in sorted(moments, reverse=True):
        for item in items:
            state.add(item, NOW - int(days * DAY), None, 1)
    for item in dislikes:
        state.add(item, NOW, None, -1)
    return state


def ask(bundle: Bundle, catalogue: Catalog, state: UserActs, **query: Any) -> RankedList:
    request = Query(user_id="u", now=NOW, **query)
    return Recommender(bundle, catalogue).recommend(states_of(["u"], [state]), [request])[0]


def test_history_source_counts_moments_with_half_life(make_bundle: Make, catalogue: Catalog) -> None:
    state = shopper((1, ["dates"]), (40, ["apple", "bread"]), (41, ["bread"]))
    by_count = ask(make_bundle({"history": 1.0}), catalogue, state)
    assert by_count.items == ["bread", "apple", "dates"]  # apple and dates tie: the more popular item is first
    by_age = ask(make_bundle({"history": 1.0}, half_life=30.0), catalogue, state)
    assert by_age.items == ["dates", "bread", "apple"]
    assert by_age.scores == pytest.approx([1 / 61, 1 / 62, 1 / 63])
    assert set(by_age.sources) == {"history"}


def test_history_source_order_is_independent_of_the_age_of_the_log(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = make_bundle({"history": 1.0}, half_life=30.0)
    moments = ((700, ["eggs"]), (460, ["dates"]), (400, ["apple"]), (10, ["bread"]))
    then = ask(bundle, catalogue, shopper(*moments), n=4).items
    now = ask(bundle, catalogue, shopper(*((days + 15 * 365, items) for days, items in moments)), n=4)
    assert now.items == then == ["bread", "apple", "dates", "eggs"]
    assert now.sources == ["history"] * 4
    apart = ask(bundle, catalogue, shopper((1, ["bread"]), (40 * 365, ["apple"]), (41 * 365, ["eggs"])), n=3)
    assert apart.items == ["bread", "apple", "eggs"], "weights of one user that are 500 half-lives apart"


def test_neighbours_source_sums_rows_of_the_newest_moments(make_bundle: Make, catalogue: Catalog) -> None:
    state = shopper((1, ["apple"]), (2, ["bread"]), (3, ["dates"]))
    # apple: bread 0.5, cheese 0.25; bread at half weight: cheese 0.25; dates is not in the two newest moments.
    answer = ask(make_bundle({"neighbours": 1.0}), catalogue, state)
    assert answer.items == ["bread", "cheese", "apple"]
    assert answer.sources == ["neighbours", "neighbours", "popular"]
    assert answer.scores[2] == -1.0


def test_fusion_adds_reciprocal_ranks_and_names_the_larger_source(make_bundle: Make, catalogue: Catalog) -> None:
    state = shopper((1, ["apple"]))
    answer = ask(make_bundle({"history": 1.0, "neighbours": 0.5, "popular": 0.25}), catalogue, state, n=5)
    expected = {
        "apple": 1 / 61 + 0.25 / 61,
        "bread": 0.5 / 61 + 0.25 / 62,
        "cheese": 0.5 / 62 + 0.25 / 63,
        "dates": 0.25 / 64,
        "eggs": 0.25 / 65,
    }
    assert answer.items == list(expected)
    assert answer.scores == pytest.approx(list(expected.values()))
    assert answer.sources == ["history", "neighbours", "neighbours", "popular", "popular"]


def test_recommend_breaks_ties_by_item_index(make_bundle: Make, catalogue: Catalog) -> None:
    state = shopper((1, ["eggs"]))
    answer = ask(make_bundle({"history": 1.0, "popular": 1.0}), catalogue, state, exclude=("bread", "cheese", "dates"))
    assert answer.items[:2] == ["eggs", "apple"]
    tied = ask(make_bundle({"history": 1.0, "neighbours": 1.0}), catalogue, shopper((1, ["dates"])))
    assert tied.items[:2] == ["dates", "eggs"]  # both 1/61


def test_recommend_omits_excluded_disliked_hidden_and_filtered_items(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = make_bundle({"popular": 1.0})
    assert ask(bundle, catalogue, shopper(), exclude=("apple", "unknown item")).items == [
        "bread",
        "cheese",
        "dates",
    ]
    assert ask(bundle, catalogue, shopper(dislikes=("bread",))).items == ["apple", "cheese", "dates"]
    catalogue.upsert(Item(item_id="apple", attributes={"price": 1.0}, hidden=True, seq=12))
    assert ask(bundle, catalogue, shopper()).items == ["bread", "cheese", "dates"]
    assert ask(bundle, catalogue, shopper(), filter="price >= 3").items == ["cheese", "dates", "eggs"]
    assert ask(bundle, catalogue, shopper(), placement="cheap", filter="price > 1").items == ["bread", "figs"]


def test_recommend_after_a_later_positive_shows_a_disliked_item(make_bundle: Make, catalogue: Catalog) -> None:
    state = shopper(dislikes=("apple",))
    state.add("apple", NOW + 1, None, 1)
    assert ask(make_bundle({"popular": 1.0}), catalogue, state).items[0] == "apple"


def test_recommend_with_filter_seen_omits_seen_items(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = make_bundle({"history": 1.0, "neighbours": 1.0}, filter_seen=True)
    answer = ask(bundle, catalogue, shopper((1, ["apple"]), (2, ["bread"])))
    assert answer.items == ["cheese", "dates", "eggs"]


@pytest.mark.parametrize(
    ("policy", "placement", "asked", "seen"),
    [
        (False, None, True, False),
        (True, None, False, True),
        (False, True, None, False),
        (True, False, None, True),
        (False, True, False, True),
        (True, None, None, False),
    ],
)
def test_filter_seen_of_query_wins_over_placement_and_policy(
    make_bundle: Make, catalogue: Catalog, policy: bool, placement: bool | None, asked: bool | None, seen: bool
) -> None:
    bundle = make_bundle({"history": 1.0, "neighbours": 1.0}, filter_seen=policy)
    home = replace(bundle.policy.placements["home"], filter_seen=placement)
    bundle = replace(bundle, policy=bundle.policy.with_placement("home", home))
    catalogue.upsert(Item(item_id="hazelnuts", attributes={"price": 3.0}, seq=12))
    state = shopper((1, ["apple"]), (2, ["bread"]), (3, ["hazelnuts"]))  # one item outside the table
    items = ask(bundle, catalogue, state, n=9, filter_seen=asked).items
    assert {name in items for name in ("apple", "bread", "hazelnuts")} == {seen}
    assert {"cheese", "dates", "eggs", "figs", "grapes"} <= set(items)


def test_fallback_order_is_segment_popular_latest(make_bundle: Make, catalogue: Catalog) -> None:
    answer = ask(make_bundle({"history": 1.0}), catalogue, shopper(age="old"), n=9)
    assert answer.items == ["eggs", "dates", "apple", "bread", "cheese", "grapes", "figs"]
    assert answer.sources == ["segment"] * 2 + ["popular"] * 3 + ["latest"] * 2
    assert answer.scores == [-1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0]
    assert ask(make_bundle({"history": 1.0}), catalogue, shopper(age="young")).sources == ["popular"] * 3


def test_recommend_of_a_batch_equals_single_requests(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = make_bundle({"history": 1.0, "neighbours": 0.5})
    states = [
        shopper((1, ["apple"])), shopper(), shopper((3, ["bread", "dates"]), (1, ["eggs"]), dislikes=("cheese",)),
        shopper((9, ["unknown"]), age="old"),
    ]  # fmt: skip
    queries = [Query(user_id=f"u{n}", now=NOW + n, n=4) for n in range(len(states))]
    recommender = Recommender(bundle, catalogue)
    users = [query.user_id for query in queries]
    together = recommender.recommend(states_of(users, states), queries)
    mixed = recommender.recommend(
        states_of(users, states),
        [*queries[:3], Query(user_id="u3", now=NOW + 3, n=4, filter="price < 99")],
    )
    for b, query in enumerate(queries):
        alone = recommender.recommend(states_of([query.user_id], [states[b]]), [query])[0]
        assert together[b] == alone
        assert mixed[b].slots == alone.slots


def test_input_hashes_name_the_changed_part(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = make_bundle({"popular": 1.0})
    plain = ask(bundle, catalogue, shopper((1, ["apple"]))).inputs

    def moved(answer: RankedList) -> list[str]:
        return [name for name in plain if answer.inputs[name] != plain[name]]

    assert moved(ask(bundle, catalogue, shopper((1, ["apple"])))) == []
    assert moved(ask(bundle, catalogue, shopper((1, ["bread"])))) == ["state", "history"]
    assert moved(ask(bundle, catalogue, shopper((1, ["apple"])), exclude=("eggs",))) == ["filters"]
    catalogue.upsert(Item(item_id="figs", attributes={"price": 2.6}, seq=13))
    assert moved(ask(bundle, catalogue, shopper((1, ["apple"])))) == ["catalogue"]


def test_catalog_version_is_independent_of_the_order_of_upserts(catalogue: Catalog) -> None:
    other = Catalog()
    for item_id in ("grapes", "figs", "eggs", "dates", "cheese", "bread", "apple"):
        other.upsert(Item(item_id=item_id, attributes={"price": 0.0}))
        item = catalogue.get(item_id)
        assert item is not None
        other.upsert(item)
    assert other.version == catalogue.version
    table = Catalog.from_table(["a", "b"], [{"price": 1}, {}])
    rows = [Item(item_id="a", attributes={"price": 1}), Item(item_id="b")]
    grown = Catalog()
    assert grown.version == Catalog.from_frames([]).version
    for item in rows:
        grown.upsert(item)
    assert table.version == grown.version  # computed at once, or item by item
    grown.upsert(Item(item_id="b", attributes={"price": 2}))
    table.upsert(Item(item_id="b", attributes={"price": 2}))
    assert table.version == grown.version


def test_recommend_with_an_unknown_placement_or_field_raises(make_bundle: Make, catalogue: Catalog) -> None:
    with pytest.raises(UserError, match=r"placement=cart.*home, cheap"):
        ask(make_bundle({"popular": 1.0}), catalogue, shopper(), placement="cart")
    with pytest.raises(UserError, match="colour"):
        catalogue.check("colour = 'red'", "filter")


def test_recommend_with_a_filter_of_the_placement_that_cannot_run_ignores_it(
    make_bundle: Make, catalogue: Catalog
) -> None:
    """The list says so; the filter of the query still holds, and its own error is raised."""
    bundle = make_bundle({"popular": 1.0})
    placements = bundle.policy.placements
    broken = dataclasses.replace(placements["cheap"], filter="shelf = 3")
    policy = dataclasses.replace(bundle.policy, placements={**placements, "cheap": broken})
    recommender = Recommender(dataclasses.replace(bundle, policy=policy), catalogue)
    state = states_of(["u"], [shopper()])
    query = Query(user_id="u", now=NOW, placement="cheap", n=5, filter="price < 3")
    ranked = recommender.recommend(state, [query])[0]
    assert (ranked.degraded, set(ranked.items)) == (("filter",), {"apple", "bread", "figs"})
    with pytest.raises(UserError):
        recommender.recommend(state, [msgspec.structs.replace(query, filter="shelf = 4")])
    recommender.warm_up(state, query, catalogue.snapshot())


def test_check_golden_with_a_changed_bundle_raises(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = make_bundle({"history": 1.0, "popular": 0.5})
    own = Recommender(bundle, Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes))
    states = states_of(["a", "b"], [shopper((1, ["eggs"]), dislikes=("apple",)), shopper()])
    golden = make_golden(own, states, NOW, "home", 3)
    bundle.golden.extend(golden)
    check_golden(bundle)
    bundle.arrays["popular"][:2] = [2, 1]
    with pytest.raises(BundleError, match="case 1"):
        check_golden(bundle)
