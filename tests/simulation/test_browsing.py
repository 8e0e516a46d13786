"""The browsing simulator: repeatable, consistent with its truth, usable as a project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recloop.data.clean import clean
from recloop.data.entities import read_items
from recloop.data.read import read_events
from recloop.project import open_project
from recloop.records import DAY
from recloop.simulation.browsing import TYPES, BrowsingSimulator
from recloop.simulation.shop import START

NOON = START + 45 * DAY


@pytest.fixture(scope="module")
def browsing_simulator() -> BrowsingSimulator:
    return BrowsingSimulator(seed=0, users=120, items=100, days=60)


def test_browsing_simulator_with_one_seed_is_equal(browsing_simulator: BrowsingSimulator) -> None:
    again = BrowsingSimulator(seed=0, users=120, items=100, days=60)
    assert again.events(20).equals(browsing_simulator.events(20))
    assert not BrowsingSimulator(seed=1, users=120, items=100, days=60).events(20).equals(browsing_simulator.events(20))
    shown = browsing_simulator.item_ids[:10]
    assert browsing_simulator.respond("u001", shown, NOON, "r1") == again.respond("u001", shown, NOON, "r1")


def test_browsing_events_have_all_types_in_time_order(browsing_simulator: BrowsingSimulator) -> None:
    events = browsing_simulator.events()
    assert events["timestamp"].is_sorted()
    assert events["event_id"].n_unique() == len(events)
    counts = dict(events.group_by("event_type").len().iter_rows())
    assert set(counts) == set(TYPES)
    assert counts["dwell"] == counts["click"] > counts["skip"] > counts["dislike"] > 20
    assert counts["purchase"] > 300


def test_browsing_events_follow_the_utilities(browsing_simulator: BrowsingSimulator) -> None:
    """Purchases rank high in the user's utility, skips below the middle, dislikes low."""
    shares: dict[str, list[float]] = {kind: [] for kind in TYPES}
    ix = {item: n for n, item in enumerate(browsing_simulator.item_ids)}
    for user, item, kind, stamp in (
        browsing_simulator.events().select("user_id", "item_id", "event_type", "timestamp").iter_rows()
    ):
        now = int(np.datetime64(stamp.removesuffix("Z"), "us").astype(np.int64))
        worth = browsing_simulator.utility(user, now)
        shares[kind].append(float((worth < worth[ix[item]]).mean()))
    means = {kind: float(np.mean(found)) for kind, found in shares.items()}
    assert means["purchase"] > 0.85
    assert means["purchase"] > means["click"] > 0.7
    assert means["skip"] < 0.5
    assert means["dislike"] < 0.3 < means["skip"]


def test_browsing_expected_equals_the_mean_of_responses(browsing_simulator: BrowsingSimulator) -> None:
    shown = browsing_simulator.item_ids[:10]
    drawn = [browsing_simulator.respond("u001", shown, NOON, f"r{n}") for n in range(4000)]
    expected = browsing_simulator.expected("u001", shown, NOON)
    hits = np.mean([any(row["event_type"] == "click" for row in rows) for rows in drawn])
    assert expected["hit"] == pytest.approx(hits, abs=4 * np.sqrt(hits * (1 - hits) / len(drawn)))
    for kind in ("click", "purchase"):
        found = np.array([sum(row["event_type"] == kind for row in rows) for rows in drawn])
        assert expected[kind] == pytest.approx(found.mean(), abs=4 * found.std() / np.sqrt(len(found)))


def test_browsing_expected_is_higher_for_better_lists(browsing_simulator: BrowsingSimulator) -> None:
    order = np.argsort(-browsing_simulator.utility("u001", NOON))
    best, worst = ([browsing_simulator.item_ids[ix] for ix in some] for some in (order[:10], order[-10:]))
    assert (
        browsing_simulator.expected("u001", best, NOON)["purchase"]
        > 10 * browsing_simulator.expected("u001", worst, NOON)["purchase"]
    )
    assert (
        browsing_simulator.expected("u001", best, NOON)["click"]
        > browsing_simulator.expected("u001", best[::-1], NOON)["click"]
    )


def test_browsing_search_excludes_shown_items(browsing_simulator: BrowsingSimulator) -> None:
    found = {row["item_id"] for n in range(200) for row in browsing_simulator.search("u001", NOON, f"s{n}")}
    shown = sorted(found)[::2]
    later = {row["item_id"] for n in range(200) for row in browsing_simulator.search("u001", NOON, f"s{n}", shown)}
    assert len(shown) > 5
    assert later
    assert later.isdisjoint(shown)


def test_browsing_tastes_drift_and_new_users_and_items_arrive(browsing_simulator: BrowsingSimulator) -> None:
    first, last = START, START + 60 * DAY
    correlations = [
        np.corrcoef(browsing_simulator.utility(user, first), browsing_simulator.utility(user, last))[0, 1]
        for user in browsing_simulator.user_ids
    ]
    assert 0.6 < np.mean(correlations) < 0.97
    still = BrowsingSimulator(seed=0, users=5, items=20, drift=0)
    assert (still.utility("u1", first) == still.utility("u1", last)).all()
    assert browsing_simulator.on_sale(first).sum() == 85
    assert len(browsing_simulator.items()) == len(browsing_simulator.item_ids) == 100
    items, users = browsing_simulator.arrivals(20, 60)
    assert len(items) == 15
    assert len(users) == 24
    assert set(items[0]) == {"item_id", "attributes"}
    assert set(items[0]["attributes"]) == {"name", "category", "price", "duration"}
    assert browsing_simulator.arrivals(0, 20) == ([], [])
    late = {body["user_id"] for body in users}
    assert late.isdisjoint(user for _, user in browsing_simulator.visits(0, 20))


def test_browsing_visits_are_ordered_and_independent_of_the_range(browsing_simulator: BrowsingSimulator) -> None:
    whole = list(browsing_simulator.visits(0, 60))
    assert whole == sorted(whole)
    assert list(browsing_simulator.visits(0, 30)) + list(browsing_simulator.visits(30, 60)) == whole


def test_browsing_long_dwells_have_higher_utility(browsing_simulator: BrowsingSimulator, tmp_path: Path) -> None:
    """Clicked items with a dwell in the upper 30 % of their band have higher utility."""
    here = open_project(browsing_simulator.write(tmp_path / "shop"))
    items = read_items(here)
    assert items is not None
    cleaned = clean(read_events(here).frame, here.config, 0, items.frame)
    assert not cleaned.removed
    rows = cleaned.valid_rows.filter(pl.col("event_type") == "dwell")
    assert 0.2 < (rows["label"] > 0).mean() < 0.4  # type: ignore[operator]
    ix = {item: n for n, item in enumerate(browsing_simulator.item_ids)}
    worth = [
        browsing_simulator.utility(user, stamp)[ix[item]]
        for user, item, stamp in rows.select("user_id", "item_id", "timestamp").iter_rows()
    ]
    mean = rows.with_columns(pl.Series("worth", worth)).group_by("label").agg(pl.col("worth").mean()).sort("label")
    assert mean["worth"][1] > mean["worth"][0] + 1
