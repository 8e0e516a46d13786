"""A small shop from which a ranker is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

import recloop
from recloop.api.fitted_recommender import FittedData, FittedRecommender
from recloop.bundle import Bundle
from recloop.config import Config, Ranker
from recloop.features.state_history import StateHistory
from recloop.models.base import TrainData
from recloop.recommend.catalog import Catalog
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.recommender import Recommender
from recloop.records import SEQ, Query
from recloop.simulation.shop import SimulatedShop
from recloop.training import ranker
from recloop.training.dataset import ItemUserTables, make_tables, validation_data


@dataclass(frozen=True)
class Shop:
    """A small log and what a ranker is trained from."""

    bundle: Bundle
    config: Config
    data: TrainData
    tables: ItemUserTables
    past: StateHistory
    rows: FittedData  # the test of an evaluation is validation

    def choose(self, model: str = "gbdt", bundle: Bundle | None = None, threads: int = 1) -> ranker.RankerChoice:
        config = self.config.model_copy(update={"ranker": Ranker(model=model, trees=5, leaves=4)})
        return ranker.choose_ranker(bundle or self.bundle, config, self.data, self.tables, self.past, threads)

    def learner(self, bundle: Bundle) -> ranker._Learner:
        return ranker._Learner(bundle, self.config, self.data, self.tables, self.past, 1)


def make_shop() -> Shop:
    """Fit the counts of a simulated shop."""
    world = SimulatedShop(users=40, items=30)
    fitted: FittedRecommender = recloop.fit(
        world.events(), world.items(), world.users(), config={"events": {"positive": ["purchase"]}}
    )
    rows = fitted._rows
    assert rows.parts is not None
    before = pl.concat([rows.parts.train, rows.parts.valid]).sort(SEQ)
    tables = make_tables(fitted.bundle.spec, before, rows.parts.cut, rows.items, rows.users)
    data = validation_data(tables, rows.parts.train, rows.parts.valid, None, temporal=True)
    return Shop(
        fitted.bundle,
        fitted._config,
        data,
        tables,
        StateHistory(before, rows.users),
        replace(rows, parts=rows.parts._replace(test=rows.parts.valid)),
    )


def lists(bundle: Bundle, shop: Shop, **options: bool) -> list[RankedList]:
    """Return the lists of six users."""
    catalog = Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes)
    users = shop.data.user_ids[:6]
    states = shop.past.states(users, [10**9] * 6)
    queries = [Query(user_id=user, now=bundle.cut) for user in users]
    return Recommender(bundle, catalog).recommend(states, queries, **options)
