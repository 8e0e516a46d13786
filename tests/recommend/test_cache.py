"""Caches: bounded by bytes, freed with their subject, equal to uncached results."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.config import Clean, Events
from recloop.features.labels import EventLabeler
from recloop.features.moments import moment_stamps
from recloop.features.state_history import StateHistory, open_groups
from recloop.features.state_store import StoredStates
from recloop.features.vocabulary import Vocabulary
from recloop.recommend import catalog as catalogues
from recloop.recommend import user_states as readers
from recloop.recommend.cache import ENTRY_BYTES, ByteCache
from recloop.recommend.catalog import FILTER_CACHE_BYTES, Catalog
from recloop.recommend.user_states import StateSource
from recloop.records import EVENT_SCHEMA

ACTIONS = st.lists(st.tuples(st.sampled_from("gpx"), st.integers(0, 6), st.integers(0, 400)), max_size=60)


@given(ACTIONS)
def test_byte_cache_keeps_the_most_recent_entries_within_the_limit(actions: list[tuple[str, int, int]]) -> None:
    cache: ByteCache[int, int] = ByteCache(1_000)
    order: list[tuple[int, int]] = []  # (key, size), the least recently used first
    for what, key, size in actions:
        if what == "g":
            expected = dict(order).get(key)
            assert cache.get(key) == expected
            order = [one for one in order if one[0] != key] + ([] if expected is None else [(key, expected)])
        else:
            order = [one for one in order if one[0] != key]
            if what == "x":
                cache.pop(key)
                continue
            cache.put(key, size, size)
            order.append((key, size))
            while sum(size + ENTRY_BYTES for _, size in order) > 1_000:
                order.pop(0)
        assert cache.bytes == sum(size + ENTRY_BYTES for _, size in order) <= 1_000
        assert len(cache) == len(order)


def test_byte_cache_value_above_the_limit_is_not_kept() -> None:
    cache: ByteCache[str, str] = ByteCache(1_000)
    cache.put("small", "a", 100)
    cache.put("large", "b", 1_000)
    assert (cache.get("large"), cache.get("small")) == (None, "a")


def table_of(size: int) -> Catalog:
    ids = [f"i{n}" for n in range(size)]
    return Catalog.from_table(ids, [{"price": float(n)} for n in range(size)])


def test_catalog_frees_the_table_of_a_removed_bundle() -> None:
    catalogue, references = table_of(50), []
    gc.disable()  # freed by reference count, without the garbage collector
    try:
        for _ in range(20):
            vocabulary = Vocabulary([f"i{n}" for n in range(40)])
            for text in ("", "price > 3"):
                catalogue.mask(text, vocabulary)
                list(catalogue.latest(text, vocabulary))
            references.append(weakref.ref(vocabulary))
            del vocabulary
        assert [ref() for ref in references] == [None] * 20
    finally:
        gc.enable()
    assert catalogue.cached_bytes < 1_000  # the bits of two conditions


def test_catalog_cache_of_400_filters_stays_within_the_byte_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FILTER_CACHE_BYTES == 64 * 2**20
    monkeypatch.setattr(catalogues, "FILTER_CACHE_BYTES", 2**17)
    catalogue = table_of(800)
    vocabularies = [Vocabulary([f"i{n}" for n in range(size)]) for size in (800, 500)]
    for number in range(400):
        vocabulary = vocabularies[number % 2]
        mask = catalogue.mask(f"price < {number}.5", vocabulary)
        assert mask.n_allowed == min(number + 1, len(vocabulary))
        assert catalogue.cached_bytes <= 2**17
    assert catalogue.cached_bytes > 2**16
    views = list(catalogue._views.values())
    held = sum(cached.mask.mask.nbytes for view in views for cached, _ in view.masks._entries.values())
    held += sum(passing.bits.nbytes for passing, _ in catalogue._passing._entries.values())
    assert held <= catalogue.cached_bytes


def source_of(users: dict[str, int]) -> StateSource:
    """States of users with a number of purchases each, at seq 1,000."""
    rows = [
        {"user_id": user, "item_id": f"item-{n % 90:06d}", "timestamp": n, "event_type": "purchase", "seq": n}
        for user, n_rows in users.items()
        for n in range(n_rows)
    ]
    signal = EventLabeler(Events(), Clean())
    frame = moment_stamps(signal.label(pl.DataFrame(rows, schema=EVENT_SCHEMA)))
    history = StateHistory(frame)
    return StateSource(StoredStates(history, open_groups(frame, history), 1_000, "key"), signal, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_rows", [1, 20, 400])
def test_cached_bytes_bound_the_memory_of_states(n_rows: int) -> None:
    users = {f"u{n}": n_rows for n in range(1 + 800 // n_rows)}
    source = source_of(users)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for user in users:
        source.read(user)
    traced_bytes = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.05 * source._cache.bytes < traced_bytes < source._cache.bytes  # bundles derive more from each state


def test_state_cache_is_least_recently_used_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert readers.STATE_CACHE_BYTES == 256 * 2**20
    monkeypatch.setattr(readers, "STATE_CACHE_BYTES", 100_000)
    source = source_of({f"u{n}": 3 for n in range(100)})
    regular = source.read("u50")
    first = source.read("u0")
    for number in range(100):
        source.read(f"u{number}")
        assert source.read("u50") is regular  # read regularly, so it stays cached
        assert source._cache.bytes <= 100_000
    again = source.read("u0")
    assert again is not first
    assert again.digest(0) == first.digest(0)


def test_cached_state_includes_later_rows_of_its_user_only() -> None:
    source = source_of({"u1": 3, "u2": 3})
    before = source.read("u1"), source.read("u2")
    rows = pl.DataFrame(
        [{"user_id": "u1", "item_id": "new", "timestamp": 5, "event_type": "purchase", "seq": 1_001}],
        schema=EVENT_SCHEMA,
    )
    source.apply(source.label(rows), [], 1_001)
    assert [items for _, items, _ in source.read("u1").moments()][-1] == ["new"]
    assert source.read("u2") is before[1]
    assert source.read("u1", 1_000).digest(0) == before[0].digest(0)
    source.apply(source.label(rows), [], 1_001)  # rows of the seq are added once
    assert source.read("u1").positives.tolist() == [4]
