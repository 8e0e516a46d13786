"""Caches: bounded by bytes, freed with their subject, equal to uncached results."""

from __future__ import annotations

import gc
import tracemalloc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.features.state import UserState
from recloop.features.vocabulary import Vocabulary
from recloop.recommend import catalog as catalogues
from recloop.recommend import user_states as readers
from recloop.recommend.cache import ENTRY_BYTES, ByteCache, state_bytes
from recloop.recommend.catalog import FILTER_CACHE_BYTES, Catalog
from recloop.recommend.user_states import StateCache

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


def test_catalog_cache_of_1000_filters_stays_within_the_byte_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FILTER_CACHE_BYTES == 64 * 2**20
    monkeypatch.setattr(catalogues, "FILTER_CACHE_BYTES", 2**18)
    catalogue = table_of(800)
    vocabularies = [Vocabulary([f"i{n}" for n in range(size)]) for size in (800, 500)]
    for number in range(1_000):
        vocabulary = vocabularies[number % 2]
        mask = catalogue.mask(f"price < {number}.5", vocabulary)
        assert mask.n_allowed == min(number + 1, len(vocabulary))
        assert catalogue.cached_bytes <= 2**18
    assert catalogue.cached_bytes > 2**17
    views = list(catalogue._views.values())
    held = sum(cached.mask.mask.nbytes for view in views for cached, _ in view.masks._entries.values())
    held += sum(passing.bits.nbytes for passing, _ in catalogue._passing._entries.values())
    assert held <= catalogue.cached_bytes


def state_of(moments: int) -> UserState:
    state = UserState(attributes={"age": "30-44", "tags": ["a", "b"]})
    for number in range(moments):
        state.add(
            f"item-{number % 90:06d}", 1_700_000_000_000_000 + number, f"basket-{number}", 1 if number % 9 else -1
        )
    return state


@pytest.mark.parametrize("moments", [1, 20, 400])
def test_state_bytes_estimates_the_memory_of_states(moments: int) -> None:
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    states = [state_of(moments) for _ in range(4_000 // moments)]
    traced_bytes = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.7 * traced_bytes < sum(map(state_bytes, states)) < 1.4 * traced_bytes


class CountingReader:
    """A state cache that records which users are rebuilt."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reader = StateCache(None, None, None)  # type: ignore[arg-type]
        self.read: list[str] = []
        monkeypatch.setattr(self.reader, "_rebuild", self._rebuild)

    def _rebuild(self, user_id: str, seq: int) -> UserState:
        self.read.append(user_id)
        return state_of(3)


def test_state_cache_is_least_recently_used_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert readers.STATE_CACHE_BYTES == 256 * 2**20
    monkeypatch.setattr(readers, "STATE_CACHE_BYTES", 100_000)
    users = CountingReader(monkeypatch)
    for number in range(500):
        users.reader.read(f"u{number}", 5)
        users.reader.read("regular", 5)  # read regularly, so it stays cached
        assert users.reader._cache.bytes <= 100_000
    assert users.read.count("regular") == 1
    users.reader.read("u0", 5)
    assert users.read.count("u0") == 2


def test_state_cache_keeps_a_bounded_number_of_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with a forgotten commit is read again instead of being read wrongly."""
    monkeypatch.setattr(readers, "MAX_NEWEST_USERS", 10)
    users = CountingReader(monkeypatch)
    users.reader.read("early", 3)
    for number in range(100):
        users.reader.invalidate([f"u{number}"], 10 + number)
    assert len(users.reader._newest) == 10
    users.reader.read("early", 200)  # no row of the user was committed, but that is forgotten
    users.reader.read("early", 200)
    assert users.read == ["early", "early"]
    users.reader.read("u0", 5)  # as of a seq before the user's row
    users.reader.read("u0", 200)
    assert users.read[2:] == ["u0", "u0"]
