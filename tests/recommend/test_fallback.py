"""Fallback stages and attribute rankings: equal to their plain definitions on random data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from recloop.bundle import Bundle
from recloop.config import Field
from recloop.features.spec import FeatureSpec
from recloop.features.vocabulary import CategoriesCodes, CategoryCodes, FieldCodes
from recloop.recommend import fallback, outside_items
from recloop.recommend.attribute_towers import ranked
from recloop.recommend.catalog import Catalog
from recloop.recommend.fallback import SEGMENT_PREFIX, segment_lists
from recloop.recommend.filters import CandidateMask
from recloop.recommend.outside_items import OutsideItems
from recloop.recommend.similar_items import _AttributeNeighbours
from recloop.recommend.table_mask import TableMask
from recloop.recommend.top_k import DEPTH, best_row
from recloop.records import Item

Make = Callable[..., Bundle]


def random_allowed(generator: np.random.Generator, n_items: int) -> CandidateMask:
    mask = generator.random(n_items + 1) < 0.6
    mask[0] = False
    banned = np.flatnonzero(generator.random(n_items + 1) < 0.1).astype(np.int32)
    return CandidateMask(TableMask.of(mask), [banned[banned > 0]], [frozenset()], "")


@pytest.mark.parametrize(("seed", "n_items", "n_cold"), [(0, 40, 5), (1, 900, 500), (2, 3, 0), (3, 0, 700)])
def test_ranked_equals_a_full_sort(seed: int, n_items: int, n_cold: int) -> None:
    generator = np.random.default_rng(seed)
    allowed = random_allowed(generator, n_items)
    scores = np.where(
        generator.random(n_items + 1) < 0.2, -np.inf, generator.integers(0, 30, n_items + 1).astype(float)
    )
    cold = np.where(generator.random(n_cold) < 0.2, -np.inf, generator.integers(0, 30, n_cold).astype(float))
    ids, cold_ids = [f"i{n}" for n in range(1, n_items + 1)], [f"c{n}" for n in range(n_cold)]
    shown = [
        (-scores[ix], ix, ids[ix - 1])
        for ix in range(1, n_items + 1)
        if allowed.mask[ix] and ix not in allowed.banned[0] and scores[ix] > -np.inf
    ]
    shown += [(-cold[n], n_items + 1 + n, cold_ids[n]) for n in range(n_cold) if cold[n] > -np.inf]
    expected = [item_id for *_, item_id in sorted(shown)[:DEPTH]]
    assert list(ranked(best_row(scores, allowed, 0), ids, cold_ids, cold)) == expected


@pytest.mark.parametrize("seed", range(3))
def test_segment_lists_equal_one_count_per_segment(seed: int) -> None:
    generator = np.random.default_rng(seed)
    users = [None if draw == 0 else f"s{draw}" for draw in generator.integers(0, 4, 30).tolist()]
    user_ix, items = generator.integers(0, 30, 400), generator.integers(1, 21, 400)
    weights = generator.random(400)
    lists = segment_lists(users, user_ix, items, weights, 21, 7)
    for value in sorted({user for user in users if user is not None}):
        rows = np.array([users[ix] == value for ix in user_ix])
        counts = np.bincount(items[rows], weights=weights[rows], minlength=21)
        expected = sorted(np.flatnonzero(counts).tolist(), key=lambda ix: (-counts[ix], ix))[:7]
        assert lists.pop(SEGMENT_PREFIX + value).tolist() == expected
    assert not lists


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n_kept", [1, 7, 100])
def test_ordered_items_equal_a_filter_of_the_whole_order(
    seed: int, n_kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback, "MIN_BLOCK", 2)
    monkeypatch.setattr(fallback, "MAX_BLOCK", 9)
    monkeypatch.setattr(fallback, "KEPT_ITEMS_PER_MASK", n_kept)
    generator = np.random.default_rng(seed)
    allowed = random_allowed(generator, 60)
    order = generator.permutation(60) + 1
    query = fallback.FallbackQuery(None, allowed, 0, "", "popular")  # type: ignore[arg-type]
    expected = [ix for ix in order.tolist() if allowed.mask[ix] and ix not in allowed.banned[0]]
    items = fallback.OrderedItems(order)
    assert list(items.shown(query)) == expected
    assert list(items.shown(query)) == expected  # from the kept first items


def with_fields(bundle: Bundle) -> Bundle:
    """Add a field of one category, and one of several."""
    fields = {"kind": Field(kind="category"), "tags": Field(kind="categories")}
    codes = FieldCodes({"item.kind": CategoryCodes(("a", "b")), "item.tags": CategoriesCodes(("x", "y", "z"), 2)})
    rows = [{"kind": "a", "tags": ["x"]}, {"kind": "b"}, {"tags": ["y", "x"]}, {}, {"kind": "a", "tags": ["z", "y"]}]
    spec = replace(FeatureSpec.from_json(bundle.spec.to_json()), item=fields)
    return replace(bundle, spec=spec, fields=codes, items=replace(bundle.items, attributes=rows))


def test_attribute_neighbours_count_the_shared_fields(make_bundle: Make) -> None:
    """One point for an equal field; several categories share one point."""
    neighbours = _AttributeNeighbours(with_fields(make_bundle({"popular": 1.0})))
    query = neighbours._codes([{"kind": "a", "tags": ["x", "y"]}])[0]
    assert neighbours._n_equal(neighbours._table, query).tolist() == [0, 1.5, 0, 1, 0, 1.5]
    assert neighbours._n_equal(neighbours._table, np.zeros_like(query)).tolist() == [0] * 6


def test_outside_items_compute_only_changed_items(
    make_bundle: Make, catalogue: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    codes_of = outside_items.attribute_codes
    monkeypatch.setattr(
        outside_items, "attribute_codes", lambda *words: (computed.append(len(words[3])), codes_of(*words))[1]
    )
    outside = OutsideItems(with_fields(make_bundle({"popular": 1.0})))

    def features_of(codes: np.ndarray) -> np.ndarray:
        return np.asarray(codes.sum(axis=1))

    for item_id, kind in (("figs", "a"), ("grapes", "b"), ("hay", None)):
        catalogue.upsert(Item(item_id=item_id, attributes={"kind": kind}, seq=20))
    selected = outside.select(catalogue, "", features_of)
    ids, features = selected.ids, selected.features
    assert (ids, features.tolist(), computed) == (["figs", "grapes"], [1, 2], [3])
    catalogue.upsert(Item(item_id="apple", attributes={"price": 3.0}, seq=21))  # in the table
    assert outside.select(catalogue, "", features_of).features is features
    catalogue.upsert(Item(item_id="figs", attributes={"kind": "b"}, seq=22))
    catalogue.upsert(Item(item_id="grapes", attributes={"kind": "b"}, hidden=True, seq=23))
    selected = outside.select(catalogue, "", features_of)
    ids, features = selected.ids, selected.features
    assert (ids, features.tolist(), computed) == (["figs"], [2], [3, 1])
    assert outside.select(catalogue.copy(), "", features_of).ids == ["figs"]
