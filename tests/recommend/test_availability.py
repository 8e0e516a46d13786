"""Availability, publication, expiry and variants: lists at a time, and equal to a rebuild."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.features.vocabulary import Vocabulary
from recloop.policy import CatalogRules
from recloop.recommend.availability import Availability, is_available
from recloop.recommend.catalog import Catalog
from recloop.recommend.fusion import FusedTopK
from recloop.recommend.table_mask import TableMask
from recloop.recommend.variants import Variants, one_per_group
from recloop.records import SECOND, Item

RULES = CatalogRules("availability", "availability_date", "expiration_date", "item_group_id", "Europe/Berlin")
TABLE = Vocabulary([f"i{n}" for n in range(1, 7)])
NOON = int(datetime(2026, 11, 29, 12, tzinfo=UTC).timestamp()) * SECOND


def iso(seconds: int) -> str:
    return datetime.fromtimestamp(NOON / SECOND + seconds, UTC).isoformat()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("in_stock", True), ("in stock", True), ("preorder", True), ("backorder", True), (None, True), ("", True),
        ("out_of_stock", False), ("Out of stock", False), ("out-of-stock", False), (" SOLD_OUT ", False), (False, False),
        (True, True), (0, False), (-1, False), (3, True), ("0", False), ("12", True), (["x"], True),
    ],
)  # fmt: skip
def test_is_available_reads_flags_stocks_and_merchant_texts(value: Any, expected: bool) -> None:
    assert is_available(value) is expected


def hidden_at(catalog: Catalog, availability: Availability, seconds: int) -> set[str]:
    """Items of table and catalog that are out at a time."""
    out = availability.at(catalog, NOON + seconds * SECOND)
    mask = availability.mask(catalog.mask("", TABLE), out).mask
    in_table = {TABLE.ids[n - 1] for n in range(1, len(TABLE) + 1) if not mask[n]}
    return in_table | out.ids


def test_items_appear_and_disappear_as_time_passes() -> None:
    catalog = Catalog()
    attributes: dict[str, dict[str, Any]] = {
        "i1": {"availability": "out_of_stock"},
        "i2": {"availability_date": iso(10)},
        "i3": {"expiration_date": iso(20)},
        "i4": {"availability_date": iso(5), "expiration_date": iso(15)},
        "outside": {"expiration_date": iso(20), "availability_date": iso(10)},
        "i5": {"expiration_date": "no time", "availability_date": ""},
        "i6": {"expiration_date": "2026-11-29 13:00:30"},  # in the zone of the project
    }
    for seq, (item_id, row) in enumerate(attributes.items()):
        catalog.upsert(Item(item_id=item_id, attributes=row, seq=seq))
    availability = Availability(TABLE, RULES)
    expected = {
        0: {"i1", "i2", "i4", "outside"}, 5: {"i1", "i2", "outside"}, 9: {"i1", "i2", "outside"}, 10: {"i1"},
        15: {"i1", "i4"}, 20: {"i1", "i3", "i4", "outside"}, 29: {"i1", "i3", "i4", "outside"},
        30: {"i1", "i3", "i4", "i6", "outside"},
    }  # fmt: skip
    for seconds in [*expected, *reversed(expected), 10, 0, 30]:
        assert hidden_at(catalog, availability, seconds) == expected[seconds], seconds
    catalog.upsert(Item(item_id="i1", attributes={"availability": "in_stock"}, seq=9))
    catalog.upsert(Item(item_id="i3", attributes={}, seq=10))
    catalog.upsert(Item(item_id="new", attributes={"availability": 0}, seq=11))
    assert hidden_at(catalog, availability, 20) == {"i4", "outside", "new"}


def test_mask_is_the_same_object_until_an_item_crosses_a_border() -> None:
    """Sources keep what they derive from a mask by its version."""
    catalog = Catalog()
    catalog.upsert(Item(item_id="i1", attributes={"expiration_date": iso(10)}))
    catalog.upsert(Item(item_id="i2", attributes={"availability": "out_of_stock"}))
    availability = Availability(TABLE, RULES)

    def mask(seconds: int) -> TableMask:
        return availability.mask(catalog.mask("", TABLE), availability.at(catalog, NOON + seconds * SECOND))

    first = mask(0)
    assert mask(9) is first
    assert mask(10) is not first
    assert mask(10).n_allowed == first.n_allowed - 1
    assert mask(0).digest == first.digest, "verify finds the same items"


def test_catalog_without_such_attributes_keeps_its_mask() -> None:
    catalog = Catalog.from_table(["i1", "i2"], [{"price": 3}, {}])
    availability = Availability(TABLE, RULES)
    base = catalog.mask("", TABLE)
    assert availability.mask(base, availability.at(catalog, NOON)) is base


VALUES = st.sampled_from(["in_stock", "out_of_stock", None])
TIMES = st.one_of(st.none(), st.integers(-3, 3).map(lambda n: iso(10 * n)))
CHANGES = st.lists(st.tuples(st.integers(1, 8), VALUES, TIMES, TIMES, st.integers(-40, 40)), max_size=12)


@given(CHANGES)
def test_any_order_of_changes_and_times_equals_a_rebuild(changes: list[tuple[Any, ...]]) -> None:
    catalog, availability = Catalog(), Availability(TABLE, RULES)
    for seq, (number, stock, start, end, seconds) in enumerate(changes):
        row = {"availability": stock, "availability_date": start, "expiration_date": end}
        present = {name: value for name, value in row.items() if value is not None}
        catalog.upsert(Item(item_id=f"i{number}", attributes=present, seq=seq))
        assert hidden_at(catalog, availability, seconds) == hidden_at(catalog, Availability(TABLE, RULES), seconds)


def test_list_keeps_the_best_item_of_each_group() -> None:
    catalog = Catalog()
    for item_id, group in (("i1", "a"), ("i2", 7), ("i3", "a"), ("i4", "7"), ("i5", None), ("i6", ""), ("x", "a")):
        attributes = {} if group is None else {"item_group_id": group}
        catalog.upsert(Item(item_id=item_id, attributes=attributes))
    variants = Variants(TABLE, "item_group_id")
    codes = variants.codes(catalog)
    items = np.array([[3, 1, 5, 6, 2, 4], [4, 0, 0, 0, 0, 0]], dtype=np.int32)
    scores = np.array([[6, 5, 4, 3, 2, 1], [1, 0, 0, 0, 0, 0]], dtype=np.float32)
    listed = one_per_group(FusedTopK(items, scores, np.zeros(items.shape, np.int8)), codes, 4)
    assert listed.items.tolist() == [[3, 5, 6, 2], [4, 0, 0, 0]]
    assert listed.scores.tolist()[0] == [6, 4, 3, 2]
    assert variants.first_of_groups(catalog, ["x", "i5", "i2", "i4"], ["i1"]) == ["i5", "i2"]
    catalog.upsert(Item(item_id="i3", attributes={"item_group_id": "b"}))
    changed = variants.codes(catalog)
    assert codes is not None
    assert changed is not None
    assert codes[3] == codes[1], "lists under way keep the earlier groups"
    assert changed[3] != changed[1]
    assert Variants(TABLE, "other").codes(catalog) is None


def groups_of(codes: np.ndarray | None) -> list[list[int]]:
    """Table items of each group, in order; [] if no item has a group."""
    codes = np.zeros(len(TABLE) + 1, dtype=np.int32) if codes is None else codes
    return sorted(np.flatnonzero(codes == code).tolist() for code in set(codes.tolist()) - {0})


@given(st.lists(st.tuples(st.integers(1, 8), st.sampled_from([None, "a", "b"])), max_size=12))
def test_groups_of_any_order_of_changes_equal_a_rebuild(changes: list[tuple[int, str | None]]) -> None:
    catalog, variants = Catalog(), Variants(TABLE, "item_group_id")
    for seq, (number, group) in enumerate(changes):
        attributes = {} if group is None else {"item_group_id": group}
        catalog.upsert(Item(item_id=f"i{number}", attributes=attributes, seq=seq))
        rebuilt = Variants(TABLE, "item_group_id").codes(catalog)
        assert groups_of(variants.codes(catalog)) == groups_of(rebuilt)
