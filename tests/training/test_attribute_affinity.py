"""Attribute affinities: fit, choice, lists of cold users, new items and bad input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recloop import bundle as bundles
from recloop.bundle import Bundle
from recloop.config import Config
from recloop.features.attribute_affinity import AttributeAffinity, FieldColumns, scores_of
from recloop.features.encode import attribute_codes
from recloop.features.spec import FeatureSpec
from recloop.features.state_history import StateHistory
from recloop.manifest import Manifest, ModelSpec, TrainingRows
from recloop.models.base import TrainData
from recloop.recommend.attribute_lists import OUTSIDE_EVERY
from recloop.recommend.catalog import Catalog
from recloop.recommend.ranked_list import RankedList
from recloop.recommend.recommender import Recommender
from recloop.records import DAY, ITEM_ID, LABEL, SEQ, STAMP, USE, USER_ID, WEIGHT, Item, Query, Use
from recloop.settings import build
from recloop.training import attribute_affinity as affinities
from recloop.training.baselines import draft_bundle, fit_counts, refit_baselines
from recloop.training.dataset import ItemUserTables, make_tables, train_data

N_USERS, N_ITEMS, N_MOMENTS = 60, 24, 4
NO_ROWS = pl.DataFrame(
    schema={
        USER_ID: pl.String, ITEM_ID: pl.String, STAMP: pl.Int64, SEQ: pl.Int64, LABEL: pl.Int8, WEIGHT: pl.Float32,
        USE: pl.Int8,
    }
)  # fmt: skip
FIELDS = {
    "item": {"kind": {"kind": "category"}, "tags": {"kind": "categories"}, "price": {"kind": "number"}},
    "user": {"age": {"kind": "category"}},
    "context": [],
}


@dataclass(frozen=True)
class Shop:
    """Young users buy items of kind a, old users those of kind b."""

    config: Config
    rows: pl.DataFrame
    users: pl.DataFrame
    tables: ItemUserTables
    data: TrainData
    bundle: Bundle

    def with_strengths(self, *strengths: float) -> Bundle:
        arrays = affinities.refit_affinity(self.data, strengths, None)
        return replace(self.bundle, arrays={**self.bundle.arrays, **arrays})


def versions(key: str, rows: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(
        {key: list(rows), SEQ: [0] * len(rows), "attributes": [json.dumps(row) for row in rows.values()]}
    )


def make_shop(config_tree: Mapping[str, Any] = FIELDS, last_moment_is_held: bool = True) -> Shop:
    config = build({"features": config_tree}, (), {})
    generator = np.random.default_rng(1)
    items = {
        f"i{n}": {"kind": "ab"[n % 2], "tags": [f"t{n % 5}", f"t{n % 3}"], "price": float(n)} for n in range(N_ITEMS)
    }
    users = {f"u{n:02d}": {"age": "young" if n % 4 < 2 else "old"} for n in range(N_USERS)}
    acts = [
        (user, f"i{2 * item + (n % 4 >= 2)}", (moment + 1) * DAY + n)
        for n, user in enumerate(users)
        for moment in range(N_MOMENTS)
        for item in {*generator.integers(0, N_ITEMS // 2, 3).tolist()}
    ]
    acts.sort(key=lambda act: act[2])
    rows = pl.DataFrame(acts, schema=[USER_ID, ITEM_ID, STAMP], orient="row").with_columns(
        pl.int_range(pl.len()).cast(pl.Int64).alias(SEQ), pl.lit(1, pl.Int8).alias(LABEL),
        pl.lit(1.0, pl.Float32).alias(WEIGHT), pl.lit(int(Use.TARGET), pl.Int8).alias(USE),
    )  # fmt: skip
    user_rows = versions(USER_ID, users)
    spec = FeatureSpec.from_config(config)
    tables = make_tables(spec, rows, 9 * DAY, versions(ITEM_ID, items), user_rows)
    is_held = pl.col(STAMP) >= N_MOMENTS * DAY
    data = train_data(tables, rows.filter(~is_held), rows.filter(is_held) if last_moment_is_held else None)
    counts, scorers = fit_counts(data, tables)
    manifest = Manifest(model=ModelSpec("counts", {}), data=TrainingRows(cut=9 * DAY, until_seq=len(rows)))
    bundle = draft_bundle(config, tables, data, counts, scorers, manifest)
    return Shop(config, rows, user_rows, tables, data, bundle)


@pytest.fixture(scope="module")
def shop() -> Shop:
    return make_shop()


def answer(
    bundle: Bundle,
    attributes: Mapping[str, Any] | None,
    catalog: Catalog | None = None,
    past: pl.DataFrame | None = None,
) -> RankedList:
    """Return the list of the user ``new``."""
    rows = NO_ROWS if past is None else past
    users = None if attributes is None else versions(USER_ID, {"new": attributes})
    history = StateHistory(rows, users)
    catalog = catalog or Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes)
    states = history.states(["new"], [10**9])
    return Recommender(bundle, catalog).recommend(states, [Query(user_id="new", now=9 * DAY)])[0]


def kinds(bundle: Bundle, found: RankedList) -> list[str]:
    return [bundle.items.attributes[bundle.items.ids.index(item) - 1]["kind"] for item in found.items]


def test_choice_uses_user_fields_that_help_and_names_the_numbers(shop: Shop) -> None:
    choice = affinities.choose_strengths(shop.bundle, shop.config, shop.data)
    assert choice.strengths[0] > 0
    assert choice.strengths[1] > 0  # the kind of the last items tells the next
    assert choice.sentence.startswith("attribute lists for cold users: user fields used (NDCG@10 0.")


def test_choice_without_fields_or_validation_adds_nothing() -> None:
    no_fields = make_shop({"context": []})
    assert affinities.choose_strengths(no_fields.bundle, no_fields.config, no_fields.data).strengths is None
    no_validation = make_shop(last_moment_is_held=False)
    choice = affinities.choose_strengths(no_validation.bundle, no_validation.config, no_validation.data)
    assert choice == affinities.AttributeChoice(None, "no attribute lists: no validation moments")
    assert affinities.refit_affinity(no_validation.data, choice.strengths, None) == {}


def test_cold_user_with_attributes_gets_a_list_of_its_kind(shop: Shop) -> None:
    bundle = shop.with_strengths(1.0, 1.0)
    old = answer(bundle, {"age": "old"})
    assert kinds(bundle, old) == ["b"] * 10
    assert kinds(bundle, answer(bundle, {"age": "young"})) == ["a"] * 10
    assert set(old.sources) == {"attributes"}


@pytest.mark.parametrize(
    "attributes", [None, {}, {"age": None}, {"age": "unseen"}, {"age": "x" * 10_000_000}, {"age": 7}]
)
def test_cold_user_without_a_known_value_gets_popular(shop: Shop, attributes: Mapping[str, Any] | None) -> None:
    found = answer(shop.with_strengths(1.0, 1.0), attributes)
    assert found.items == answer(shop.bundle, attributes).items
    assert set(found.sources) == {"popular"}


def test_new_item_is_in_the_next_list_and_one_of_ten(shop: Shop) -> None:
    bundle = shop.with_strengths(1.0, 1.0)
    catalog = Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes)
    for number, kind in enumerate("ab"):
        catalog.upsert(Item(item_id=f"new-{kind}", attributes={"kind": kind}, seq=10_000 + number))
    catalog.upsert(Item(item_id="bare", attributes={}, seq=10_009))
    found = answer(bundle, {"age": "young"}, catalog)
    assert found.items[OUTSIDE_EVERY - 1] == "new-a"
    assert {"new-b", "bare"}.isdisjoint(found.items)
    catalog.upsert(Item(item_id="new-a", attributes={"kind": "a"}, hidden=True, seq=10_010))
    assert "new-a" not in answer(bundle, {"age": "young"}, catalog).items


def test_lists_equal_the_plain_definition(shop: Shop) -> None:
    bundle = shop.with_strengths(0.5, 1.0)
    fitted = AttributeAffinity.from_arrays(bundle.arrays)
    assert fitted is not None
    index = bundle.items.ids.index
    recent = shop.rows.head(2).with_columns(pl.lit("new").alias(USER_ID))
    found = answer(replace(bundle, policy=replace(bundle.policy, filter_seen=True, placements={
        name: replace(one, weights={"history": 1.0}) for name, one in bundle.policy.placements.items()})),
        {"age": "old"}, past=recent)  # fmt: skip
    columns = FieldColumns.of("item", bundle.spec, bundle.fields)
    codes = attribute_codes("item", bundle.spec, bundle.fields, [None, *bundle.items.attributes])[0]
    slots = fitted.item_slots[columns.offsets + codes]
    age = fitted.user_slots[FieldColumns.of("user", bundle.spec, bundle.fields).offsets[0] + 1]  # old is the first code
    scores = {}
    for ix in range(1, len(slots)):
        total = float(fitted.prior[ix])
        for field in range(3):
            values = [int(slot) for slot in slots[ix][columns.fields == field] if slot > 0]
            for value in values:
                gain = 0.5 * float(fitted.affinity[age, value])
                for item_id in recent[ITEM_ID]:
                    own = [int(slot) for slot in slots[index(item_id)][columns.fields == field] if slot > 0]
                    lifts = [float(fitted.affinity[fitted.n_users + slot, value]) for slot in own]
                    gain += sum(lifts) / len(own) / len(recent)
                total += gain / len(values)
        scores[bundle.items.ids.ids[ix - 1]] = total
    shown = sorted((item for item in scores if item not in {*recent[ITEM_ID]}), key=lambda item: -scores[item])
    assert found.items == shown[:10]


def test_lift_counts_values_and_is_zero_at_the_base_rate(shop: Shop) -> None:
    fitted = affinities.fit_affinity(shop.data, (1.0, 1.0), None)
    assert fitted.affinity.shape[1] == len(fitted.value_prior)
    assert not fitted.affinity[0].any()
    assert not fitted.affinity[:, 0].any()
    counts = np.array([[0.0, 8.0, 2.0], [0.0, 4.0, 1.0]])
    assert np.allclose(affinities._lift(counts, np.array([-1, 0, 0]), 1.0), 0)
    skewed = affinities._lift(np.array([[0.0, 9.0, 1.0], [0.0, 1.0, 9.0]]), np.array([-1, 0, 0]), 1.0)
    assert skewed[0, 1] == pytest.approx(np.log((9 + 10 * 0.5) / 20 / 0.5))


def test_slots_keep_the_most_frequent_of_many_values(monkeypatch: pytest.MonkeyPatch, shop: Shop) -> None:
    monkeypatch.setattr(affinities, "MAX_ITEM_SLOTS", 3)
    fitted = affinities.fit_affinity(shop.data, (1.0, 1.0), None)
    assert fitted.item_slots.max() == 3
    assert np.isfinite(fitted.affinity).all()


def test_item_with_ten_thousand_categories_is_scored(shop: Shop) -> None:
    bundle = shop.with_strengths(1.0, 1.0)
    catalog = Catalog.from_table(bundle.items.ids.ids, bundle.items.attributes)
    many = {"kind": 3, "tags": [f"c{n}" for n in range(10_000)] + ["t1"], "price": "none"}
    catalog.upsert(Item(item_id="many", attributes=many, seq=10_000))
    assert answer(bundle, {"age": "old"}, catalog).items[-1] == "many"


def test_bundle_round_trips_and_a_refit_keeps_the_strengths(shop: Shop, tmp_path: Path) -> None:
    bundle = shop.with_strengths(0.5, 0.0)
    loaded = bundles.load(tmp_path / bundles.write(bundle, tmp_path, datetime(2025, 1, 2, tzinfo=UTC)).id)
    assert answer(loaded, {"age": "old"}) == answer(bundle, {"age": "old"})
    assert affinities.strengths_of(refit_baselines(loaded, shop.data, shop.tables, shop.config)) == (0.5, 0.0)
    assert affinities.strengths_of(refit_baselines(shop.bundle, shop.data, shop.tables, shop.config)) is None


def test_one_item_and_no_user_field_fit() -> None:
    shop = make_shop({"item": {"kind": {"kind": "category"}}, "context": []})
    fitted = affinities.fit_affinity(shop.data, (1.0, 1.0), 7.0)
    assert fitted.n_users == 0
    one = np.zeros((1, 1), dtype=np.int64)
    assert scores_of(fitted.value_prior, one, one.astype(np.float32)).tolist() == [0.0]
