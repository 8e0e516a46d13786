"""A bundle small enough to rank by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from recloop.bundle import Bundle, ItemTable
from recloop.features.spec import FeatureSpec
from recloop.features.vocabulary import FieldCodes, Vocabulary
from recloop.manifest import Manifest, ModelSpec, TrainingRows
from recloop.policy import FALLBACK, Policy, ScorerSpec
from recloop.recommend.catalog import Catalog
from recloop.records import Item
from recloop.settings import build

IDS = ["apple", "bread", "cheese", "dates", "eggs"]  # item_ix 1..5
PRICES = [1.0, 2.0, 5.0, 4.0, 3.0]


def neighbours(rows: dict[int, dict[int, float]]) -> dict[str, np.ndarray]:
    indptr, ids, weights = [0], [], []
    for row in range(len(IDS) + 1):
        ids += list(rows.get(row, {}))
        weights += list(rows.get(row, {}).values())
        indptr.append(len(ids))
    return {
        "neighbours.indptr": np.array(indptr, dtype=np.int64),
        "neighbours.ids": np.array(ids, dtype=np.int32),
        "neighbours.weights": np.array(weights, dtype=np.float32),
    }


@pytest.fixture
def make_bundle() -> Callable[..., Bundle]:
    """Make a bundle of five items with given weights and policy keys."""

    def make(weights: dict[str, float], half_life: float | None = None, **policy: object) -> Bundle:
        spec = FeatureSpec.from_config(build({"features": {"context": []}, "serve": {"segment": "age"}}, (), {}))
        home = {"list": "for_you", "weights": weights, "filter": "", "n": 3}
        return Bundle(
            manifest=Manifest(
                bundle="tiny", model=ModelSpec("counts", {}), data=TrainingRows(cut=0),
                scorers={
                    "history": ScorerSpec("history", "bought_before", "counts", half_life=half_life),
                    "neighbours": ScorerSpec("neighbours", "covisitation", "neighbours", recent=(1.0, 0.5)),
                    "popular": ScorerSpec("popular", "popular", "counts"),
                },
            ),
            spec=spec,
            fields=FieldCodes({}),
            policy=Policy.from_json({
                "placements": {"home": home, "cheap": {**home, "filter": "price < 3"}},
                "filter_seen": False, "fallback": list(FALLBACK), **policy,
            }),
            items=ItemTable(
                ids=Vocabulary(IDS), count=np.arange(5, 0, -1), tail=np.zeros(5, dtype=bool),
                first_seq=np.arange(1, 6), attributes=[{"price": price} for price in PRICES],
            ),
            arrays={
                "popular": np.array([1, 2, 3, 4, 5], dtype=np.int32),
                "segment.old": np.array([5, 4], dtype=np.int32),
                **neighbours({1: {2: 0.5, 3: 0.25}, 2: {3: 0.5}, 4: {5: 1.0}}),
            },
        )  # fmt: skip

    return make


@pytest.fixture
def catalogue() -> Catalog:
    """The bundle's items and two further ones."""
    made = Catalog.from_table(IDS, [{"price": price} for price in PRICES])
    made.upsert(Item(item_id="figs", attributes={"price": 2.5}, seq=10))
    made.upsert(Item(item_id="grapes", attributes={"price": 9.0}, seq=11))
    return made
