"""Catalog after upserts: equal to a new catalog, and one row of work per upsert."""

from __future__ import annotations

from itertools import islice
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recloop.errors import UserError
from recloop.features.vocabulary import Vocabulary
from recloop.recommend import attribute_columns, journal
from recloop.recommend.catalog import Catalog, _weight
from recloop.recommend.table_mask import TableMask
from recloop.records import Item

TEXTS = (
    "", "TRUE", "price > 1", "price IS NULL", "price = '2'", "(price <= 3) AND (tag <> 'a')", "tag = 'b'", "stock",
    "stock = TRUE OR item_id = 'i3'", "tag LIKE '%a%'",
)  # fmt: skip
VALUES = {
    "price": st.one_of(st.integers(0, 4), st.just("2"), st.just("n/a"), st.none(), st.booleans(), st.just(["2"])),
    "tag": st.one_of(st.sampled_from(["a", "b", "1"]), st.lists(st.sampled_from("ab"), max_size=2), st.integers(1, 2)),
    "stock": st.one_of(st.booleans(), st.integers(0, 1), st.just({"a": 1})),
}


def outcome(catalog: Catalog, text: str, vocabulary: Vocabulary) -> Any:
    """The mask and the latest items, or the error that refuses the condition."""
    try:
        catalog.check(text, "filter")
    except UserError:
        with pytest.raises(UserError):
            catalog.mask(text, vocabulary)
        return "refused"
    mask = catalog.mask(text, vocabulary)
    again = TableMask.of(mask.mask)
    assert (mask.n_allowed, mask.digest, mask.is_all) == (again.n_allowed, again.digest, again.is_all)
    return mask.mask.tolist(), list(catalog.latest(text, vocabulary))


def plain(versions: list[Item]) -> Catalog:
    """A new catalog of item versions."""
    catalog = Catalog()
    for item in versions:
        catalog.upsert(item)
    return catalog


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.data())
def test_catalog_after_upserts_equals_a_new_catalog(data: Any) -> None:
    """Values change their types, items are hidden, deleted and added in any order of seqs."""
    vocabulary = Vocabulary([f"i{n}" for n in (5, 1, 9, 3)])
    versions: list[Item] = []
    catalog = Catalog()
    row = st.fixed_dictionaries({}, optional=VALUES)
    for _ in range(data.draw(st.integers(1, 5))):
        for number in data.draw(st.lists(st.integers(0, 11), max_size=4)):
            out = data.draw(st.sampled_from(["", "", "", "hidden", "deleted"]))
            seq = data.draw(st.integers(len(versions), len(versions) + 2))
            item = Item(
                item_id=f"i{number}",
                attributes=data.draw(row),
                hidden=out == "hidden",
                deleted=out == "deleted",
                seq=seq,
            )
            versions.append(item)
            catalog.upsert(item)
        text = data.draw(st.sampled_from(TEXTS))
        assert outcome(catalog, text, vocabulary) == outcome(plain(versions), text, vocabulary)
    fresh, copy = plain(versions), catalog.copy()
    for text in data.draw(st.lists(st.sampled_from(TEXTS), max_size=3)):
        expected = outcome(fresh, text, vocabulary)
        assert [outcome(catalog, text, vocabulary) for _ in range(2)] == [expected] * 2  # computed, then cached
        assert outcome(copy, text, vocabulary) == expected
    assert catalog.version == fresh.version == copy.version
    assert catalog.columns == fresh.columns


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_catalog_that_adopts_a_snapshot_equals_a_new_catalog(data: Any) -> None:
    """Items change before the snapshot, between it and its adoption, and afterwards."""
    vocabulary = Vocabulary([f"i{n}" for n in (5, 1, 9, 3)])
    versions: list[Item] = []
    catalog = Catalog()
    row = st.fixed_dictionaries({}, optional=VALUES)

    def upsert() -> None:
        for number in data.draw(st.lists(st.integers(0, 11), max_size=4)):
            hidden = data.draw(st.booleans())
            item = Item(item_id=f"i{number}", attributes=data.draw(row), hidden=hidden, seq=len(versions))
            versions.append(item)
            catalog.upsert(item)

    upsert()
    used = data.draw(st.sampled_from(TEXTS))
    assert outcome(catalog, used, Vocabulary(["i1"])) == outcome(plain(versions), used, Vocabulary(["i1"]))
    snapshot, before = catalog.snapshot(), plain(versions)
    upsert()
    texts = data.draw(st.lists(st.sampled_from(TEXTS), max_size=3))
    for text in texts:
        assert outcome(snapshot, text, vocabulary) == outcome(before, text, vocabulary)
    catalog.adopt(snapshot)
    for _ in range(2):
        fresh = plain(versions)
        for text in {*texts, used}:
            assert outcome(catalog, text, vocabulary) == outcome(fresh, text, vocabulary)
        assert catalog.columns == fresh.columns
        upsert()


def test_catalog_that_adopts_a_snapshot_reads_no_column_again() -> None:
    catalog = Catalog.from_table([f"i{n}" for n in range(6)], [{"price": n} for n in range(6)])
    vocabulary = Vocabulary(["i4", "i1"])
    snapshot = catalog.snapshot()
    mask = snapshot.mask("price > 2", vocabulary)
    catalog.adopt(snapshot)
    assert catalog.mask("price > 2", vocabulary) is mask
    catalog.upsert(Item(item_id="i1", attributes={"price": 7}, seq=1))
    assert catalog.mask("price > 2", vocabulary).mask.tolist() == [False, True, True]
    assert catalog._columns.n_reads == 0


def test_catalog_drops_a_snapshot_that_is_older_than_its_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_ENTRIES", 2)
    catalog = Catalog.from_table([f"i{n}" for n in range(6)], [{"price": n} for n in range(6)])
    vocabulary = Vocabulary(["i4", "i1"])
    snapshot = catalog.snapshot()
    mask = snapshot.mask("price > 2", vocabulary)
    for seq in range(1, 9):
        catalog.upsert(Item(item_id="i1", attributes={"price": seq}, seq=seq))
    catalog.adopt(snapshot)
    assert catalog.mask("price > 2", vocabulary) is not mask
    assert catalog.mask("price > 2", vocabulary).mask.tolist() == [False, True, True]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.booleans()), max_size=20))
def test_catalog_conditions_equal_their_plain_definition(rows: list[tuple[int, int, bool]]) -> None:
    catalog = Catalog.from_table([f"i{n}" for n in range(6)], [{"price": n % 4} for n in range(6)])
    vocabulary = Vocabulary([f"i{n}" for n in (5, 1, 8, 3)])
    catalog.mask("price > 1", vocabulary)
    items = {f"i{n}": (n % 4, False, 0) for n in range(6)}
    for seq, (number, price, hidden) in enumerate(rows, start=1):
        catalog.upsert(Item(item_id=f"i{number}", attributes={"price": price}, hidden=hidden, seq=seq))
        items[f"i{number}"] = (price, hidden, items.get(f"i{number}", (0, False, seq))[2])
    passing = {item_id for item_id, (price, hidden, _) in items.items() if price > 1 and not hidden}
    mask = catalog.mask("price > 1", vocabulary).mask
    assert mask.tolist() == [False, *(item_id in passing for item_id in vocabulary.ids)]
    outside = sorted(passing - set(vocabulary.ids), key=lambda item_id: (-items[item_id][2], item_id))
    assert list(catalog.latest("price > 1", vocabulary)) == outside


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_catalog_from_frames_equals_upserts_in_order_of_seq(data: Any) -> None:
    versions = data.draw(
        st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9), st.integers(0, 5), st.booleans()), max_size=9)
    )
    half = data.draw(st.integers(0, len(versions)))
    max_seq = data.draw(st.one_of(st.none(), st.integers(0, 9)))
    frames = [versions[:half], versions[half:]]
    catalog = Catalog()
    for frame in frames:
        for item_id, seq, price, hidden in sorted(frame, key=lambda row: row[1]):
            if max_seq is None or seq <= max_seq:
                catalog.upsert(Item(item_id=item_id, attributes={"price": price}, hidden=hidden, seq=seq))
    columns = {"item_id": pl.String, "seq": pl.Int64, "attributes": pl.String, "hidden": pl.Boolean}
    tables = [
        pl.DataFrame(
            [(i, seq, f'{{"price": {price}}}', hidden) for i, seq, price, hidden in frame], columns, orient="row"
        )
        for frame in frames
    ]
    built = Catalog.from_frames([table.with_columns(deleted=pl.lit(False)) for table in tables], max_seq)
    vocabulary = Vocabulary([])
    assert built.version == catalog.version
    assert [built.get(item_id) for item_id in "abc"] == [catalog.get(item_id) for item_id in "abc"]
    assert [built.first_seq(item_id) for item_id in "abc"] == [catalog.first_seq(item_id) for item_id in "abc"]
    assert list(built.latest("", vocabulary)) == list(catalog.latest("", vocabulary))


def shop(n_items: int) -> tuple[Catalog, Vocabulary]:
    ids = [f"i{n}" for n in range(n_items)]
    rows = [{"price": float(n), "in_stock": n % 2 == 0, "name": f"n{n}"} for n in range(n_items)]
    return Catalog.from_table(ids, rows), Vocabulary(ids)


def count_evaluated(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of rows of each later evaluation of single rows."""
    counts: list[int] = []
    evaluate_rows = catalog._columns.evaluate_rows
    monkeypatch.setattr(
        catalog._columns,
        "evaluate_rows",
        lambda condition, rows: (counts.append(len(rows)), evaluate_rows(condition, rows))[1],
    )
    return counts


def test_stock_updates_read_no_column_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each filter reads its columns once; an update costs one row of each filter in use."""
    catalog, vocabulary = shop(50)
    texts = ("in_stock", "in_stock AND price < 40")
    for text in texts:
        catalog.mask(text, vocabulary)
    evaluated = count_evaluated(catalog, monkeypatch)
    for n in range(40):
        row = {"price": 1.0, "in_stock": n % 2 == 1, "name": f"n{n}"}
        catalog.upsert(Item(item_id=f"i{n}", attributes=row, seq=n))
        for text in texts:
            catalog.mask(text, vocabulary)
    assert catalog._columns.n_reads == 2
    assert evaluated == [1] * 80


def test_update_of_another_field_evaluates_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog, vocabulary = shop(6)
    mask = catalog.mask("name = 'n3'", vocabulary)
    evaluated = count_evaluated(catalog, monkeypatch)
    catalog.upsert(Item(item_id="i3", attributes={"price": 3.0, "in_stock": True, "name": "n3"}, seq=1))
    assert catalog.mask("name = 'n3'", vocabulary) is mask
    catalog.upsert(Item(item_id="i3", attributes={"name": "n3"}, hidden=True, seq=2))
    assert not catalog.mask("name = 'n3'", vocabulary).n_allowed
    assert evaluated == []
    catalog.upsert(Item(item_id="i3", attributes={"name": "n3"}, seq=3))
    assert catalog.mask("name = 'n3'", vocabulary).digest == mask.digest
    assert evaluated == [1]  # shown again


def test_update_that_changes_no_result_keeps_the_mask() -> None:
    catalog, vocabulary = shop(6)
    mask = catalog.mask("in_stock", vocabulary)
    catalog.upsert(Item(item_id="i0", attributes={"price": 7.0, "in_stock": True}, seq=1))
    assert catalog.mask("in_stock", vocabulary) is mask
    before = mask.mask.copy()
    catalog.upsert(Item(item_id="i0", attributes={"price": 7.0, "in_stock": False}, seq=2))
    changed = catalog.mask("in_stock", vocabulary)
    assert changed.version != mask.version
    assert changed.digest != mask.digest
    assert (mask.mask == before).all()  # a mask in use by another thread does not change
    catalog.upsert(Item(item_id="i0", attributes={"in_stock": True}, seq=3))
    assert catalog.mask("in_stock", vocabulary).digest == mask.digest


def test_value_of_another_type_breaks_no_filter_and_reads_no_column_again() -> None:
    """A text in a column of numbers: numbers are still compared, and texts can be found."""
    catalog, vocabulary = shop(6)
    assert catalog.mask("price >= 3", vocabulary).n_allowed == 3
    assert catalog.mask("in_stock = TRUE", vocabulary).n_allowed == 3
    catalog.upsert(Item(item_id="i4", attributes={"price": "on request", "in_stock": "soon"}, seq=1))
    assert np.flatnonzero(catalog.mask("price >= 3", vocabulary).mask).tolist() == [4, 6]
    assert catalog._columns.n_reads == 2
    assert np.flatnonzero(catalog.mask("in_stock = TRUE", vocabulary).mask).tolist() == [1, 3]
    catalog.check("price = 'on request'", "filter")
    assert np.flatnonzero(catalog.mask("price = 'on request'", vocabulary).mask).tolist() == [5]
    with pytest.raises(UserError):
        catalog.check("name >= 3", "filter")


def test_type_of_a_field_is_fixed_by_the_bundle() -> None:
    """Posted rows change neither the type of a field nor the items that pass."""
    ids = ["i0", "i1", "i2"]
    rows = [{"price": 1, "tag": "a"}, {"price": 5, "tag": "b"}, {"price": 3, "tag": "a"}]
    catalog, vocabulary = Catalog.from_table(ids, rows), Vocabulary(ids)
    catalog.use_types(attribute_columns.fixed_types(rows))
    text = "price < 4 AND tag LIKE 'a%'"
    assert catalog.mask(text, vocabulary).mask.tolist() == [False, True, False, True]
    for number in range(20):
        catalog.upsert(Item(item_id=f"evil{number}", attributes={"price": "n/a", "tag": 5}, seq=number + 1))
        catalog.upsert(Item(item_id=f"worse{number}", attributes={"price": [True], "tag": ["a"]}, seq=number + 1))
    assert catalog.mask(text, vocabulary).mask.tolist() == [False, True, False, True]
    for item_id in ids:
        catalog.upsert(Item(item_id=item_id, attributes={}, seq=50))
    assert catalog.mask(text, vocabulary).n_allowed == 0


def test_few_values_of_another_type_do_not_change_the_type_of_a_field() -> None:
    rows: list[dict[str, Any]] = [{"price": number, "tag": "a"} for number in range(30)]
    catalog = Catalog.from_table([f"i{n}" for n in range(32)], [*rows, {"price": "n/a"}, {"tag": 1.5}])
    assert catalog.mask("price < 4 AND tag = 'a'", Vocabulary(["i1", "i9"])).mask.tolist() == [False, True, False]


def test_mistyped_names_the_values_that_filters_read_as_missing() -> None:
    types = attribute_columns.fixed_types([{"price": 1, "tag": "a", "none": None}])
    assert attribute_columns.mistyped({"price": 2, "tag": 5, "none": True, "new": 1}, types) == ""
    expected = "price: text, the live bundle has number; filters read it as missing"
    assert attribute_columns.mistyped({"price": "n/a"}, types) == expected


def test_results_older_than_the_journal_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_ENTRIES", 8)
    monkeypatch.setattr(attribute_columns, "MIN_STALE_ROWS", 4)
    catalog, vocabulary = shop(20)
    texts = ("price > 50", "in_stock")
    for n in range(60):
        catalog.upsert(Item(item_id=f"i{n % 30}", attributes={"price": 40.0 + n, "in_stock": n % 7 == 0}, seq=n + 1))
        if n % (1 + n // 8) == 0:
            copy = catalog.copy()
            assert outcome(catalog, texts[n % 2], vocabulary) == outcome(copy, texts[n % 2], vocabulary)


def test_batches_of_new_items_stay_linear() -> None:
    """20 batches of 500: each filter reads a column a few times, not once a batch."""
    catalog, vocabulary = Catalog(), Vocabulary(["i7", "i2000"])
    for start in range(0, 10_000, 500):
        for n in range(start, start + 500):
            catalog.upsert(Item(item_id=f"i{n}", attributes={"price": n % 10}, seq=n + 1))
        assert next(catalog.latest("price = 3", vocabulary)) == f"i{start + 493}"
    assert catalog._columns.n_reads == 1
    assert catalog.mask("price < 5", vocabulary).mask.tolist() == [False, False, True]
    assert sum(1 for _ in catalog.latest("price = 0", vocabulary)) == 999


@pytest.mark.parametrize("seed", range(5))
def test_table_mask_patch_equals_a_new_mask(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random(50) < 0.5
    mask[0] = False
    item_ix = generator.choice(49, 12, replace=False) + 1
    passes = generator.random(12) < 0.5
    patched = TableMask.of(mask.copy()).patched(item_ix, passes)
    mask[item_ix] = passes
    new = TableMask.of(mask)
    assert np.array_equal(patched.mask, mask)
    assert (patched.n_allowed, patched.key) == (new.n_allowed, new.key)


def test_catalog_version_is_the_sum_of_its_items() -> None:
    catalog, _ = shop(3)
    catalog.upsert(Item(item_id="i1", attributes={"b": 1, "a": [2]}, seq=4))
    items = [catalog.get(f"i{n}") for n in range(3)]
    assert all(items)
    total = sum(_weight(item) for item in items if item is not None) % 2**64
    assert catalog.version == f"{total:016x}"[:8]
    assert msgspec.json.encode({"b": 1, "a": 2}, order="sorted") == b'{"a":2,"b":1}'


@pytest.mark.parametrize("n_items", [3_000, pytest.param(2_000_000, marks=pytest.mark.slow)])
def test_catalog_posted_in_batches_equals_one_read_at_once(n_items: int) -> None:
    """The mask of a filter is asked for after some of the batches, as by a service that answers meanwhile."""
    vocabulary = Vocabulary([f"i{n}" for n in range(0, 2_000, 2)])
    catalog = Catalog()
    for start in range(0, n_items, 1_000):
        for n in range(start, start + 1_000):
            catalog.upsert(Item(item_id=f"i{n}", attributes={"price": n % 7}, seq=n + 1))
        if start % 100_000 == 1_000 or n_items < 10_000:
            catalog.mask("price > 3", vocabulary)
    whole = Catalog.from_table([f"i{n}" for n in range(n_items)], [{"price": n % 7} for n in range(n_items)])
    mask = catalog.mask("price > 3", vocabulary)
    assert mask.mask.tolist() == whole.mask("price > 3", vocabulary).mask.tolist()
    assert mask.mask.tolist() == [False, *(n % 7 > 3 for n in range(0, 2_000, 2))]
    assert (len(catalog), catalog.version) == (n_items, whole.version)
    newest = [n for n in range(n_items - 1, n_items - 8, -1) if n % 7 > 3]
    assert list(islice(catalog.latest("price > 3", vocabulary), len(newest))) == [f"i{n}" for n in newest]
