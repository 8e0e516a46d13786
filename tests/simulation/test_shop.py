"""The simulated shop: repeatable, shaped like a real log, consistent with its truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from recloop.project import open_project
from recloop.simulation.shop import START, SimulatedShop


def test_simulated_shop_with_one_seed_is_equal(simulated_shop: SimulatedShop) -> None:
    again, other = SimulatedShop(seed=0), SimulatedShop(seed=1)
    assert again.events().equals(simulated_shop.events())
    assert again.items().equals(simulated_shop.items())
    assert again.users().equals(simulated_shop.users())
    assert not other.events().equals(simulated_shop.events())


def test_simulated_baskets_have_one_timestamp_and_distinct_items(simulated_shop: SimulatedShop) -> None:
    baskets = simulated_shop.events().filter(pl.col("event_type") == "purchase").group_by("user_id", "group_id")
    shape = baskets.agg(
        stamps=pl.col("timestamp").n_unique(), twice=pl.col("item_id").is_duplicated().any(), rows=pl.len()
    )
    assert shape["stamps"].max() == 1
    assert not shape["twice"].any()
    assert shape["rows"].max() > 3


def test_simulated_shop_has_the_expected_size(simulated_shop: SimulatedShop) -> None:
    events = simulated_shop.events()
    assert 9_000 < events.height < 15_000
    assert events["timestamp"].is_sorted()
    assert events["event_id"].n_unique() == events.height
    assert set(events["event_type"]) == {"click", "purchase", "dislike"}
    silent = set(simulated_shop.users()["user_id"]) - set(events["user_id"])
    assert len(silent) == 9
    assert events["timestamp"].min() >= START


def test_simulated_late_items_are_bought_after_their_launch(simulated_shop: SimulatedShop) -> None:
    events = simulated_shop.events().filter(pl.col("event_type") == "purchase")
    first = events.group_by("item_id").agg(pl.col("timestamp").min())
    cold = first.filter(pl.col("timestamp") >= START + int(0.9 * simulated_shop.days) * 86_400_000_000)
    assert cold.height >= 5


def test_simulated_purchases_follow_the_utilities(simulated_shop: SimulatedShop) -> None:
    """Bought items rank high in the user's utility, disliked ones low."""
    ix = {item: n for n, item in enumerate(simulated_shop.item_ids)}
    ranks: dict[str, list[float]] = {"purchase": [], "dislike": []}
    order = {user: simulated_shop.utility(user).argsort().argsort() / len(ix) for user in simulated_shop.user_ids}
    for user, item, kind in simulated_shop.events().select("user_id", "item_id", "event_type").iter_rows():
        if kind in ranks:
            ranks[kind].append(float(order[user][ix[item]]))
    assert np.mean(ranks["purchase"]) > 0.75
    assert np.mean(ranks["dislike"]) < 0.3


def test_best_item_has_the_largest_utility(simulated_shop: SimulatedShop) -> None:
    user = simulated_shop.user_ids[7]
    assert (
        simulated_shop.utility(user)[simulated_shop.item_ids.index(simulated_shop.best(user))]
        == simulated_shop.utility(user).max()
    )


def test_simulated_shop_write_gives_a_project(simulated_shop: SimulatedShop, tmp_path: Path) -> None:
    project = open_project(simulated_shop.write(tmp_path / "shop"))
    events = pl.read_csv(project.root / project.config.data.events)
    assert events.height == simulated_shop.events().height
    assert events["timestamp"][0] == "2025-01-06T16:36:00Z"
    assert pl.read_csv(project.root / project.config.data.items)["item_id"].to_list() == simulated_shop.item_ids
    assert {path.name for path in project.root.iterdir()} == {"events.csv", "items.csv", "users.csv", "recloop.toml"}
