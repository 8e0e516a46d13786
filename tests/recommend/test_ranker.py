"""Candidates of the ranker: one query and a batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from recloop.bundle import Bundle
from recloop.errors import BundleError
from recloop.policy import RankerSpec
from recloop.recommend.ranker import candidates_of, feature_space
from recloop.recommend.top_k import TopK

DEPTHS = {"history": 6, "neighbours": 4, "popular": 4}


def recalled(seed: int, n_queries: int) -> dict[str, TopK]:
    """Random lists of each source, some of them empty or deeper than asked for."""
    random = np.random.default_rng(seed)
    lists = {}
    for source in DEPTHS:
        top = TopK.empty(n_queries, 8)
        for b in range(n_queries):
            items = random.choice(np.arange(1, 13), int(random.integers(0, 9)), replace=False)
            top.put(b, items, np.sort(random.random(len(items)))[::-1])
        lists[source] = top
    return lists


@pytest.mark.parametrize("seed", range(5))
def test_candidates_of_one_query_equal_those_of_a_batch(seed: int) -> None:
    lists = recalled(seed, 7)
    batch = candidates_of(lists, DEPTHS, slice(0, 7))
    for b in range(7):
        one = candidates_of(lists, DEPTHS, slice(b, b + 1))
        columns = slice(batch.offsets[b], batch.offsets[b + 1])
        assert one.offsets.tolist() == [0, len(one.items)]
        assert np.array_equal(one.items, batch.items[columns])
        assert np.array_equal(one.ranks, batch.ranks[:, columns])
        assert np.array_equal(one.scores, batch.scores[:, columns])
        assert {one.items.dtype, batch.items.dtype} == {np.dtype(np.int32)}


@pytest.mark.parametrize(
    ("fields", "numbers", "name"), [(("kind",), ("price",), "codes"), (("kind", "shelf"), (), "amounts")]
)
def test_statistics_with_other_fields_than_the_policy_are_refused(
    fields: tuple[str, ...], numbers: tuple[str, ...], name: str
) -> None:
    arrays = {
        "ranking.values": np.zeros((3, 10), np.float32), "ranking.codes": np.zeros((2, 3), np.int32),
        "ranking.amounts": np.zeros((1, 3), np.float32),
    }  # fmt: skip
    bundle = cast(Bundle, SimpleNamespace(arrays=arrays, scorers={}, spec=SimpleNamespace(timezone="UTC")))
    spec = cast(RankerSpec, SimpleNamespace(depths={}, fields=fields, numbers=numbers))
    with pytest.raises(BundleError, match=f"ranking.{name}="):
        feature_space(bundle, spec, check=False)
