"""Mixed lists: items that are new to the user replace the lowest seen ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recloop.bundle import Bundle
from recloop.errors import UserError
from recloop.features.encode import EncodedBatch
from recloop.policy import NewItems, Placement, Policy
from recloop.recommend.catalog import Catalog
from recloop.recommend.fusion import FusedTopK
from recloop.recommend.new_items import seen_items, with_new_items
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.recommender import Recommender
from recloop.recommend.top_k import TopK
from recloop.records import DAY, Query
from recloop.testing.states import UserActs, states_of

NOW = 1_000 * DAY
SEEN = ["apple", "bread", "cheese"]
Make = Callable[..., Bundle]


def states(items: list[str]) -> UserActs:
    """A state with one moment a day, the first item the newest."""
    state = UserActs()
    for days, item in sorted(enumerate(items, start=1), reverse=True):
        state.add(item, NOW - days * DAY, None, 1)
    return state


def mixed(bundle: Bundle, share: float, weights: dict[str, float]) -> Bundle:
    home = replace(bundle.policy.placements["home"], new=NewItems(share, weights))
    return replace(bundle, policy=bundle.policy.with_placement("home", home))


def ask(
    bundle: Bundle,
    catalogue: Catalog,
    *items: str,
    n: int = 3,
    filter_seen: bool | None = None,
    min_new: float | None = None,
) -> RankedList:
    query = Query(user_id="u", now=NOW, n=n, filter_seen=filter_seen, min_new=min_new)
    return Recommender(bundle, catalogue).recommend(states_of(["u"], [states([*items])]), [query])[0]


def test_new_items_replace_the_lowest_seen_items(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = make_bundle({"history": 1.0})
    assert ask(bundle, catalogue, *SEEN).items == SEEN
    answer = ask(mixed(bundle, 1 / 3, {"popular": 1.0}), catalogue, *SEEN)
    assert answer.items == ["apple", "bread", "dates"]
    assert answer.sources == ["history", "history", "popular"]
    assert answer.scores == sorted(answer.scores, reverse=True)
    assert ask(mixed(bundle, 0.6, {"popular": 1.0}), catalogue, *SEEN).items == ["apple", "dates", "eggs"]


def test_list_with_enough_new_items_stays(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = make_bundle({"history": 1.0, "popular": 0.99})
    plain = ask(bundle, catalogue, "eggs")
    assert ask(mixed(bundle, 1 / 3, {"popular": 1.0}), catalogue, "eggs").slots == plain.slots


def test_sources_without_enough_new_items_leave_seen_ones(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = mixed(make_bundle({"history": 1.0}), 1.0, {"popular": 1.0})
    assert ask(bundle, catalogue, "apple", "bread", "cheese", "dates").items == ["apple", "bread", "eggs"]


def test_new_items_obey_the_filters(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = mixed(make_bundle({"history": 1.0}), 0.5, {"popular": 1.0})
    recommender = Recommender(bundle, catalogue)
    query = Query(user_id="u", now=NOW, n=3, filter="price < 4", exclude=("eggs",))
    answer = recommender.recommend(states_of(["u"], [states(SEEN)]), [query])[0]
    assert answer.items[:2] == ["apple", "bread"]  # dates costs 4, eggs is excluded
    assert not {"dates", "eggs"} & set(answer.items)


@pytest.mark.parametrize(("n", "slots"), [(1, 0), (2, 1), (3, 1), (10, 4), (30, 10)])
def test_slots_leave_one_for_any_item(n: int, slots: int) -> None:
    assert NewItems(1 / 3, {}).slots(n) == slots
    assert NewItems(1.0, {}).slots(n) == n


def test_mixed_lists_of_a_batch_equal_single_requests(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = mixed(make_bundle({"history": 1.0, "neighbours": 0.2}), 0.5, {"neighbours": 1.0, "popular": 0.5})
    histories = [SEEN, ["dates"], [], ["eggs", "apple", "dates", "bread"], ["unknown"]]
    recommender = Recommender(bundle, catalogue)
    users = [f"u{n}" for n in range(len(histories))]
    acts = [states(items) for items in histories]
    queries = [Query(user_id=user, now=NOW, n=4) for user in users]
    together = recommender.recommend(states_of(users, acts), queries)
    for user, query, state, answer in zip(users, queries, acts, together, strict=True):
        assert recommender.recommend(states_of([user], [state]), [query])[0] == answer


@pytest.mark.parametrize("seed", range(20))
def test_with_new_items_keeps_order_and_takes_the_best_of_both_kinds(
    make_bundle: Make, catalogue: Catalog, seed: int
) -> None:
    random = np.random.default_rng(seed)
    recommender = Recommender(make_bundle({"history": 1.0}), catalogue)
    ids = recommender.bundle.items.ids.ids
    histories = [random.choice(ids, int(random.integers(1, 5)), replace=False).tolist() for _ in range(6)]
    encoded: EncodedBatch = recommender.encode(
        states_of([*"abcdef"], [states(items) for items in histories]), [NOW] * 6
    )
    k, new = int(random.integers(1, 5)), NewItems(float(random.choice([0.25, 0.5, 1.0])), {"popular": 1.0})
    listed = FusedTopK.empty(6, k + 2)
    for b in range(6):
        items = random.permutation(np.arange(1, 6))[: int(random.integers(1, min(k + 2, 5) + 1))]
        listed.items[b, : len(items)] = items
        listed.scores[b, : len(items)] = np.sort(random.random(len(items)))[::-1]
        listed.sources[b, : len(items)] = 1
    everything = TopK(np.tile(np.arange(1, 6, dtype=np.int32), (6, 1)), np.tile(np.linspace(1, 0, 5), (6, 1)))
    mixed_lists = with_new_items(listed, encoded, {"popular": everything}, new, k)
    is_seen = seen_items(encoded, mixed_lists.items)
    for b, history in enumerate(histories):
        items = [item for item in mixed_lists.items[b].tolist() if item]
        taken = np.count_nonzero(mixed_lists.items[b])
        n_available = len(ids) - len(history)
        n_new = np.count_nonzero(~is_seen[b, :taken])
        assert len(set(items)) == len(items) == taken
        assert n_new >= min(new.slots(k), n_available)
        scores = mixed_lists.scores[b, :taken]
        assert np.all(np.diff(scores) <= 0)
        order = {item: column for column, item in enumerate(listed.items[b].tolist()) if item}
        kept = [order[item] for item in items if item in order]
        assert kept[: len(set(items) & set(order))] == sorted(kept)
        seen = [item for item in order if ids[item - 1] in history]
        assert [item for item in items if ids[item - 1] in history] == seen[: taken - n_new]


def test_request_with_filter_seen_shows_new_items_only(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = mixed(make_bundle({"history": 1.0, "popular": 0.5}), 0.5, {"popular": 1.0})
    assert ask(bundle, catalogue, *SEEN, n=2, filter_seen=True).items == ["dates", "eggs"]


@pytest.mark.parametrize(
    ("asked", "items"),
    [
        (None, ["apple", "bread", "dates"]),
        (0.0, ["apple", "bread", "cheese"]),
        (0.5, ["apple", "dates", "eggs"]),
        (1.0, ["apple", "dates", "eggs"]),  # two new items exist
    ],
)
def test_min_new_of_query_wins_over_placement(
    make_bundle: Make, catalogue: Catalog, asked: float | None, items: list[str]
) -> None:
    bundle = mixed(make_bundle({"history": 1.0}), 1 / 3, {"popular": 1.0})
    assert ask(bundle, catalogue, *SEEN, min_new=asked).items == items


def test_min_new_of_query_without_rule_takes_the_fusion_of_another_placement(make_bundle: Make) -> None:
    policy = make_bundle({"history": 1.0}).policy
    home = policy.placements["home"]
    sources = {"history": 1, "neighbours": 1, "popular": 1, "buy_again": 1}
    assert policy.with_new_items(home, 0.4, sources).new == NewItems(0.4, {"neighbours": 1.0, "popular": 1.0})
    discover = replace(home, filter_seen=True, weights={"neighbours": 0.7}, rrf=5)
    assert policy.with_placement("new", discover).with_new_items(home, 0.4, sources).new == NewItems(
        0.4, {"neighbours": 0.7}, 5
    )
    cheap = replace(policy.placements["cheap"], new=NewItems(0.1, {"popular": 1.0}, 20))
    with_rule = policy.with_placement("new", discover).with_placement("cheap", cheap)
    assert with_rule.with_new_items(home, 0.4, sources).new == NewItems(0.4, {"popular": 1.0}, 20)


def test_min_new_of_queries_divides_a_batch(make_bundle: Make, catalogue: Catalog) -> None:
    recommender = Recommender(make_bundle({"history": 1.0}), catalogue)
    queries = [Query(user_id=f"u{n}", now=NOW, n=3, min_new=share) for n, share in enumerate((None, 0.5, 0.0, 1.0))]
    answers = recommender.recommend(states_of(["u"] * 4, [states(SEEN)] * 4), queries)
    assert [len(set(answer.items) - set(SEEN)) for answer in answers] == [0, 2, 0, 2]


def test_min_new_of_query_for_another_kind_of_list_is_refused(make_bundle: Make, catalogue: Catalog) -> None:
    bundle = make_bundle({"history": 1.0})
    popular = replace(bundle.policy.placements["home"], list="popular", weights={"popular": 1.0})
    recommender = Recommender(replace(bundle, policy=bundle.policy.with_placement("top", popular)), catalogue)
    with pytest.raises(UserError, match="a list popular"):
        recommender.normalize(Query(user_id="u", now=NOW, placement="top", min_new=0.2))
    none = Query(user_id="u", now=NOW, placement="top", min_new=0.0)
    assert recommender.normalize(none) == none


def test_placement_with_new_items_round_trips_as_json() -> None:
    home = Placement("for_you", {"history": 1.0}, "", 10, new=NewItems(0.333, {"popular": 1.0}, 20))
    policy = Policy({"home": home}, False, ())
    assert Policy.from_json(policy.to_json()).placements["home"] == home
