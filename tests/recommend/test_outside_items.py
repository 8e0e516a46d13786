"""Items outside a bundle's table: kept by condition, and computed again after a change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recloop.bundle import Bundle
from recloop.features.spec import FeatureSpec
from recloop.features.vocabulary import FieldCodes, NumericBuckets
from recloop.recommend import outside_items
from recloop.recommend.catalog import Catalog
from recloop.recommend.outside_items import OutsideItems
from recloop.records import Item
from recloop.settings import build

CONDITIONS = ("", "price < 5", "price > 5")


def as_features(codes: np.ndarray) -> np.ndarray:
    return codes.astype(np.float32)


@pytest.fixture
def outside(make_bundle: Callable[..., Bundle]) -> OutsideItems:
    spec = FeatureSpec.from_config(build({"features": {"item": {"price": {"kind": "number"}}}}, (), {}))
    fields = FieldCodes({"item.price": NumericBuckets((2.0, 4.0))})
    return OutsideItems(replace(make_bundle({}), spec=spec, fields=fields))


def test_selected_items_and_derived_values_are_kept_for_each_condition(
    outside: OutsideItems, catalogue: Catalog
) -> None:
    derived: list[list[str]] = []

    def derive(ids: list[str]) -> int:
        derived.append(ids)
        return len(ids)

    for _ in range(2):
        for condition, expected in zip(CONDITIONS, (["figs", "grapes"], ["figs"], ["grapes"]), strict=True):
            selected = outside.select(catalogue, condition, as_features)
            assert selected.ids == expected
            assert selected.derived(lambda ids=selected.ids: derive(ids)) == len(expected)
    assert derived == [["figs", "grapes"], ["figs"], ["grapes"]]
    catalogue.upsert(Item(item_id="kale", attributes={"price": 1.0}, seq=12))
    selected = outside.select(catalogue, "price < 5", as_features)
    assert selected.ids == ["figs", "kale"]
    assert selected.derived(lambda: derive(selected.ids)) == 2


def test_items_of_earlier_conditions_are_dropped_above_the_memory_limit(
    outside: OutsideItems, catalogue: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {condition: outside.select(catalogue, condition, as_features) for condition in CONDITIONS}
    assert all(outside.select(catalogue, condition, as_features) is kept[condition] for condition in CONDITIONS)
    monkeypatch.setattr(outside_items, "SELECTED_BYTES", 0)
    catalogue.upsert(Item(item_id="kale", attributes={"price": 1.0}, seq=12))
    newest = outside.select(catalogue, "", as_features)
    assert outside.select(catalogue, "", as_features) is newest
    assert outside.select(catalogue, "price < 5", as_features).ids == ["figs", "kale"]
    assert outside.select(catalogue, "", as_features) is not newest
