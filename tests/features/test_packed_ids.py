"""Packed ids: equal to a list and a dictionary of the same ids."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recloop.features import packed_ids, vocabulary
from recloop.features.packed_ids import PackedIds
from recloop.features.vocabulary import Vocabulary

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)


@given(st.lists(TEXTS, unique=True), st.lists(TEXTS), st.sampled_from([0.0, 1e9]))
def test_packed_vocabulary_equals_a_dictionary(ids: list[str], raws: list[str], share: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plain = Vocabulary(ids)
        patch.setattr(vocabulary, "MIN_PACKED_IDS", 0)
        patch.setattr(packed_ids, "MIN_BULK_SHARE", share)
        packed = Vocabulary(pl.Series(ids, dtype=pl.String))
        assert isinstance(packed.ids, PackedIds)
        asked = [*raws, *ids, "\ud800"]
        assert packed.lookup(asked, len(asked)).tolist() == plain.lookup(asked, len(asked)).tolist()
        assert [packed.index(raw) for raw in asked] == [plain.index(raw) for raw in asked]


@given(st.lists(TEXTS, unique=True, min_size=1))
def test_packed_ids_equal_the_list(ids: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_ids, "IDS_PER_STEP", 2)
        packed = PackedIds(pl.Series(ids, dtype=pl.String))
        assert packed == ids
        assert [packed[n] for n in range(-len(ids), len(ids))] == ids + ids
        assert packed[1:3] == ids[1:3]
        assert all(raw in packed for raw in ids)
        with pytest.raises(IndexError):
            packed[len(ids)]


def test_vocabulary_packs_large_series_only() -> None:
    assert isinstance(Vocabulary(pl.Series(["a", "b"])).ids, list)
